"""Callbacks that hear some of their events: throttles and conditions; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import AccessError, CallbackError, EventError
from loopcore.testing import toy_learner
from tests.callbacks.clock import clock
from tests.refusals import refused

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


class Notes(lc.Callback):
    """Notes the number of every step and epoch it hears."""

    reads = ("shared.history",)
    requires = (lc.Recorder,)

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.epochs: list[str] = []

    @lc.on(lc.StepEnd)
    def step(self, learner: Any, phase: Any) -> None:
        self.steps.append((phase.name, learner.shared.history[phase].steps))

    @lc.on(lc.EpochEnd)
    def epoch(self, learner: Any, phase: Any, event: lc.EpochEnd) -> None:
        self.epochs.append(f"{phase.name} {event.outcome}")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.steps)}


def test_every_nth_event_of_each_phase() -> None:
    """Validation steps do not advance the count of training steps, and the count goes on from fit to fit."""
    notes = Notes()
    learner = toy_learner([lc.throttle(notes, lc.StepEnd, every=3)], data=([BATCH] * 4, [BATCH] * 2))
    learner.fit(2)
    learner.fit(1)
    assert [n for phase, n in notes.steps if phase == "training"] == [3, 6, 9, 12]
    assert [n for phase, n in notes.steps if phase == "validation"] == [3, 6]
    assert notes.epochs == ["training completed", "validation completed"] * 3, "other events come as before"


def test_at_most_once_in_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that never jumps; the first of each fit and phase is always heard."""
    notes = Notes()
    learner = toy_learner([lc.throttle(notes, lc.StepEnd, seconds=1.0)], data=([BATCH] * 10, [BATCH] * 2))
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock may jump"))
    with clock(monkeypatch, 0.25):
        learner.fit(1)
    assert [n for phase, n in notes.steps if phase == "training"] == [1, 5, 9]
    assert [n for phase, n in notes.steps if phase == "validation"] == [1]
    with clock(monkeypatch, 0.0):
        learner.fit(1)
    assert notes.steps[-2:] == [("training", 11), ("validation", 3)]


@pytest.mark.parametrize("event", [lc.FitBegin, lc.FitEnd, lc.EpochBegin, lc.LossBegin, lc.Event])
def test_any_event_can_be_throttled(event: type[lc.Event]) -> None:
    heard: list[Any] = []
    callback = lc.FunctionCallback(lambda learner, phase: heard.append(phase), event)
    learner = toy_learner([lc.throttle(callback, event, every=2)], steps=4)
    for _ in range(4):
        learner.fit(1)
    whole = {lc.FitBegin: 4, lc.FitEnd: 4, lc.EpochBegin: 4, lc.LossBegin: 16, lc.Event: 4 * (2 + 2 + 4 * 5)}
    assert len(heard) == whole[event] // 2


def test_a_throttled_callback_keeps_all_it_declares() -> None:
    notes = Notes()
    wrapped = lc.throttle(lc.throttle(notes, lc.StepEnd, every=2), lc.EpochEnd, every=2)
    assert wrapped.identity() is notes and wrapped.reads == notes.reads and wrapped.requires == (lc.Recorder,)
    learner = toy_learner([wrapped], steps=4)
    assert learner.callbacks.get(Notes) is notes
    kinds = [type(callback.identity()) for callback in learner.callbacks]
    assert kinds.index(lc.Recorder) < kinds.index(Notes)
    learner.fit(4)
    assert [n for _, n in notes.steps] == [2, 4, 6, 8, 10, 12, 14, 16] and len(notes.epochs) == 2
    with pytest.raises(CallbackError, match="requires Recorder"):
        toy_learner([lc.throttle(Notes(), lc.StepEnd, every=2)], default_callbacks=False, quiet=False)

    class Peeks(Notes):
        @lc.on(lc.StepEnd)
        def peek(self, learner: Any, phase: Any) -> None:
            _ = learner.step.xs

    with pytest.raises(AccessError, match=r"Peeks reads step\.xs.*Add to class Peeks.*test_wrappers\.py"):
        toy_learner([lc.throttle(Peeks(), lc.StepEnd, every=2)]).fit(1)


def test_a_throttled_callback_keeps_its_state_and_its_opinion() -> None:
    class Opinion(lc.Callback):
        writes = ("step.extra",)

        @lc.on(lc.StepEnd)
        def hear(self, learner: Any, phase: Any) -> None: ...

        def resolve_conflict(self, other: lc.Callback) -> Any:
            return lc.RunFirst(other)

    class Second(lc.Callback):
        writes = ("step.extra",)

    wrapped, second = lc.throttle(Opinion(), lc.StepEnd, every=2), Second()
    learner = toy_learner([wrapped, second], default_callbacks=False, quiet=False)
    assert list(learner.callbacks) == [second, wrapped]
    notes = lc.throttle(Notes(), lc.StepEnd, every=4)
    toy_learner([notes], steps=6).fit(1)
    assert notes.state_dict() == {"counts": {"step/training": 2}, "callback": {"steps": 1}}
    resumed = Notes()
    again = lc.throttle(resumed, lc.StepEnd, every=4)
    again.load_state_dict(notes.state_dict())
    toy_learner([again], steps=6).fit(1)
    assert [n for _, n in resumed.steps] == [2, 6]


def test_a_callback_may_hear_events_on_a_condition() -> None:
    heard: list[str] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(f"{phase.name} {learner.attempt}"), lc.StepEnd)
    wrapped = lc.throttle(note, lc.StepEnd, when=lambda phase: phase.name == "validation")
    learner = toy_learner([wrapped], data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(1)
    assert heard == ["validation 0", "validation 1"]
    assert learner.callbacks.get(lc.FunctionCallback) is note
    wrong: Any
    for wrong in ({}, {"when": 1}, {"when": bool, "every": 2}):
        with pytest.raises(lc.errors.CallbackError, match="when"):
            lc.throttle(note, lc.StepEnd, **wrong)


def test_a_throttle_counts_each_phase_by_itself() -> None:  # S-10
    """A throttle counted the events of all phases together."""
    heard: list[str] = []
    listen = lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), lc.StepEnd)
    learner = toy_learner([lc.throttle(listen, lc.StepEnd, every=3)], data=([BATCH] * 4, [BATCH] * 2))
    learner.fit(3)
    assert heard == ["training", "training", "validation", "training", "training", "validation"]


def test_a_wrapped_callback_keeps_its_place_and_its_identity() -> None:  # S-11
    """A conditional callback lost its place in the order, its conflicts and its identity."""
    clipping = lc.GradientClipping(norm=0.5)
    wrapped = lc.throttle(clipping, lc.BackwardEnd, every=2)
    learner = toy_learner([wrapped, lc.GradientAccumulation(1)], steps=2)
    names = [type(callback.identity()).__name__ for callback in learner.callbacks]
    assert names.index("GradientAccumulation") < names.index("GradientClipping")
    assert learner.callbacks.get(lc.GradientClipping) is clipping
    with pytest.raises(lc.errors.ConflictError, match="GradientClipping"):
        toy_learner([lc.throttle(lc.GradientClipping(norm=0.5), lc.BackwardEnd, every=2), Halve()])
    learner.fit(1)
    assert learner.params.value["w"] == pytest.approx(0.2 + 0.05)  # the second gradient, -1.6, is cut to -0.5


class Halve(lc.Callback):
    """Writes gradients too, and does not say when."""

    writes = ("step.grads",)

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
    def halve(self, learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)


def test_a_throttle_checks_its_arguments_and_keeps_its_count(monkeypatch: pytest.MonkeyPatch) -> None:  # S-12
    """``freq=0`` ran once, an abstract event never matched, the wall clock counted, and the counter was not saved."""
    heard: list[str] = []
    note: Any = lambda **options: lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), **options)  # noqa: E731
    wrong: Any
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(CallbackError, match="every"):
            lc.throttle(note(event=lc.StepEnd), lc.StepEnd, every=wrong)
    with pytest.raises(EventError):
        lc.throttle(note(event=lc.StepEnd), lc.StepEnd(), every=2)  # type: ignore[arg-type]

    toy_learner([lc.throttle(note(event=lc.StepEnd), lc.events.EndEvent, every=2)], steps=5).fit(1)
    assert len(heard) == 2, "a base class of the event counts its events"

    heard.clear()
    first, second = (lc.throttle(note(event=lc.StepEnd), lc.StepEnd, every=3) for _ in range(2))
    toy_learner([first], steps=2).fit(1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    toy_learner([second], steps=1).fit(1)
    assert len(heard) == 1, "two before and one after"

    heard.clear()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that was set back ten years
    now = iter(np.arange(0.0, 100.0, 0.4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    toy_learner([lc.throttle(note(event=lc.StepEnd), lc.StepEnd, seconds=1.0)], steps=7, default_callbacks=False).fit(1)
    assert len(heard) == 3, "steps 1, 4 and 7"


def test_a_condition_decides_on_whole_steps_and_keeps_the_rest() -> None:
    clipping = lc.GradientClipping(norm=0.5)
    asked: list[Any] = []

    def every_second(learner: Any, phase: Any) -> bool:
        asked.append(phase)
        return bool(learner.attempt % 2)

    wrapped = lc.ConditionalCallback(clipping, every_second, lc.BackwardEnd)
    learner = lc.testing.toy_learner([wrapped, lc.GradientAccumulation(1)], steps=2)
    names = [type(callback.identity()).__name__ for callback in learner.callbacks]
    assert names.index("GradientAccumulation") < names.index("GradientClipping")
    assert learner.callbacks.get(lc.GradientClipping) is clipping
    learner.fit(1)
    assert learner.params.value["w"] == pytest.approx(0.2 + 0.05)  # the second gradient, -1.6, is cut to -0.5
    assert len(asked) == 2


def test_a_condition_reads_what_it_declares() -> None:
    calls: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: calls.append(learner.attempt), lc.StepEnd, lc.TrainingPhase)

    def late(learner: Any, phase: Any) -> bool:
        return phase is not None and bool(learner.shared.history[phase].epochs)

    with pytest.raises(lc.AccessError, match=r"shared\.history"):
        lc.testing.toy_learner([lc.ConditionalCallback(note, late)]).fit(1)
    note = lc.FunctionCallback(lambda learner, phase: calls.append(learner.attempt), lc.StepEnd, lc.TrainingPhase)
    wrapped = lc.ConditionalCallback(note, late, reads=("shared.history",))
    lc.testing.toy_learner([wrapped], steps=2).fit(3)
    assert calls == [2, 3, 4, 5]


def test_who_does_not_hear_a_begin_has_nothing_to_end() -> None:
    metrics = lc.throttle(lc.Metrics(), lc.EpochBegin, every=2)
    learner = lc.testing.toy_learner([metrics], steps=2)
    learner.fit(4)
    assert [value is None for value in learner.history["loss"]] == [True, False, True, False]
    assert learner.history.step_numbers("loss") == [3, 4, 7, 8]

    seen: list[float] = []
    note = lc.FunctionCallback(
        lambda learner, phase: seen.append(learner.params.value["w"].item()),
        lc.StepEnd,
        lc.AbstractValidationPhase,
        reads=("params",),
    )
    average = lc.throttle(lc.AveragedWeights(None), lc.EpochBegin, every=2)
    learner = lc.testing.toy_learner([average, note], data=([BATCH], [BATCH]))
    learner.fit(2)
    np.testing.assert_allclose(seen, [0.2, (0.2 + 0.36) / 2])  # with the weights, and with their mean
    np.testing.assert_allclose(learner.params.value["w"], [0.36])


def test_a_step_that_accumulation_sleeps_through_updates_by_itself() -> None:
    accumulation = lc.throttle(lc.GradientAccumulation(2), lc.StepBegin, every=2)
    learner = lc.testing.toy_learner([accumulation], steps=4)
    learner.fit(1)
    assert learner.shared.accumulation == lc.Accumulated(batches=2, updates=1)
    losses = learner.history.steps("loss")
    np.testing.assert_allclose(losses, [1.0, 0.64, 0.64, 0.64**2])


def test_an_event_that_is_none() -> None:
    with pytest.raises(EventError, match="class of an event"):
        lc.ConditionalCallback(lc.Recorder(), lambda learner, phase: True, lc.StepEnd())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("every=n, seconds=s or when=condition",), {}),
        (("every=n, seconds=s or when=condition",), {"every": 1, "seconds": 1.0}),
        (("every=0", "at least 1"), {"every": 0}),
        (("every=2.5", "a whole number"), {"every": 2.5}),
        (("every='3'", "a whole number"), {"every": "3"}),
        (("every=True", "a whole number"), {"every": True}),
        (("seconds=0", "above 0"), {"seconds": 0}),
        (("seconds=nan", "above 0"), {"seconds": float("nan")}),
        (("seconds='1'", "above 0"), {"seconds": "1"}),
    ],
)
def test_throttles_that_make_no_sense(words: tuple[str, ...], options: dict[str, Any]) -> None:
    refused(errors.CallbackError, *words, action=lambda: lc.throttle(lc.Recorder(), lc.StepEnd, **options))


def test_throttling_what_cannot_be_throttled() -> None:
    words: tuple[str, ...] = ("Recorder does not listen to LossBegin",)
    refused(errors.CallbackError, *words, action=lambda: lc.throttle(lc.Recorder(), lc.LossBegin, every=2))
    refused(errors.CallbackError, "instance", action=lambda: lc.throttle(lc.Recorder, lc.StepEnd, every=2))  # type: ignore[arg-type]
    refused(errors.EventError, "class of an event", action=lambda: lc.throttle(lc.Recorder(), lc.StepEnd(), every=2))  # type: ignore[arg-type]
