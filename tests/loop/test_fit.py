"""How a fit ends, as its result says it; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import CancelScopeError
from loopcore.testing import Trace, toy_learner
from tests.loop.cancels import cancel
from tests.refusals import refused


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


@pytest.mark.parametrize("epochs", [2.5, -1, True, "3", None])
def test_a_number_of_epochs_that_is_none(epochs: Any) -> None:
    refused(ValueError, "whole number of epochs, at least 0", repr(epochs), action=lambda: toy_learner().fit(epochs))


def test_any_whole_number_of_epochs() -> None:
    assert toy_learner().fit(np.int64(2)).epochs == 2  # type: ignore[arg-type]
    assert toy_learner().fit(0).status == "completed"


def test_a_fit_within_a_fit() -> None:
    caught: list[str] = []

    def again(learner: Any, phase: Any) -> None:
        try:
            learner.fit(1)
        except errors.ReentrantFitError as error:
            caught.append(str(error))

    learner, calm = toy_learner([lc.FunctionCallback(again, lc.LossBegin)], steps=3), toy_learner(steps=3)
    assert learner.fit(2).status == "completed"
    calm.fit(2)
    assert len(caught) == 6 and "learner.run_epoch(phase)" in caught[0] and "another learner" in caught[0]
    assert learner.history["loss"] == calm.history["loss"]
    assert learner.params.value["w"].item() == calm.params.value["w"].item()
    careless = lc.FunctionCallback(lambda learner, phase: learner.fit(1), lc.EpochEnd)
    refused(errors.ReentrantFitError, "fit was called while", action=lambda: toy_learner([careless]).fit(1))
