"""How a fit ends, as its result says it."""

from __future__ import annotations

from typing import Any

import pytest

import loopcore as lc
from loopcore.errors import CancelScopeError
from loopcore.testing import toy_learner


class Raises(lc.Callback):
    """Raises at an event."""

    def __init__(self, error: BaseException, event: type[lc.Event] = lc.LossBegin, epoch: int = 2) -> None:
        self.error, self.event, self.epoch = error, event, epoch
        self.heard = 0

    @lc.on(lc.Event)
    def hear(self, learner: Any, phase: Any, event: lc.Event) -> None:
        self.heard += isinstance(event, self.event)
        if isinstance(event, self.event) and self.heard == self.epoch:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), RuntimeError("out of ink"), MemoryError(), StopIteration(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("event", [lc.FitBegin, lc.EpochBegin, lc.LossBegin, lc.StepEnd, lc.EpochEnd, lc.FitEnd])
def test_any_exception_but_a_cancel_interrupts(error: BaseException, event: type[lc.Event]) -> None:
    """It goes on to the caller of ``fit``; what was done until then stands in ``learner.result``."""
    epochs = {lc.EpochBegin: 1, lc.LossBegin: 1, lc.StepEnd: 1, lc.EpochEnd: 1, lc.FitEnd: 3}.get(event, 0)
    learner = toy_learner([Raises(error, event, 1 if event in (lc.FitBegin, lc.FitEnd) else 2)], steps=1)
    with pytest.raises(type(error)) as caught:
        learner.fit(3)
    assert caught.value is error
    result = learner.result
    assert result is not None and (result.status, result.stopped_by, result.epochs) == ("interrupted", None, epochs)
    assert result.reason == f"{type(error).__name__}: {error}" and dict(result.history) == dict(learner.history)
    assert learner.fit(1).status == "completed" and learner.result is not result


def test_a_cancel_without_its_scope_interrupts() -> None:
    learner = toy_learner([Raises(lc.CancelStepException("no step"), lc.EpochBegin, 1)])
    with pytest.raises(CancelScopeError):
        learner.fit(1)
    assert learner.result is not None and learner.result.status == "interrupted"


def test_a_cancelled_fit_stops_and_a_cancelled_epoch_completes() -> None:
    learner = toy_learner([Raises(lc.CancelFittingException("enough"))], steps=1)
    result = learner.fit(3)
    assert (result.status, result.reason, result.stopped_by, result.epochs) == ("stopped", "enough", "Raises", 1)
    assert learner.result is result
    learner = toy_learner([Raises(lc.CancelEpochException("next"))], steps=1)
    result = learner.fit(3)
    assert (result.status, result.reason, result.epochs) == ("completed", "", 2) and learner.result is result


@pytest.mark.parametrize("phase", [lc.TrainingPhase, lc.ValidationPhase])
def test_a_stop_when_the_last_epoch_of_a_round_has_ended_leaves_it_completed(phase: type[lc.Phase]) -> None:
    def stop(learner: Any, phase: Any) -> None:
        raise lc.CancelFittingException("enough")

    learner = toy_learner([lc.FunctionCallback(stop, lc.EpochEnd, phase)], steps=1)
    learner.data = {**learner.data, "validation": learner.data["training"]}
    assert learner.fit(3).epochs == (phase is lc.ValidationPhase)


def test_there_is_no_result_before_the_first_fit_ends() -> None:
    learner = toy_learner()
    assert learner.result is None
    with pytest.raises(ValueError, match="whole number"):
        learner.fit(-1)
    assert learner.result is None, "a fit that never began has no result"
