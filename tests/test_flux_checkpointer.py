"""Defects of FluxTraining.jl's Checkpointer (C-1 to C-9), and what a checkpoint promises besides."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import checkpoint_file
from loopcore.errors import CallbackError, CheckpointError, DataError

BATCHES = [(np.full((4, 1), x), np.full((4, 1), x)) for x in (1.0, 2.0, 3.0)]


class Losses(lc.TrainingPhase):
    """Its losses are these, step by step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = tuple(losses)

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]


def noisy(**options: Any) -> lc.Learner:
    """A learner with all that a run goes on from: Adam, random draws, a shuffled loader, a schedule, averages."""

    class Noisy(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.xs = state.xs + 0.1 * learner.random.normal(state.xs.shape)
            super().step(learner, handle, state)

    x = np.arange(20.0)[:, None] / 20
    given = {
        "model": (lambda params, x: x * params["w"] + params["b"], {"w": np.zeros(1), "b": np.zeros(1)}),
        "optimizer": lc.Adam(0.05),
        "callbacks": [lc.Scheduler({"learning_rate": lc.one_cycle(0.1, 40)}), lc.AveragedWeights(0.9)],
        "phases": [Noisy(), lc.ValidationPhase()],
        "data": (lc.data.batches((x, 2 * x), 3, shuffle=True), lc.data.batches((x, 2 * x), 8)),
    }
    return lc.testing.toy_learner(**{**given, **options})


def assert_same(one: lc.Learner, other: lc.Learner) -> None:
    np.testing.assert_equal(one.export_weights(), other.export_weights())
    np.testing.assert_equal(one.backend.export_optimizers(), other.backend.export_optimizers())
    np.testing.assert_equal(one.shared.averaged_params, other.shared.averaged_params)
    assert one.history == other.history and dict(one.shared.history) == dict(other.shared.history)
    for key in one.history:
        assert one.history.steps(key) == other.history.steps(key)
    assert {name: one.hyper[name] for name in one.hyper} == {name: other.hyper[name] for name in other.hyper}


def test_flux_C1_a_run_that_goes_on_has_the_same_bits(tmp_path: Path) -> None:
    """It saved the model alone. Three interruptions, each in a learner with another seed."""
    whole, part = noisy(), noisy()
    whole.fit(4)
    for number in range(4):
        part.fit(1)
        path = part.save(tmp_path / f"{number}.safetensors")
        part = noisy(seed=99)
        part.load(path)
    assert_same(whole, part)


def test_flux_C2_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote straight to the final name."""
    learner = noisy()
    path = learner.save(tmp_path / "run.safetensors")
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    for name in ("fsync", "replace", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(CheckpointError, match=r"run\.safetensors could not be written.*Input/output"):
                learner.save(path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    for bad in ("file/run.safetensors", "folder"):
        with pytest.raises(CheckpointError, match="could not be written"):
            learner.save(tmp_path / bad)


def test_flux_C3_what_is_in_a_file_is_data(tmp_path: Path) -> None:
    """Loading could run code. Here everything is arrays and strict JSON, non-finite numbers included."""
    losses = [math.nan, math.inf, -math.inf, 0.5]
    learner = lc.testing.toy_learner(
        [lc.Metrics(), lc.Recorder()], phases=[Losses(losses)], steps=1, default_callbacks=False
    )
    learner.fit(4)
    path = learner.save(tmp_path / "run.safetensors", value=math.nan)
    text = path.read_bytes()
    assert b"NaN" not in text and b"Infinity" not in text
    manifest = checkpoint_file.manifest_of(path)
    assert math.isnan(manifest["value"])
    np.testing.assert_equal(manifest["metrics"]["training"]["loss"], losses)


def test_flux_C4_a_run_that_goes_on_prunes_its_old_files(tmp_path: Path) -> None:
    """The queue of the best lived in memory."""
    losses = [4.0, 1.0, 3.0, 2.0, 5.0, 6.0]

    def make() -> tuple[lc.Learner, lc.Checkpointer]:
        keeper = lc.Checkpointer(tmp_path, "loss", keep_top_k=2)
        given: list[lc.Callback] = [keeper, lc.Metrics(), lc.Recorder()]
        return lc.testing.toy_learner(given, phases=[Losses(losses)], steps=1, default_callbacks=False), keeper

    learner, keeper = make()
    for _ in range(len(losses)):
        learner.fit(1)
        last = keeper.last
        learner, keeper = make()
        learner.load(last)
    kept = [checkpoint_file.manifest_of(path)["value"] for path in keeper.paths()]
    assert kept == [1.0, 2.0, 6.0], "the best two and the last"


def test_flux_C5_names_of_two_runs_never_meet(tmp_path: Path) -> None:
    """Names were the epoch and the loss: two runs, or two equal losses, wrote one file; 1000 came before 999."""
    keepers = [lc.Checkpointer(tmp_path, keep_top_k=9) for _ in range(2)]
    for keeper in keepers:
        lc.testing.toy_learner([keeper], target=math.nan).fit(1)
        lc.testing.toy_learner([lc.Checkpointer(tmp_path, keep_top_k=9)]).fit(2)
    assert len(list(tmp_path.iterdir())) == 2 * (1 + 2)
    keepers[0].load_state_dict({"run": keepers[0].run, "epochs": 998})
    keepers[0]._trained = False
    learner = lc.testing.toy_learner([lc.Checkpointer(tmp_path / "long", keep_top_k=2)])
    (keeper,) = (callback for callback in learner.callbacks if isinstance(callback, lc.Checkpointer))
    keeper.load_state_dict({"run": keeper.run, "epochs": 998})
    learner.fit(3)
    assert [path.stem.rpartition("-")[2] for path in keeper.paths()] == ["001000", "001001"]


def test_flux_C6_the_monitor_is_of_the_epoch_that_ended(tmp_path: Path) -> None:
    """It ranked by the training loss, before the validation of that epoch."""
    keeper = lc.Checkpointer(tmp_path, "val_loss", keep_top_k=5)
    learner = lc.testing.toy_learner([keeper], data=(BATCHES, BATCHES))
    learner.fit(3)
    values = [checkpoint_file.manifest_of(path)["value"] for path in keeper.paths()]
    assert values == learner.history["val_loss"]
    early = lc.Checkpointer(tmp_path / "early", "loss", keep_top_k=5)
    learner = lc.testing.toy_learner([early], data=(BATCHES, BATCHES))
    learner.fit(3)
    assert [checkpoint_file.manifest_of(path)["value"] for path in early.paths()] == learner.history["loss"]


def test_flux_C7_arguments_are_checked_and_failures_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``keep_top_k`` could be 0, a failed deletion was hidden, and the folder was made before it was needed."""
    make: Any = lc.Checkpointer
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(CallbackError, match="keep_top_k"):
            make(tmp_path / "none", keep_top_k=wrong)
    assert not (tmp_path / "none").exists()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    keeper = lc.Checkpointer(tmp_path, keep_top_k=1)
    with pytest.warns(UserWarning, match="cannot be deleted.*Permission denied"):
        assert lc.testing.toy_learner([keeper]).fit(2).status == "completed"
    assert len(keeper.paths()) == 2


@pytest.mark.parametrize("stopped_at", [0, 4, 5, 6])
def test_flux_C8_a_stopped_fit_is_saved_and_goes_on(tmp_path: Path, stopped_at: int) -> None:
    """A cancelled fit had no last checkpoint. With seven steps an epoch, in the middle and at its end."""

    def make(*more: lc.Callback) -> lc.Learner:
        return noisy(callbacks=[lc.AveragedWeights(0.9), *more], phases=[lc.TrainingPhase()])

    class Stop(lc.Callback):
        @lc.on(lc.StepEnd)
        def stop(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 7 + stopped_at:
                raise lc.CancelFittingException("enough")

    keeper = lc.Checkpointer(tmp_path)
    whole, part, rest = make(), make(keeper, Stop()), make(lc.Checkpointer(tmp_path))
    whole.fit(3)
    assert part.fit(3).status == "stopped"
    assert keeper.last.stem.endswith("-stopped")
    rest.load(keeper.last)
    rest.fit(1 if stopped_at == 6 else 2)
    np.testing.assert_equal(rest.export_weights(), whole.export_weights())
    assert rest.shared.history["training"].steps == whole.shared.history["training"].steps == 21


def test_a_failed_fit_is_not_saved(tmp_path: Path) -> None:
    """What a step had half done when it failed is in no checkpoint."""

    class Fail(lc.Callback):
        @lc.on(lc.BackwardEnd)
        def fail(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 4:
                raise RuntimeError("in the middle")

    keeper = lc.Checkpointer(tmp_path)
    with pytest.raises(RuntimeError, match="in the middle"):
        lc.testing.toy_learner([keeper, Fail()], steps=3).fit(3)
    assert [path.stem.rpartition("-")[2] for path in keeper.paths()] == ["000001"]


def test_flux_C9_the_best_is_loaded_back_and_predicts_the_same(tmp_path: Path) -> None:
    """Its tests counted files, and loaded none."""
    keeper = lc.Checkpointer(tmp_path, "val_loss", keep_top_k=1)
    predicted: dict[int, Any] = {}
    xs = np.linspace(-1, 1, 9)[:, None]

    class Keep(lc.Callback):
        reads = ("shared.history",)
        run_before = (lc.Checkpointer,)

        @lc.on(lc.EpochEnd, lc.ValidationPhase)
        def keep(self, learner: Any, phase: Any) -> None:
            predicted[learner.shared.history["training"].epochs] = learner.predict(xs)

    learner = noisy(
        callbacks=[lc.AveragedWeights(0.9), keeper, Keep()], phases=[lc.TrainingPhase(), lc.ValidationPhase()]
    )
    learner.fit(4)
    best = 1 + int(np.argmin(np.array(learner.history["val_loss"], float)))
    other = noisy(callbacks=[lc.AveragedWeights(0.9), lc.Checkpointer(tmp_path)])
    other.load(keeper.best)
    np.testing.assert_equal(other.predict(xs), predicted[best])


# -- ranking


VALUES = (0.0, 1.0, math.nan, math.inf, -math.inf)


def kept_by(values: tuple[float, ...], k: int, mode: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are left, where files are names alone."""
    keeper = lc.Checkpointer(folder, "loss", mode=mode, keep_top_k=k)
    there: list[int] = []
    monkeypatch.setattr(lc.Checkpointer, "paths", lambda _: [folder / str(number) for number in there])
    monkeypatch.setattr(lc.Checkpointer, "_value", lambda _, path: values[int(path.name)])
    for number in range(len(values)):
        there.append(number)
        gone = {int(path.name) for path in keeper._worst()}
        there[:] = [one for one in there if one not in gone]
    return there


def expected(values: tuple[float, ...], k: int, mode: str) -> list[int]:
    """Numbers before NaN, better ones first, of equal ones the newer; the latest always."""
    there: list[int] = []
    for number in range(len(values)):
        there.append(number)
        better = 1 if mode == "min" else -1
        order = sorted(
            there, key=lambda n: (math.isnan(values[n]), 0 if math.isnan(values[n]) else better * values[n], -n)
        )
        there = sorted({*order[:k], number})
    return there


@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_short_sequence_is_ranked_rightly(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in range(1, 5):
        for values in itertools.product(VALUES, repeat=length):
            for k in (1, 2, 3):
                found = kept_by(values, k, mode, tmp_path, monkeypatch)
                assert found == expected(values, k, mode), (values, k)


def test_a_damaged_file_is_no_best_one(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "loss", keep_top_k=2)
    learner = lc.testing.toy_learner([keeper])
    learner.fit(2)
    keeper.paths()[1].write_bytes(b"damaged")
    learner.fit(1)
    assert checkpoint_file.manifest_of(keeper.best)["epoch"] == 3


# -- loading is all or nothing


def two_rates(**options: Any) -> lc.Learner:
    model = {"a": (lambda params, x: x * params["w"], {"w": np.zeros(1)}), "b": {"v": np.ones(1)}}
    given = {"optimizer": {"a": lc.SGD(0.1), "b": lc.SGD(0.001)}, "hyper": {"kl_weight": 0.5}}
    return lc.testing.toy_learner(model=model, **{**given, **options})


def test_saving_changes_no_hyperparameter_and_loading_restores_each(tmp_path: Path) -> None:
    first, second = two_rates(), two_rates()
    rates = ("a.learning_rate", "b.learning_rate", "kl_weight")
    path = first.save(tmp_path / "run.safetensors")
    assert [first.hyper[name] for name in rates] == [0.1, 0.001, 0.5]
    second.hyper.learning_rate, second.hyper.kl_weight = 3.0, 3.0
    second.load(path)
    assert [second.hyper[name] for name in rates] == [0.1, 0.001, 0.5]


def changed(learner: lc.Learner) -> Callable[[], None]:
    """What asserts that a learner is what it was."""
    weights, state = learner.export_weights(), learner.backend.export_optimizers()
    history, counts = dict(learner.history), dict(learner.shared.history)
    states = [callback.state_dict() for callback in learner.callbacks]
    data = [loader.state_dict() for loader in learner.data.values()]
    rest = learner.seed, dict(learner.runs.attempts), {name: learner.hyper[name] for name in learner.hyper}

    def check() -> None:
        np.testing.assert_equal(learner.export_weights(), weights)
        np.testing.assert_equal(learner.backend.export_optimizers(), state)
        assert (dict(learner.history), dict(learner.shared.history)) == (history, counts)
        assert [callback.state_dict() for callback in learner.callbacks] == states
        assert [loader.state_dict() for loader in learner.data.values()] == data
        now = learner.seed, dict(learner.runs.attempts), {name: learner.hyper[name] for name in learner.hyper}
        assert now == rest

    return check


class Picky(lc.Callback):
    """Refuses states."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["count"] != self.count:
            raise ValueError("not mine")


def test_a_callback_that_refuses_its_state_undoes_everything(tmp_path: Path) -> None:
    average = lc.AveragedWeights(0.9)
    rate: dict[Any, Any] = {"learning_rate": lc.one_cycle(0.1, 40)}
    first = noisy(callbacks=[average, lc.Scheduler(rate), Picky(1)])
    first.fit(2)
    path = first.save(tmp_path / "run.safetensors")
    second = noisy(callbacks=[lc.AveragedWeights(0.9), lc.Scheduler(rate), Picky(2)], seed=5)
    second.fit(1)
    check = changed(second)
    with pytest.raises(CheckpointError, match="nothing was loaded: not mine"):
        second.load(path)
    check()


def test_all_differences_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    first = noisy(callbacks=[lc.AveragedWeights(0.9), lc.EarlyStopping(3)])
    first.fit(1)
    path = first.save(tmp_path / "run.safetensors")
    model = (lambda params, x: x * params["w"], {"w": np.zeros((1, 1)), "c": np.zeros(1)})
    second = noisy(model=model, optimizer=lc.AdamW(0.05))
    second.fit(1)
    check = changed(second)
    with pytest.raises(CheckpointError, match="nothing was loaded") as info:
        second.load(path)
    check()
    for line in (
        "c: not in the file",
        "b: the model has no such weight",
        "w: the model has shape [1, 1], the value [1]",
        "the optimizer is AdamW here, Adam there",
        "the file has a state of EarlyStopping, which is no callback here: add it",
    ):
        assert f"  {line}\n" in f"{info.value}\n"


def test_other_data_is_refused(tmp_path: Path) -> None:
    path = noisy().save(tmp_path / "run.safetensors")
    x = np.zeros((20, 1))
    other = noisy(data=(lc.data.batches((x, x), 5, shuffle=True), None))
    check = changed(other)
    with pytest.raises(CheckpointError, match="batch_size was 3, is 5") as info:
        other.load(path)
    assert isinstance(info.value.__cause__, DataError)
    check()


def test_a_look_at_a_batch_is_not_in_the_state_of_the_data(tmp_path: Path) -> None:
    whole, part, rest = noisy(), noisy(), noisy()
    part.peek(lc.TrainingPhase())
    rest.peek(lc.TrainingPhase())
    rest.load(part.save(tmp_path / "run.safetensors"))
    whole.fit(1)
    rest.fit(1)
    assert_same(whole, rest)


def test_loading_waits_for_the_end_of_a_fit(tmp_path: Path) -> None:
    learner = noisy()
    path = learner.save(tmp_path / "run.safetensors")
    load = lc.FunctionCallback(lambda _, phase: learner.load(path), lc.EpochEnd)
    learner.callbacks.add(load)
    with pytest.raises(CheckpointError, match="a fit, an epoch or a step is running"):
        learner.fit(1)
    learner.callbacks.remove(load)
    learner.load(path)


def test_data_whose_state_is_no_json_is_named(tmp_path: Path) -> None:
    class Loader(list[Any]):
        def state_dict(self) -> Any:
            return {"generator": object()}

    learner = lc.testing.toy_learner(data=(Loader(BATCHES), None))
    with pytest.warns(UserWarning, match="the state of the training data is no JSON and is not saved"):
        path = learner.save(tmp_path / "run.safetensors")
    assert checkpoint_file.manifest_of(path)["data"] == {"training": None}


def test_names_of_the_manifest_are_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="seed"):
        lc.testing.toy_learner().save(tmp_path / "x", seed=1)
    with pytest.raises(CheckpointError, match="no JSON"):
        lc.testing.toy_learner().save(tmp_path / "x", mine=object())
    assert not list(tmp_path.iterdir())
