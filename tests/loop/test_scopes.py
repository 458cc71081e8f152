"""Steps and epochs: how they are cancelled, counted and closed; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import CancelScopeError
from loopcore.testing import Trace, toy_learner
from tests.loop.cancels import cancel
from tests.refusals import refused

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
WIDER = {"step": lc.CancelStepException, "epoch": lc.CancelEpochException, "fit": lc.CancelFittingException}


def count(trace: Trace, event: str) -> int:
    return sum(name == event for name, _, _ in trace.events)


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


@pytest.mark.parametrize("body", [5, lambda state: None, lambda: None])
def test_what_is_no_body(body: Any) -> None:
    words = ("a body is a function body(handle, state) or body(learner, handle, state), not", "write learner.run_step(")
    refused(TypeError, *words, action=lambda: lc.run_step(body, toy_learner(), lc.TrainingPhase(), xs=np.ones(1)))


def test_a_body_of_any_arguments_is_one() -> None:
    def body(*given: Any) -> None:
        learner, _, state = given
        state.loss = learner.xp.sum(state.xs)

    assert float(lc.run_step(body, toy_learner(), lc.ValidationPhase(), xs=np.ones(2)).loss) == 2


def test_an_event_class_in_place_of_an_event() -> None:
    class Forgetful(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            handle(lc.LossBegin)

    words: tuple[str, ...] = ("handle takes an event, not an event class", "handle(LossBegin())", "brackets")
    refused(errors.EventError, *words, action=lambda: toy_learner(phases=[Forgetful()]).fit(1))

    class FiresEnd(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            handle(lc.StepEnd())

    words = ("StepEnd is fired by the loop itself",)
    refused(errors.EventError, *words, action=lambda: toy_learner(phases=[FiresEnd()]).fit(1))


@pytest.mark.parametrize("error", [type("Bad", (ValueError,), {}), type("Over", (lc.CancelEpochException,), {})])
def test_what_a_handler_raises_when_a_step_ends_waits_for_no_garbage_collector(error: type[Exception]) -> None:
    def fail(learner: Any, phase: Any) -> None:
        raise error("bad")

    learner = toy_learner(callbacks=[lc.FunctionCallback(fail, lc.StepEnd)])
    kept: weakref.ref[Exception] | None = None
    gc.collect()
    gc.disable()
    try:
        learner.run_step(lc.TrainingPhase(), (np.ones((2, 1)), np.ones((2, 1))))
    except error as raised:
        kept = weakref.ref(raised)
    finally:
        gc.enable()
    assert kept is not None
    assert kept() is None
