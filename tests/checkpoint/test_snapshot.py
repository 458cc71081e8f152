"""A run that goes on from a checkpoint: what it takes along, and what it refuses as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import checkpoint
from loopcore.errors import CheckpointError

XS = np.random.default_rng(0).normal(size=(10, 1))
TWO: dict[str, Any] = {"a": (lambda p, x: x * p["w"], {"w": np.zeros(1)}), "b": (lambda p: p, {"v": np.ones(2)})}


def two_optimizers(**optimizers: Any) -> lc.Learner:
    given = optimizers or {"a": lc.SGD(0.1), "b": lc.SGD(0.001)}
    return lc.testing.toy_learner(model=copy.deepcopy(TWO), optimizer=given)


def shuffled(callbacks: Any = (), **options: Any) -> lc.Learner:
    loader = lc.data.batches((XS, 2 * XS), 3, shuffle=True, seed=options.pop("order", 0))
    return lc.testing.toy_learner(callbacks, **{"optimizer": lc.Momentum(0.05), "data": (loader, None), **options})


def everything(learner: lc.Learner) -> Any:
    """All that a load may change, as values."""
    shared = learner.shared
    return copy.deepcopy(
        (
            {name: value.tolist() for name, value in learner.export_weights().items()},
            {name: value.tolist() for name, value in learner.backend.export_optimizers().items()},
            {name: learner.hyper[name] for name in learner.hyper},
            (learner.seed, learner.runs.attempts, dict(shared.history), dict(learner.history)),
            {key: learner.history.steps(key) for key in learner.history},
            [one.state_dict() for one in learner.callbacks],
            {key: one.state_dict() for key, one in learner.data.items() if hasattr(one, "state_dict")},
            [vars(shared)[name] for one in learner.callbacks for name in (path[7:] for path in one.carries)],
        )
    )


def test_saving_changes_no_hyperparameter(tmp_path: Path) -> None:
    learner = two_optimizers()
    learner.save(tmp_path / "x")
    assert learner.hyper["a.learning_rate"] == 0.1 and learner.hyper["b.learning_rate"] == 0.001


def test_every_optimizer_gets_its_own_hyperparameters_back(tmp_path: Path) -> None:
    first, second = two_optimizers(), two_optimizers(a=lc.SGD(0.5), b=lc.SGD(0.5))
    first.hyper["b.learning_rate"] = 0.003
    second.load(first.save(tmp_path / "x"))
    assert second.hyper["a.learning_rate"] == 0.1 and second.hyper["b.learning_rate"] == 0.003


def test_a_scalar_of_the_user_comes_back(tmp_path: Path) -> None:
    first, second = (lc.testing.toy_learner(hyper={"kl_weight": value}) for value in (0.25, 1.0))
    second.load(first.save(tmp_path / "x"))
    assert second.hyper.kl_weight == 0.25


def test_a_shuffling_loader_goes_on_with_its_order(tmp_path: Path) -> None:
    whole, first, second, third = (shuffled() for _ in range(4))
    whole.fit(5)
    first.fit(2)
    second.load(first.save(tmp_path / "x"))
    second.fit(1)
    third.load(second.save(tmp_path / "y"))
    third.fit(2)
    assert everything(third) == everything(whole)


def test_a_fit_that_was_stopped_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    whole, first, second = shuffled(), shuffled([lc.MaxSteps(6)]), shuffled([lc.MaxSteps(8)])
    whole.fit(2)
    first.fit(2)
    second.load(first.save(tmp_path / "x"))
    second.fit(1)
    np.testing.assert_equal(second.export_weights(), whole.export_weights())
    assert checkpoint.manifest_of(tmp_path / "x")["data"]["training"]["state"]["position"] == 2


def test_the_manifest_says_how_exactly_a_loader_goes_on(tmp_path: Path) -> None:
    class Opaque:
        def __iter__(self) -> Iterator[Any]:
            return iter([(XS, XS)])

    def grade(data: Any, callbacks: Any = ()) -> Any:
        learner = lc.testing.toy_learner(callbacks, data=(data, None))
        learner.fit(1)
        return checkpoint.manifest_of(learner.save(tmp_path / "x"))["data"]["training"]["resume"]

    pairs = [(XS, XS)] * 3
    assert grade(lc.data.batches((XS, XS), 2, shuffle=True)) == "exact"
    assert grade(pairs) == "exact" and grade(pairs, [lc.MaxSteps(2)]) == "epoch"
    assert grade(Opaque()) == "none"
    assert grade(lc.data.combine({"xs": [XS], "ys": lc.data.cycle([XS])})) == "none"


@pytest.mark.parametrize("wrong", ["list", "other order"])
def test_another_loader_than_the_one_that_was_saved(wrong: str, tmp_path: Path) -> None:
    first = shuffled()
    first.fit(1)
    second = shuffled(order=1) if wrong == "other order" else shuffled(data=([(XS, XS)], None))
    second.fit(1)
    before = everything(second)
    with pytest.raises(CheckpointError, match=r"nothing was loaded:\n  data: the training (data|loader)"):
        second.load(first.save(tmp_path / "x"))
    assert everything(second) == before


def test_a_loader_that_refuses_takes_back_the_others(tmp_path: Path) -> None:
    def made(size: int) -> lc.Learner:
        loaders = [lc.data.batches((XS, XS), number, shuffle=True) for number in (3, size)]
        return lc.testing.toy_learner(data=tuple(loaders))

    first, second = made(2), made(5)
    first.fit(2)
    second.fit(1)
    before = everything(second)
    with pytest.raises(CheckpointError, match=r"the validation loader refuses its place: .*batch_size was 2"):
        second.load(first.save(tmp_path / "x"))
    assert everything(second) == before


def test_loaders_in_loaders_go_on(tmp_path: Path) -> None:
    def made() -> lc.Learner:
        few, many = (lc.data.batches(XS[:size], 2, shuffle=True) for size in (6, 10))
        data = lc.data.combine({"xs": many, "ys": lc.data.cycle(few)})
        return lc.testing.toy_learner(data=(data, None))

    whole, first, second = made(), made(), made()
    whole.fit(4)
    first.fit(2)
    second.load(first.save(tmp_path / "x"))
    second.fit(2)
    assert everything(second) == everything(whole)


def test_values_by_step_go_on(tmp_path: Path) -> None:
    def made() -> tuple[lc.Learner, lc.loggers.MemoryLogger]:
        logger = lc.loggers.MemoryLogger()
        rate = lc.Scheduler({"learning_rate": lc.schedules.linear(0.1, 0.0, 40)})
        return shuffled([rate, lc.LogMetrics(logger)]), logger

    (whole, all_of_it), (first, before), (second, after) = made(), made(), made()
    whole.fit(4)
    first.fit(2)
    second.load(first.save(tmp_path / "x"))
    second.fit(2)
    assert second.history.steps("loss") == whole.history.steps("loss") and len(whole.history.steps("loss")) == 16
    for table in ("metrics_step", "hyper_step"):
        for name, ring in getattr(whole.shared, table)["training"].items():
            other = getattr(second.shared, table)["training"][name]
            assert other.count == ring.count and other.latest().tolist() == ring.latest().tolist()
    assert {key: before.entries[key] + after.entries[key] for key in before.entries} == all_of_it.entries


def test_a_full_ring_comes_back_in_order() -> None:
    from loopcore.checkpoint.history import _series
    from loopcore.history import Ring

    ring = Ring()
    ring.extend(np.arange(20_000.0))
    ring.extend(np.arange(7.0))
    other: Any = _series({"array": "a", "count": ring.count}, {"a": ring.latest()})
    other.extend(np.arange(3.0))
    ring.extend(np.arange(3.0))
    assert other.count == ring.count and other.latest().tolist() == ring.latest().tolist()


class Draws(lc.Callback):
    """Draws within steps and outside of them."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    @lc.on(lc.StepBegin)
    @lc.on(lc.EpochBegin)
    def draw(self, learner: Any, phase: Any) -> None:
        self.drawn.append(float(learner.random.normal((1,))[0]))


def test_the_seed_and_the_draws_go_on(tmp_path: Path) -> None:
    callbacks = [Draws() for _ in range(3)]
    whole, first, second = (shuffled([one], seed=seed) for one, seed in zip(callbacks, (7, 7, 8), strict=True))
    whole.fit(4)
    first.fit(2)
    second.load(first.save(tmp_path / "x"))
    second.fit(2)
    assert second.seed == 7 and callbacks[1].drawn + callbacks[2].drawn == callbacks[0].drawn


class Refuses(lc.Callback):
    """Its state cannot be loaded; it runs after the others."""

    error: BaseException = ZeroDivisionError("never")

    run_after = (lc.Callback,)

    def state_dict(self) -> dict[str, Any]:
        return {"some": "thing"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise self.error


def test_a_callback_that_refuses_its_state_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(seed: int) -> lc.Learner:
        rate = lc.Scheduler({"learning_rate": lc.schedules.linear(0.1, 0.0, 40)})
        more = [rate, lc.EarlyStopping(1, "loss", min_delta=9.0), lc.AveragedWeights(0.9)]
        return shuffled([Refuses(), *more], seed=seed, hyper={"k": seed})

    first, second, untouched = made(1), made(2), made(2)
    first.fit(2)
    first.run_epoch(lc.ValidationPhase(), [(XS, XS)])  # a phase that the others do not know
    for learner in (second, untouched):
        learner.fit(1)
    before, path = everything(second), first.save(tmp_path / "x")
    with pytest.raises(CheckpointError, match="Refuses refuses its state: ZeroDivisionError: never"):
        second.load(path)
    assert everything(second) == before
    with monkeypatch.context() as patch:
        patch.setattr(Refuses, "error", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            second.load(path)
    assert everything(second) == before
    for learner in (second, untouched):  # what shows only later: EarlyStopping begins anew, the loader too
        learner.fit(4)
    assert everything(second) == everything(untouched)


def test_an_optimizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    first, second = (lc.testing.toy_learner(optimizer=one) for one in (lc.Adam(0.1), lc.AdamW(0.1)))
    first.fit(1)
    path, before = first.save(tmp_path / "x"), everything(second)
    with pytest.raises(CheckpointError, match="AdamW here, Adam in the checkpoint"):
        second.load(path)
    assert everything(second) == before


@pytest.mark.parametrize("event", [lc.EpochBegin, lc.StepBegin, lc.StepEnd, lc.EpochEnd])
def test_loading_within_an_epoch_is_refused(event: type[lc.Event], tmp_path: Path) -> None:
    def load(_: Any, phase: Any) -> None:
        learner.load(path)

    learner = lc.testing.toy_learner([lc.FunctionCallback(load, event)])
    path = learner.save(tmp_path / "x")
    runs: list[Callable[[], Any]] = [lambda: learner.fit(1)]
    if issubclass(event, (lc.StepBegin, lc.StepEnd)):  # also without an epoch
        runs.append(lambda: learner.run_step(lc.TrainingPhase(), learner.data["training"][0]))
    for run in runs:
        with pytest.raises(CheckpointError, match=r"Load before fit; within one, end it with lc\.CancelFittingExcep"):
            run()
    learner.load(path)


def test_saving_within_a_step_is_refused(tmp_path: Path) -> None:
    def save(_: Any, phase: Any) -> None:
        learner.save(tmp_path / "x")

    learner = lc.testing.toy_learner([lc.FunctionCallback(save, lc.StepEnd)])
    with pytest.raises(CheckpointError, match="x was not written, a step is running: save between two steps"):
        learner.fit(1)
    assert not list(tmp_path.iterdir())


def test_the_counts_go_on_in_a_learner_that_ran_already(tmp_path: Path) -> None:
    learner = lc.testing.toy_learner(steps=3)
    learner.fit(1)
    learner.load(learner.save(tmp_path / "x"))
    learner.run_step(learner.phases[0], learner.data["training"][0])
    assert learner.shared.history["training"].steps == 4


# -- differences


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    first = lc.testing.toy_learner([lc.MaxSteps(3), lc.AveragedWeights()], hyper={"k": 1.0})
    forward = lambda p, x: x * p["w"]  # noqa: E731
    second = lc.testing.toy_learner(
        [lc.EarlyStopping(3, "loss")],
        model=(forward, {"w": np.zeros((2, 1), "f4"), "new": np.zeros(1)}),
        optimizer=lc.Adam(1.0),
    )
    before = everything(second)
    with pytest.raises(CheckpointError) as caught:
        second.load(first.save(tmp_path / "x"))
    for line in (
        "weights: new: not there",
        "weights: w: shape [1], not [2, 1]",
        "weights: w: dtype float64, not float32",
        "optimizers: Adam here, SGD in the checkpoint",
        "hyper k: not here",
        "shared: averaged_params/0: unknown",
        "callbacks: MaxSteps kept a state, and is none of this learner",
        "callbacks: EarlyStopping keeps a state, and the checkpoint has none",
    ):
        assert line in str(caught.value)
    assert everything(second) == before


def test_two_callbacks_of_a_class_keep_their_own_states(tmp_path: Path) -> None:
    def made() -> tuple[lc.Learner, list[lc.MaxSteps]]:
        both = [lc.MaxSteps(100), lc.MaxSteps(200)]
        return lc.testing.toy_learner(both), both

    (first, ones), (second, others) = made(), made()
    ones[0].count, ones[1].count = 3, 4
    second.load(first.save(tmp_path / "x"))
    assert [one.count for one in others] == [3, 4]


def test_names_of_the_checkpoint_itself_are_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="seed"):
        lc.testing.toy_learner().save(tmp_path / "x", seed=3)
    assert not list(tmp_path.iterdir())
