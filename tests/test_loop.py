"""The defects of FluxTraining.jl's loop, cancellation and counting (T-1 to T-17), one regression test for each."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CancelScopeError, DataExhaustedError, NoDataError, UnpackError
from loopcore.events import STEP_EVENTS
from loopcore.testing import Trace, toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
WIDER = {"step": lc.CancelStepException, "epoch": lc.CancelEpochException, "fit": lc.CancelFittingException}


def at(event: type[lc.Event], act: Callable[[], None], phase: Any = None, count: int = 1) -> lc.Callback:
    """A callback that acts when it hears an event for the ``count``-th time."""
    heard = 0

    def listen(learner: Any, phase: Any) -> None:
        nonlocal heard
        heard += 1
        if heard == count:
            act()

    return lc.FunctionCallback(listen, event, phase)


def cancel(scope: str, event: type[lc.Event], phase: Any = None, count: int = 1) -> lc.Callback:
    def act() -> None:
        raise WIDER[scope](f"{scope} is over")

    return at(event, act, phase, count)


def ends(trace: Trace) -> list[tuple[str, str | None, str | None]]:
    return [event for event in trace.events if event[0] in ("StepEnd", "EpochEnd", "FitEnd")]


def count(trace: Trace, event: str) -> int:
    return sum(name == event for name, _, _ in trace.events)


@pytest.mark.parametrize("event", [lc.EpochEnd, lc.StepEnd, lc.StepBegin, lc.EpochBegin, lc.FitBegin, lc.BackwardBegin])
def test_a_cancelled_fit_returns_a_result(event: type[lc.Event]) -> None:  # T-1
    """``CancelFittingException`` was never caught: a stop in good order was a crash for the caller."""
    result = toy_learner([cancel("fit", event)]).fit(3)
    assert (result.status, result.reason, result.stopped_by) == ("stopped", "fit is over", "FunctionCallback")
    assert result.epochs == (event is lc.EpochEnd)


def test_a_cancelled_fit_ends_what_had_begun() -> None:  # T-2
    """When a fit was cancelled neither StepEnd nor EpochEnd were fired, and there was no FitEnd at all."""
    trace = Trace()
    toy_learner([cancel("fit", lc.LossBegin, count=2), trace]).fit(3)
    assert ends(trace) == [
        ("StepEnd", "training", "completed"),
        ("StepEnd", "training", "cancelled"),
        ("EpochEnd", "training", "cancelled"),
        ("FitEnd", None, "cancelled"),
    ]
    for scope in ("Step", "Epoch", "Fit"):
        assert count(trace, f"{scope}Begin") == count(trace, f"{scope}End")


@pytest.mark.parametrize(("event", "outcome"), [(lc.StepBegin, "skipped"), (lc.LossBegin, "cancelled")])
def test_a_cancelled_step_ends_and_does_not_count(event: type[lc.Event], outcome: str) -> None:  # T-3
    """A cancelled step fired no StepEnd, so that printers stalled, and its state was half filled."""
    trace = Trace()
    learner = toy_learner([cancel("step", event, count=3), trace], steps=5)
    assert learner.fit(1).status == "completed"
    outcomes = [end for name, _, end in trace.events if name == "StepEnd"]
    assert outcomes == ["completed", "completed", outcome, "completed", "completed"]
    counts = learner.shared.history["training"]
    assert (counts.steps, counts.steps_epoch, counts.attempts, counts.epochs) == (4, 4, 5, 1)
    assert learner.epoch is not None and (learner.epoch.attempted, learner.epoch.completed) == (5, 4)
    state = toy_learner([cancel("step", event)]).run_step(lc.TrainingPhase(), BATCH)
    assert state.outcome == outcome and not hasattr(state, "loss")
    np.testing.assert_allclose(learner.params.value["w"], 1 - 0.8**4, rtol=1e-14)  # the skipped step updated nothing


def test_a_cancelled_epoch_does_not_count() -> None:  # T-4
    """A cancelled epoch was counted as completed."""
    trace = Trace()
    learner = toy_learner([cancel("epoch", lc.StepEnd, count=2), trace], steps=4)
    result = learner.fit(3)
    assert [end for name, _, end in trace.events if name == "EpochEnd"] == ["cancelled", "completed", "completed"]
    assert learner.shared.history["training"] == (2, 10, 4, 10) and result.epochs == 2
    assert learner.history["loss"][0] == np.mean(learner.history.steps("loss")[:2]), "it says what it completed"
    assert len(learner.history["loss"]) == 3


def test_a_cancel_at_the_end_of_an_epoch_ends_it_once() -> None:  # T-5
    """A ``CancelEpochException`` within EpochEnd fired EpochEnd a second time for everybody."""
    trace = Trace()
    learner = toy_learner([cancel("epoch", lc.EpochEnd), trace], data=([BATCH], [BATCH]))
    result = learner.fit(2)
    assert [(phase, end) for name, phase, end in trace.events if name == "EpochEnd"] == [
        (phase, "completed") for _ in range(2) for phase in ("training", "validation")
    ]
    assert learner.shared.history["training"].epochs == 2 and len(learner.history["loss"]) == 2
    assert (result.status, result.epochs) == ("completed", 2)


@pytest.mark.parametrize(
    ("scope", "event"),
    [("step", event) for event in (lc.EpochBegin, lc.EpochEnd, lc.FitBegin, lc.FitEnd)]
    + [("epoch", lc.FitBegin), ("epoch", lc.FitEnd)],
)
def test_a_cancel_of_a_scope_that_is_not_open_is_an_error(scope: str, event: type[lc.Event]) -> None:  # T-6
    """A cancel for a scope that was not open, such as a step at EpochEnd, escaped as a crash."""
    trace = Trace()
    learner = toy_learner([cancel(scope, event), trace])
    with pytest.raises(CancelScopeError) as caught:
        learner.fit(1)
    assert f"(raised by FunctionCallback): no {scope} is open here" in str(caught.value)
    assert "Raise Cancel" in str(caught.value)
    assert isinstance(caught.value.__cause__, WIDER[scope])
    assert count(trace, "FitEnd") == 1 and count(trace, "EpochBegin") == count(trace, "EpochEnd")
    assert learner.fit(1).status == "completed"


def test_a_wider_cancel_in_an_end_event_ends_its_own_scope() -> None:
    """The other side of T-6: at StepEnd the epoch is still open, at EpochEnd the fit is."""
    learner = toy_learner([cancel("epoch", lc.StepEnd, count=3)], steps=5)
    assert learner.fit(1).status == "completed" and learner.shared.history["training"] == (0, 3, 3, 3)
    learner = toy_learner([cancel("fit", lc.EpochEnd)], steps=5)
    assert learner.fit(3).status == "stopped" and learner.shared.history["training"] == (1, 5, 5, 5)


def test_an_epoch_without_a_whole_step_has_no_loss() -> None:  # T-7
    """An empty or cancelled epoch recorded the loss 0.0, the best loss ever."""
    skipped = toy_learner([lc.FunctionCallback(_skip, lc.StepBegin)], steps=3)
    skipped.fit(2)
    assert skipped.history["loss"] == [None, None]
    assert skipped.shared.history["training"] == (2, 0, 0, 6)
    cancelled = toy_learner([cancel("epoch", lc.EpochBegin)], steps=3)
    cancelled.fit(1)
    assert list(cancelled.history) == [] and cancelled.shared.history["training"] == (0, 0, 0, 0)
    cancelled.fit(1)
    assert cancelled.history["loss"][0] is None and len(cancelled.history["loss"]) == 2


def _skip(learner: Any, phase: Any) -> None:
    raise lc.CancelStepException("not this one")


def test_data_that_can_be_read_once_is_an_error_the_second_time() -> None:  # T-8
    """An exhausted generator gave an epoch without a single step, and no error."""
    data = (batch for batch in [BATCH, BATCH])
    learner = toy_learner(data=(data, None))
    with pytest.raises(DataExhaustedError, match=r"can be read once, but fit\(2\) reads it 2 times"):
        learner.fit(2)
    assert learner.shared.history["training"].attempts == 0
    assert learner.fit(1).status == "completed"
    with pytest.raises(DataExhaustedError, match="used up: it can be read only once"):
        learner.fit(1)
    assert learner.shared.history["training"] == (1, 2, 0, 2)
    assert len(learner.history["loss"]) == 1


def test_validation_data_may_be_absent_but_not_empty() -> None:  # T-9
    """Absent validation data was a KeyError, or an error after a whole epoch of training."""
    for data in (([BATCH],), ([BATCH], None), {"training": [BATCH]}):
        learner = toy_learner(data=data)
        assert learner.fit(2).status == "completed" and list(learner.history) == ["loss"]
    late = toy_learner(data=([BATCH], []))
    with pytest.raises(lc.errors.EmptyDataError, match="validation"):
        late.fit(1)
    assert late.shared.history["training"].attempts == 0, "found before the first step"


PHASES = {"TrainingPhase": lc.TrainingPhase(), "ValidationPhase": lc.ValidationPhase()}


@pytest.mark.parametrize("name", STEP_EVENTS)
def test_each_phase_fires_the_events_of_its_table(name: str) -> None:  # T-10
    """Validation never fired LossBegin, although the documentation said so: one table must drive code and docs."""
    phase = {**PHASES, "PredictionPhase": lc.PredictionPhase()}[name]
    seen: list[tuple[type[lc.Event], set[str]]] = []

    class Watcher(lc.Callback):
        reads = ("step",)

        @lc.on(lc.Event)
        def watch(self, learner: Any, phase: Any, event: lc.Event) -> None:
            values = {value for _, names in STEP_EVENTS[name] for value in names if _has(learner.step, value)}
            seen.append((type(event), values))

    toy_learner([Watcher()], default_callbacks=False, quiet=False).run_step(phase, BATCH)
    expected: list[tuple[type[lc.Event], set[str]]] = []
    there: set[str] = set()
    for event, values in STEP_EVENTS[name]:
        there = there | set(values)
        expected.append((event, there))
    assert seen == expected


def _has(state: Any, name: str) -> bool:
    return getattr(state, name, None) is not None


def test_handlers_within_the_gradient_see_plain_arrays() -> None:  # T-11
    """Handlers of LossBegin and BackwardBegin ran inside the gradient: they saw tracers and could not touch arrays."""
    types: list[type] = []

    class Looker(lc.Callback):
        reads = ("step", "params", "model", "shared.kept")
        writes = ("step.y_pred", "shared.kept")

        def setup(self, learner: Any) -> None:
            learner.shared.kept = []

        @lc.on(lc.LossBegin)
        @lc.on(lc.BackwardBegin)
        def look(self, learner: Any, phase: Any) -> None:
            step = learner.step
            values = [step.xs, step.y_pred, learner.params.value["w"], learner.params.w.value["w"]]
            values += [learner.model(step.xs), step.loss] if hasattr(step, "loss") else [learner.model(step.xs)]
            types.extend(map(type, values))
            for array in values[:4]:
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0.0
            learner.shared.kept = [*learner.shared.kept, float(np.mean(step.y_pred))]

    learner, calm = toy_learner([Looker()], steps=3), toy_learner(steps=3)
    learner.fit(1)
    calm.fit(1)
    assert set(types) <= {np.ndarray, np.float64}, set(types)
    assert len(learner.shared.kept) == 6
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])


def test_a_batch_with_other_parts_is_an_error() -> None:  # T-12
    """``xs, ys = batch`` dropped surplus parts without a word."""
    for parts in (1, 3):
        learner = toy_learner(data=([BATCH, (np.ones((4, 1)),) * parts], None))
        with pytest.raises(UnpackError, match=rf"one with {parts} parts: nothing is dropped silently"):
            learner.fit(1)


@pytest.mark.parametrize("event", [lc.EpochBegin, lc.StepBegin, lc.LossBegin, lc.BackwardEnd, lc.StepEnd, lc.EpochEnd])
def test_an_epoch_within_an_epoch_changes_nothing_around_it(event: type[lc.Event]) -> None:  # T-13
    """Validating from a training callback overwrote ``learner.step`` and reset the metrics of the running epoch."""

    class Validates(lc.Callback):
        @lc.on(event, lc.TrainingPhase)
        def validate(self, learner: Any, phase: Any) -> None:
            learner.run_epoch(lc.ValidationPhase(), [BATCH] * 3)

    class Watches(lc.Callback):
        reads = ("step.xs", "step.loss", "shared.history", "shared.metrics_epoch")

        def __init__(self) -> None:
            self.seen: list[Any] = []

        @lc.on(lc.Event, lc.TrainingPhase)
        def watch(self, learner: Any, phase: Any, heard: lc.Event) -> None:
            epoch, counts = learner.epoch, learner.shared.history[phase]
            place = (epoch.phase.name, epoch.attempted, epoch.completed, epoch.length, epoch.nested, epoch.last)
            xs, loss = getattr(learner.step, "xs", None), getattr(learner.step, "loss", None)
            self.seen.append((type(heard).__name__, place, counts, None if xs is None else xs.shape, loss))

    watches, alone = Watches(), Watches()
    learner = toy_learner([Validates(), watches], steps=3, data=([BATCH] * 3, None))
    calm = toy_learner([alone], steps=3)
    learner.fit(2)
    calm.fit(2)
    assert watches.seen == alone.seen
    assert learner.history["loss"] == calm.history["loss"]
    assert learner.history.steps("loss") == calm.history.steps("loss")
    within = [(round, step) for round, step, _ in learner.history.within("val_loss")]
    assert len(learner.history["val_loss"]) == 2 == within[-1][0]
    assert len(within) == (2 if event in (lc.EpochBegin, lc.EpochEnd) else 6)
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    assert learner.epoch is not None and learner.epoch.phase.name == "training"


def test_a_fit_of_another_learner_within_a_callback() -> None:
    """A whole fit of another learner inside a callback leaves the outer one as it was."""
    inner = toy_learner(steps=2, target=3.0)

    class Teacher(lc.Callback):
        @lc.on(lc.LossBegin, lc.TrainingPhase)
        def teach(self, learner: Any, phase: Any) -> None:
            inner.fit(1)

    learner, calm, alone = toy_learner([Teacher()], steps=3), toy_learner(steps=3), toy_learner(steps=2, target=3.0)
    learner.fit(1)
    calm.fit(1)
    alone.fit(3)
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    np.testing.assert_array_equal(inner.params.value["w"], alone.params.value["w"])
    assert learner.history["loss"] == calm.history["loss"] and inner.history["loss"] == alone.history["loss"]


class Recurrent(lc.AbstractTrainingPhase):
    """Carries a sum from step to step."""

    data_key = "training"
    carries = ("total",)

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"xs": batch}

    def start(self, learner: Any, state: Any) -> None:
        state.total = np.zeros(())

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.total = state.total + learner.xp.sum(state.xs)
        state.loss = state.total


def test_an_epoch_within_an_epoch_has_its_own_carry() -> None:
    """A nested epoch of the same phase starts its own carry and hands the outer one back."""
    phase, nested = Recurrent(), False

    def run(learner: Any, phase: Any) -> None:
        nonlocal nested
        if not nested:
            nested = True
            learner.run_epoch(phase, [np.ones(1)] * 5)
            nested = False

    callback = lc.FunctionCallback(run, lc.StepEnd)
    data = ([np.ones(1)] * 4, None)
    learner = toy_learner([callback, lc.Metrics()], phases=[phase], data=data, default_callbacks=False, quiet=False)
    learner.fit(2)
    assert learner.history["loss"] == [2.5, 2.5]
    assert [loss for _, _, loss in learner.history.within("loss")] == [3.0] * 8
    learner.run_step(phase, np.ones(1))
    learner.run_step(phase, np.ones(1))
    learner.fit(1)
    assert learner.history["loss"][-1] == 2.5, "an epoch starts anew, whatever single steps left behind"


def test_nothing_of_the_last_step_is_kept_alive() -> None:  # T-14
    """``learner.step`` kept the last batch, outputs and gradients alive after the fit."""
    batches: list[weakref.ref[Any]] = []

    def load() -> Iterator[Any]:
        for _ in range(3):
            xs = np.ones((4, 1))
            batches.append(weakref.ref(xs))
            yield xs, np.ones((4, 1))

    outputs: list[weakref.ref[Any]] = []
    watch = lc.FunctionCallback(lambda learner, phase: outputs.append(weakref.ref(learner.step.ys.base)), lc.StepBegin)
    watch.reads = ("step.ys",)
    learner = toy_learner(data=(load(), None))
    learner.fit(1)
    assert set(vars(learner.step)) == {"loss"}
    with pytest.raises(AttributeError, match=r'step\.y_pred was not kept.*reads = \("step\.y_pred",\)'):
        _ = learner.step.y_pred
    gc.collect()
    assert [ref() for ref in batches] == [None] * 3
    keeper = toy_learner([watch], reads=("step.y_pred",))
    keeper.fit(1)
    assert set(vars(keeper.step)) == {"loss", "ys", "y_pred"}
    gc.collect()
    assert [ref() is None for ref in outputs] == [True] * 7 + [False]
    state = learner.run_step(lc.TrainingPhase(), BATCH, reads=("step.grads",))
    assert set(vars(state)) == {"loss", "grads"}


class Weighted(lc.TrainingPhase):
    """A phase that holds an array."""

    def __init__(self) -> None:
        self.weights = np.ones(3)


def test_counts_belong_to_the_phase_and_not_to_its_instance() -> None:  # T-15
    """Counts were kept by the instance of the phase: each new instance of one started again."""
    learner = toy_learner(phases=[Weighted()], steps=2)
    learner.fit(1)
    for _ in range(3):
        learner.run_epoch(Weighted())
    assert list(learner.shared.history) == ["training"]
    assert learner.shared.history[Weighted()] == (4, 8, 2, 8) == learner.shared.history["training"]
    assert len(learner.history["loss"]) == 4


class NoKey(lc.AbstractTrainingPhase):
    """A phase that does not say which data it runs on."""


def test_a_phase_without_data_or_body_says_what_it_lacks() -> None:  # T-16
    """A custom phase without a data iterator gave a MethodError, a missing key a bare KeyError."""
    learner = toy_learner()
    with pytest.raises(NoDataError, match=r"NoKey has data_key = None.*set data_key, call run_epoch\(phase, data\)"):
        learner.run_epoch(NoKey())
    with pytest.raises(NoDataError, match=r"'validation', which the learner does not have \(it has: 'training'\)"):
        learner.run_epoch(lc.ValidationPhase())
    with pytest.raises(TypeError, match="NoKey has no step body: define step"):
        learner.run_epoch(NoKey(), [{"xs": np.ones(1)}])
    with pytest.raises(UnpackError, match=r"NoKey got a batch of type tuple.*define unpack"):
        learner.run_epoch(NoKey(), [BATCH])
    with pytest.raises(TypeError, match="a phase is an instance of a subclass of Phase"):
        learner.run_epoch(lc.TrainingPhase, [BATCH])  # type: ignore[arg-type]
    assert learner.fit(1).status == "completed"


class Noisy(lc.TrainingPhase):
    """Adds noise to the batch."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.xs = state.xs + learner.random.normal((4, 1))
        super().step(learner, handle, state)


def test_a_fit_has_a_result_and_can_be_repeated() -> None:  # T-17
    """``fit!`` returned nothing and had no handling of random numbers: a run could not be repeated."""
    weights: list[Any] = []
    for seed, fits in ((3, (4,)), (3, (1, 3)), (3, (2, 1, 1)), (4, (4,))):
        learner = toy_learner(phases=[Noisy()], seed=seed, steps=3)
        np.random.seed(seed * 7 + len(fits))  # global state plays no part
        results = [learner.fit(epochs) for epochs in fits]
        assert [(result.status, result.epochs) for result in results] == [("completed", epochs) for epochs in fits]
        assert learner.result is results[-1] and results[-1].history["loss"] == learner.history["loss"]
        weights.append(learner.params.value["w"].item())
    assert weights[0] == weights[1] == weights[2] != weights[3]
