"""The defects of FluxTraining.jl's runner (G-10, G-13, G-14, G-15), one regression test for each."""

from __future__ import annotations

import doctest
import re
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import callback, dispatch
from loopcore.access import members
from loopcore.learner import callback_list
from loopcore.testing import Trace, toy_learner


class Touchy(lc.Callback):
    """Counts how often its declarations and its opinion are asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.heard = 0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        self.asked += 1
        return ("step.loss", "shared.common")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        self.asked += 1
        return ("shared.common",)

    def setup(self, learner: Any) -> None:
        learner.shared.common = 0

    def resolve_conflict(self, other: lc.Callback) -> Any:
        self.asked += 1
        return lc.NO_CONFLICT

    @lc.on(lc.Event)
    def hear(self, learner: Any, phase: Any) -> None:
        self.heard += 1


def test_callbacks_are_ordered_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:  # G-10
    """The order was sorted anew at every event, and declarations were recomputed at every event for every callback."""
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for module, name in ((callback_list, "order_callbacks"), (members, "make_view"), (dispatch, "_handlers")):
        counted(module, name)
    one, two = Touchy(), Touchy()
    learner = toy_learner([one, two], steps=5)
    assert calls.count("order_callbacks") == 1
    learner.fit(1)
    calls.clear()
    one.asked = two.asked = one.heard = 0
    learner.fit(3)
    assert one.heard == 2 + 3 * (2 + 5 * 5)
    assert calls == [] and (one.asked, two.asked) == (0, 0)
    learner.callbacks.add(Trace())
    assert calls.count("order_callbacks") == 1


class AStops(lc.Callback):
    """Stops the fit at the end of its first epoch, before anybody else hears of it."""

    run_before = (lc.Callback,)

    @lc.on(lc.EpochEnd)
    def stop(self, learner: Any, phase: Any) -> None:
        raise lc.CancelFittingException("seen enough")


def test_everybody_hears_the_event_that_stops_the_fit() -> None:  # G-13
    """A stop at EpochEnd kept the last epoch from every callback that came later, loggers and printers included."""
    trace = Trace()
    learner = toy_learner([AStops(), trace], steps=2)
    assert next(iter(learner.callbacks)) is learner.callbacks.get(AStops)
    result = learner.fit(5)
    assert (result.status, result.reason, result.stopped_by) == ("stopped", "seen enough", "AStops")
    assert trace.events[-2:] == [("EpochEnd", "training", "completed"), ("FitEnd", None, "cancelled")]
    assert learner.shared.history["training"].epochs == 1 and len(learner.history["loss"]) == 1


class AFails(lc.Callback):
    """Fails at LossBegin, before anybody else hears of it."""

    run_before = (lc.Callback,)

    @lc.on(lc.LossBegin, lc.TrainingPhase)
    def fail(self, learner: Any, phase: Any) -> None:
        raise ValueError("no luck")


def test_an_exception_is_named_and_ends_what_had_begun() -> None:  # G-14
    """An exception in a callback kept the event from the others, named nobody, and closed nothing."""
    trace = Trace()
    learner = toy_learner([AFails(), trace], steps=2)
    with pytest.raises(ValueError) as caught:
        learner.fit(1)
    assert caught.value.args == ("no luck",)
    assert caught.value.__notes__ == ["raised by callback AFails at LossBegin of phase 'training'"]
    assert [name for name, _, _ in trace.events] == [
        *("FitBegin", "EpochBegin", "StepBegin", "LossBegin", "StepEnd", "EpochEnd", "FitEnd")
    ]
    assert {end for name, _, end in trace.events if name.endswith("End")} == {"failed"}
    learner.callbacks.remove(learner.callbacks.get(AFails) or trace)
    assert learner.fit(1).status == "completed"


def test_examples_in_the_documentation_run_as_shown() -> None:  # G-15
    """The docs showed the opposite order and answers that do not exist: examples and names in them must be checked."""
    words = set(re.findall(r"\b(?:RunFirst|NO_CONFLICT|UNRESOLVABLE)\b", lc.Callback.resolve_conflict.__doc__ or ""))
    assert words == {"RunFirst", "NO_CONFLICT", "UNRESOLVABLE"} and all(hasattr(lc, word) for word in words)
    found = doctest.testmod(callback)
    assert found.attempted > 5 and found.failed == 0
    heard: list[str] = []

    class Later(lc.Callback):
        run_after = (lc.Recorder,)

        @lc.on(lc.StepEnd)
        def hear(self, learner: Any, phase: Any) -> None:
            heard.append("Later")

    class CountsSteps(lc.Recorder):
        @lc.on(lc.StepEnd)
        def end_step(self, learner: Any, phase: Any, event: lc.StepEnd) -> None:
            super().end_step(learner, phase, event)
            heard.append("Recorder")

    learner = toy_learner([Later(), CountsSteps()], steps=1)
    text = learner.explain()
    learner.fit(1)
    assert heard == ["Recorder", "Later"]
    assert text.index("CountsSteps") < text.index("Later") and "CountsSteps before Later" in text


@pytest.mark.parametrize("traced", [0, 1, None, np.False_])
def test_whatever_stands_for_a_bool_in_traced_the_handler_hears_its_event(traced: Any) -> None:
    heard: list[str] = []
    listener = lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), lc.StepEnd, traced=traced)
    toy_learner(steps=2, callbacks=[listener]).fit(1)
    assert heard
