"""A value belongs to the round and the step at which it was measured; predictions and measurements by hand are none."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError, CheckpointError, UnknownMetricError
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
DATA = ([BATCH] * 3, [BATCH] * 2)


class EverySecond(lc.Callback):
    """Validates in even rounds only."""

    @lc.on(lc.EpochBegin, lc.AbstractValidationPhase)
    def skip(self, learner: Any, phase: Any) -> None:
        if learner.epoch.round % 2:
            raise lc.CancelEpochException("not now")


class Within(lc.TrainingPhase):
    """Validates after every second step."""

    def epoch(self, learner: Any, data: Any) -> None:
        with lc.run_epoch(learner, self):
            for number, batch in enumerate(data, 1):
                learner.run_step(self, batch)
                if number % 2 == 0:
                    learner.run_epoch(lc.ValidationPhase(), last=False)


def rounds_of(values: Any) -> list[int]:
    return [number for number, value in enumerate(values, 1) if value is not None]


def test_what_is_not_measured_is_a_gap_everywhere() -> None:
    logger = lc.loggers.MemoryLogger()
    learner = toy_learner([EverySecond(), lc.LogMetrics(logger), lc.EarlyStopping(9)], data=DATA)
    result = learner.fit(5)
    assert rounds_of(learner.history["val_loss"]) == [2, 4] == [step for step, _ in logger.entries["val_loss"]]
    assert [step for step, _ in logger.entries["loss"]] == [1, 2, 3, 4, 5]
    assert [record["val_loss"] is None for record in result.history.records()] == [True, False, True, False, True]  # type: ignore[attr-defined]
    table = learner.history.to_pandas()
    assert table["val_loss"].isna().tolist() == [True, False, True, False, True]
    training, validation = learner.history.plot().axes[0].lines
    assert list(training.get_xdata()) == [1, 2, 3, 4, 5] and list(validation.get_xdata()) == [1, 2, 3, 4]
    assert np.isnan(validation.get_ydata()).tolist() == [True, False, True, False]


def test_a_hand_written_loop_has_rounds_too(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "val_loss", keep_top_k=9)
    learner = toy_learner([keeper, lc.EarlyStopping(9)], data=DATA)
    train, valid = lc.TrainingPhase(), lc.ValidationPhase()
    for number in range(1, 5):
        assert learner.run_epoch(train).round == number
        if number % 2 == 0:
            assert learner.run_epoch(valid).round == number
    assert rounds_of(learner.history["val_loss"]) == [2, 4] and len(learner.history["loss"]) == 4
    assert [path.stem[-1] for path in keeper.paths()] == ["2", "4"]
    two = toy_learner([], data=DATA, phases=[train, Other()])
    for _ in range(2):
        two.run_epoch(train, last=False)
        two.run_epoch(Other(), DATA[0])
    assert len(two.history["loss"]) == len(two.history["Other_loss"]) == 2


class Other(lc.TrainingPhase):
    """A second training phase."""

    data_key = None  # type: ignore[assignment]

    def epoch(self, learner: Any, data: Any) -> None:
        super().epoch(learner, DATA[0])


@pytest.mark.parametrize("when", ["before", "between", "in a callback"])
def test_predictions_and_measurements_by_hand_leave_no_trace(when: str, tmp_path: Path) -> None:
    def made(folder: str, *more: lc.Callback) -> tuple[lc.Learner, lc.Checkpointer, lc.EarlyStopping, Any]:
        keeper, stop = lc.Checkpointer(tmp_path / folder, "val_loss", keep_top_k=9), lc.EarlyStopping(9)
        logger = lc.loggers.MemoryLogger()
        return toy_learner([keeper, stop, lc.LogMetrics(logger), *more], data=DATA), keeper, stop, logger

    def look(learner: Any) -> None:
        learner.predict(np.ones((2, 1)))
        if when != "in a callback":
            measured = learner.run_epoch(lc.ValidationPhase(), [BATCH])
            assert measured.round is None and measured.metrics.keys() == {"val_loss"}

    class Looks(lc.Callback):
        @lc.on(lc.StepEnd, lc.AbstractValidationPhase)
        @lc.on(lc.EpochEnd)
        def look(self, learner: Any, phase: Any) -> None:
            if not isinstance(phase, lc.PredictionPhase):
                look(learner)

    learner, keeper, stop, logger = made("a", *([Looks()] if when == "in a callback" else []))
    calm, other, still, quiet = made("b")
    if when == "before":
        look(learner)
    for count in (2, 1):
        learner.fit(count)
        calm.fit(count)
        if when == "between":
            look(learner)
    assert dict(learner.history) == dict(calm.history)
    for name in ("loss", "val_loss", "step/loss"):  # a measurement before the first round stands at 0
        assert [entry for entry in logger.entries[name] if entry[0]] == quiet.entries[name]
    assert [path.stem[-1] for path in keeper.paths()] == [path.stem[-1] for path in other.paths()] == ["1", "2", "3"]
    assert stop.state_dict() == still.state_dict()


def test_a_measurement_by_hand_fills_a_gap_and_replaces_nothing() -> None:
    learner = toy_learner(data=(DATA[0], None))
    before = learner.run_epoch(lc.ValidationPhase(), [BATCH]).metrics["val_loss"]
    assert learner.history["val_loss"] == [before] and learner.history.records() == []
    learner.fit(2)
    after = learner.run_epoch(lc.ValidationPhase(), [BATCH]).metrics["val_loss"]
    assert learner.history["val_loss"] == [None, after] and after < before
    learner.import_weights({"w": np.zeros(1)})
    assert learner.run_epoch(lc.ValidationPhase(), [BATCH]).metrics["val_loss"] == before
    assert learner.history["val_loss"] == [None, before], "the last one by hand"
    validated = toy_learner(data=DATA)
    validated.fit(1)
    known = dict(validated.history)
    validated.run_epoch(lc.ValidationPhase(), [(np.ones((4, 1)), np.zeros((4, 1)))])
    assert dict(validated.history) == known


def test_validation_every_other_step() -> None:
    logger = lc.loggers.MemoryLogger()
    learner = toy_learner([lc.LogMetrics(logger)], data=([BATCH] * 5, [BATCH]), phases=[Within()])
    learner.fit(2)
    within = learner.history.within("val_loss")
    assert [(number, step) for number, step, _ in within] == [(1, 2), (1, 4), (2, 7), (2, 9)]
    assert learner.history["val_loss"] == [within[1][2], within[3][2]]
    assert logger.entries["within/val_loss"] == [(step, value) for _, step, value in within]
    assert logger.entries["val_loss"] == [(1, within[1][2]), (2, within[3][2])]


def test_the_best_within_an_epoch_is_saved_with_its_weights(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "val_loss", keep_top_k=9)
    learner = toy_learner([keeper], data=([BATCH] * 5, [BATCH]), phases=[Within()])
    learner.fit(2)
    names = [path.stem.partition("-epoch-")[2].lstrip("0") for path in keeper.paths()]
    assert names == ["1-step-000002", "1-step-000004", "2-step-000002", "2-step-000004", "2"]
    other = toy_learner(data=(None, [BATCH]))
    other.load_model(keeper.best)
    measured = other.run_epoch(lc.ValidationPhase()).metrics["val_loss"]
    assert measured == learner.history["val_loss"][-1]


def test_a_metric_and_a_logger_that_join_later() -> None:
    learner = toy_learner([lc.Metrics()], data=DATA)
    learner.fit(2)
    old = learner.callbacks.get(lc.Metrics)
    assert old is not None
    learner.callbacks.replace(old, lc.Metrics(lc.Metric(lc.losses.mae, "mae")))
    logger = lc.loggers.MemoryLogger()
    learner.callbacks.add(lc.LogMetrics(logger), lc.LogHyperParams(logger))
    learner.fit(1)
    assert [record["mae"] is None for record in learner.history.records()] == [True, True, False]
    assert learner.history.step_numbers("mae") == [7, 8, 9]
    assert [step for step, _ in logger.entries["step/mae"]] == [7, 8, 9]
    assert [step for step, _ in logger.entries["mae"]] == [3] and logger.entries["hyper/learning_rate"][0][0] == 6


def test_a_resumed_run_goes_on_in_its_round(tmp_path: Path) -> None:
    def made(*more: lc.Callback) -> tuple[lc.Learner, Any]:
        xs = np.arange(12.0).reshape(12, 1) / 12
        logger = lc.loggers.MemoryLogger()
        train = lc.data.batches((xs, 2 * xs), 3, shuffle=True)
        callbacks = [lc.LogMetrics(logger), EverySecond(), *more]
        return toy_learner(callbacks, data=(train, [BATCH])), logger

    first, _ = made(lc.MaxSteps(10))
    assert first.fit(9).status == "stopped"
    assert len(first.history["loss"]) == 3, "what the third round completed"
    first.save(tmp_path / "x.safetensors")
    second, logger = made(lc.MaxSteps(99))
    second.load(tmp_path / "x.safetensors")
    second.fit(2)
    whole, _ = made()
    whole.fit(4)
    assert second.history["val_loss"] == whole.history["val_loss"] and len(second.history["loss"]) == 4
    assert second.history.steps("loss") == whole.history.steps("loss")
    assert [step for step, _ in logger.entries["loss"]] == [3, 4]
    first.fit(0)
    first.callbacks.remove(first.callbacks.get(lc.MaxSteps))  # type: ignore[arg-type]
    first.fit(1)  # without a load the loader begins anew, and so does the round
    assert len(first.history["loss"]) == 4


def test_a_checkpoint_of_a_round_has_the_whole_round(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "loss", keep_top_k=1)
    learner = toy_learner([keeper], data=DATA)
    learner.fit(2)
    other = toy_learner([lc.Checkpointer(tmp_path, "loss", keep_top_k=1)], data=DATA)
    other.load(keeper.last)
    assert dict(other.history) == dict(learner.history)


def test_an_old_checkpoint_has_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopcore import checkpoint

    learner = toy_learner(data=DATA)
    learner.fit(3)
    learner.save(tmp_path / "new")
    arrays, manifest = checkpoint.read(tmp_path / "new")
    for name in ("missed", "rounds", "within"):
        del manifest[name]
    old = {name: array for name, array in arrays.items() if not name.startswith("numbers/")}
    checkpoint.write(tmp_path / "old", old, manifest)
    other = toy_learner(data=DATA)
    other.load(tmp_path / "old")
    assert other.history.step_numbers("loss") == list(range(1, 10))
    for one in (learner, other):
        one.fit(1)
    assert dict(other.history) == dict(learner.history) and len(other.history["loss"]) == 4
    assert other.history.step_numbers("loss") == learner.history.step_numbers("loss")


def test_a_name_stands_for_one_metric() -> None:
    taken = lc.Metric(lc.losses.mae, "val_loss", phase=lc.AbstractTrainingPhase)
    with pytest.raises(CallbackError, match="would both be 'val_loss'"):
        toy_learner([lc.Metrics(taken)], data=DATA)

    class Several:
        def reset(self) -> None: ...
        def update(self, y_pred: Any, ys: Any) -> None: ...
        def compute(self) -> dict[str, float]:
            return {"val_loss": 1.0}

    several = lc.Metric(Several(), phase=lc.AbstractTrainingPhase)
    learner = toy_learner([lc.Metrics(several)], data=DATA)
    with pytest.raises(CallbackError, match="would both be 'val_loss'"):
        learner.fit(2)
    toy_learner([lc.Metrics(lc.Metric(lc.losses.mae, "val_x"))], data=DATA).fit(1)


def test_a_metric_that_nobody_measures_is_named() -> None:
    for key in ("los", "val_los", "other_loss"):
        with pytest.raises(UnknownMetricError, match=key):
            toy_learner([lc.EarlyStopping(3, key)], data=DATA).fit(1)
    with pytest.raises(UnknownMetricError, match="val_loss"):
        toy_learner([lc.EarlyStopping(3)], data=(DATA[0], None)).fit(1)
    never = lc.FunctionCallback(_skip, lc.EpochBegin, lc.ValidationPhase)
    with pytest.warns(UserWarning, match="EarlyStopping watched 'val_loss', which had no value"):
        toy_learner([lc.EarlyStopping(3), never], data=DATA).fit(2)


def _skip(learner: Any, phase: Any) -> None:
    raise lc.CancelEpochException("never")


def test_rates_are_logged_as_the_steps_used_them() -> None:
    class Decays(lc.Callback):
        writes = ("hyper.learning_rate",)
        run_before = (lc.LogHyperParams,)

        @lc.on(lc.StepEnd, lc.TrainingPhase)
        def decay(self, learner: Any, phase: Any) -> None:
            learner.hyper["learning_rate"] = learner.hyper["learning_rate"] / 2

    logger = lc.loggers.MemoryLogger()
    learner = toy_learner([Decays(), lc.LogHyperParams(logger)], steps=3)
    learner.fit(1)
    assert logger.entries["hyper/learning_rate"] == [(0, 0.1), (2, 0.05), (3, 0.025)]


def test_results_and_histories_can_be_pickled_and_copied() -> None:
    learner = toy_learner(data=DATA)
    result = learner.fit(2)
    known = dict(learner.history)
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert dict(other.history) == known and (other.status, other.epochs) == ("completed", 2)
        history: Any = other.history
        assert history.steps("loss") == learner.history.steps("loss")
    kept = copy.copy(learner.history)
    learner.fit(1)
    assert len(learner.history["loss"]) == 3 and len(repr(result)) < 120
    assert len(copy.deepcopy(kept)["loss"]) in (2, 3)
    for refused in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(CheckpointError, match=r"let it go on from learner\.save\(path\)"):
            refused(learner)
    schedule = lc.schedules.warmup(lc.one_cycle(0.1, 10), 4)
    assert pickle.loads(pickle.dumps(schedule))(3) == schedule(3) and repr(schedule) == "warmup(one_cycle(0.1, 10), 4)"
    assert pickle.loads(pickle.dumps(lc.top_k_accuracy(2))).__name__ == "top_2_accuracy"


def test_what_a_person_prints_is_short() -> None:
    learner = toy_learner([lc.Traces({"one": lambda learner: 1.0})], data=DATA)
    learner.fit(3)
    shared = learner.shared
    for one in (
        *(learner, learner.callbacks, learner.hyper, learner.epoch, learner.model, learner.phases[0], learner.result),
        *(learner.history, shared.metrics_step, shared.metrics_epoch, shared.traces, shared.traces["training"]["one"]),
        *(learner.callbacks.get(lc.Recorder), lc.loggers.MemoryLogger(), learner.params, learner.step),
    ):
        assert " object at 0x" not in repr(one) and len(repr(one)) < 200, one
