"""What a callback listens to: events, phases and the signature of a handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.testing import toy_learner
from tests.refusals import refused


@pytest.mark.parametrize(
    ("kind", "words", "arguments"),
    [
        (errors.EventError, ("takes the class of an event, not LossBegin()", "@on(LossBegin, ...)"), (lc.LossBegin(),)),
        (errors.EventError, ("not 'LossBegin': pass a subclass of Event",), ("LossBegin",)),
        (errors.CallbackError, ("takes the class of a phase", "write TrainingPhase"), (lc.StepEnd, lc.TrainingPhase())),
    ],
)
def test_an_instance_in_place_of_a_class(kind: type[BaseException], words: tuple[str, ...], arguments: Any) -> None:
    refused(kind, *words, action=lambda: lc.on(*arguments))
    with pytest.raises(errors.EventError if kind is errors.EventError else errors.CallbackError):
        lc.FunctionCallback(lambda learner, phase: None, *arguments)


def test_handlers_that_can_never_be_called() -> None:
    words: tuple[str, ...] = ("FitBegin of a phase", "write @on(FitBegin)")
    late = lc.FunctionCallback(lambda learner, phase: None, lc.FitBegin, lc.TrainingPhase)
    refused(errors.CallbackError, *words, action=lambda: toy_learner([late]))
    refused(errors.CallbackError, "EpochEnd is not fired within a step", action=lambda: lc.on(lc.EpochEnd, traced=True))
    traced = lc.FunctionCallback(lambda learner, phase: None, lc.Event, traced=True)
    assert toy_learner([traced]).fit(1).status == "completed"
    waiting = lc.FunctionCallback(lambda learner, phase: None, type("Never", (lc.Event,), {}))
    with pytest.warns(UserWarning, match=r"listens to Never, but a step of TrainingPhase ended without firing it"):
        toy_learner([waiting]).fit(1)


def test_a_handler_for_any_phase_may_wait_where_nothing_is_trained() -> None:
    heard: list[str] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), lc.BackwardEnd)
    batch = np.ones((4, 1)), np.ones((4, 1))
    toy_learner([note], data=([batch], [batch])).fit(1)  # a warning would be an error
    assert heard == ["training"]


def test_a_handler_with_a_wrong_signature() -> None:
    def define() -> None:
        class TooFew(lc.Callback):
            @lc.on(lc.StepEnd)
            def look(self, learner: Any) -> None: ...

    words: tuple[str, ...] = ("TooFew.look", "test_callback.py:", "write def look(self, learner, phase)", "fourth")
    refused(errors.CallbackError, *words, action=define)
    words = ("takes a function fn(learner, phase)", "(learner)")
    refused(errors.CallbackError, *words, action=lambda: lc.FunctionCallback(lambda learner: None, lc.StepEnd))  # type: ignore[arg-type,misc]
    refused(errors.CallbackError, "not 5", action=lambda: lc.FunctionCallback(5, lc.StepEnd))  # type: ignore[arg-type]


class StopsInside(lc.Callback):
    """Traced, and raises a cancel."""

    @lc.on(lc.BackwardEnd, traced=True)
    def stop(self, learner: Any, phase: Any) -> None:
        raise lc.CancelStepException("bad gradient")


def test_a_cancel_in_a_traced_handler() -> None:
    words = ("StopsInside.stop is traced and raised CancelStepException", "be cancelled", "host handler")
    error = refused(errors.CallbackError, *words, action=lambda: toy_learner([StopsInside()]).fit(1))
    assert isinstance(error.__cause__, lc.CancelStepException)


def counted(fn: Callable[..., None]) -> Callable[..., None]:
    def handler(self: Any, learner: Any, phase: Any) -> None:
        fn(self)

    return handler


def test_a_handler_is_what_the_class_calls_so() -> None:
    class Made(lc.Callback):
        def __init__(self) -> None:
            self.heard: list[str] = []

        first = lc.on(lc.EpochBegin)(counted(lambda self: self.heard.append("first")))
        second = lc.on(lc.EpochEnd)(counted(lambda self: self.heard.append("second")))
        again = second

    for number, event in enumerate((lc.StepBegin, lc.StepEnd)):
        setattr(Made, f"loop_{number}", lc.on(event)(counted(lambda self, n=number: self.heard.append(str(n)))))

    class Made2(Made):
        """A class made from one to which handlers were added."""

    made = Made2()
    assert {one.method for one in made.listeners} == {"again", "first", "loop_0", "loop_1"}
    toy_learner([made], steps=1).fit(1)
    assert made.heard == ["first", "0", "1", "second"]
