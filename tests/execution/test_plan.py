"""What ``explain`` says of a phase and its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


class Own(lc.Event):
    """That a step body of a user fires."""


def sections(learner: lc.Learner) -> dict[str, list[str]]:
    """The lines of ``explain`` for each phase, by the first word of its headline."""
    parts = learner.explain().split("\nphase ")[1:]
    return {part.partition(" ")[0]: part.splitlines()[1:] for part in parts}


def test_values_of_the_state_itself_are_not_listed_as_kept() -> None:
    class Watcher(lc.Callback):
        reads = ("step.outcome", "step.updated", "step.grads")
        writes = ("step.apply",)

        @lc.on(lc.StepEnd)
        def look(self, learner: Any, phase: Any) -> None:
            assert learner.step.outcome == "completed"

    learner = toy_learner([Watcher()], default_callbacks=False)
    kept = next(line for line in sections(learner)["training"] if "kept" in line)
    assert kept == "  kept after a step: loss (always), grads (Watcher)"
    learner.fit(1)
    assert learner.step.outcome == "completed" and learner.step.updated is True and learner.step.apply is True


def test_who_hears_nothing_within_a_step_keeps_nothing_of_it() -> None:
    class Guard(lc.Callback):
        reads = ("step.y_pred",)
        carries = ("shared.mark",)

        def setup(self, learner: Any) -> None:
            pass

        @lc.on(lc.FitBegin)
        @lc.on(lc.FitEnd)
        @lc.on(lc.EpochBegin)
        @lc.on(lc.LossBegin, lc.TrainingPhase)
        def look(self, learner: Any, phase: Any) -> None:
            pass

    learner = toy_learner([Guard()], data=([BATCH], [BATCH]))
    found = sections(learner)
    assert any("y_pred (Guard)" in line for line in found["training"])
    assert any("shared.mark" in line for line in found["training"])
    assert not [line for line in found["validation"] if "Guard" in line or "shared.mark" in line]
    assert not [line for line in found["validation"] if "StopOnNaNLoss" in line or "first_bad_step" in line]


@pytest.mark.parametrize("event", [lc.FitEnd, lc.EpochEnd, lc.FitBegin])
def test_who_looks_at_the_last_step_from_outside_gets_what_it_reads(event: type[lc.Event]) -> None:
    shapes: list[Any] = []

    class Last(lc.Callback):
        reads = ("step.y_pred",)

        @lc.on(event)
        def look(self, learner: Any, phase: Any) -> None:
            shapes.append(learner.step.y_pred.shape)

    learner = toy_learner(default_callbacks=False, reads=("step.y_pred",))
    learner.fit(1)
    learner = toy_learner([Last()], default_callbacks=False)
    learner.run_step(lc.TrainingPhase(), BATCH)
    learner.fit(1)
    assert shapes == [(4, 1)]


@pytest.mark.parametrize(
    ("event", "cut"),
    [
        (lc.BackwardEnd, {"training", "own", "more"}),
        (lc.LossBegin, {"training", "validation", "bare", "own", "more"}),
        (lc.Event, {"training", "validation", "bare", "own", "more"}),
        (Own, {"own", "more"}),
        (lc.StepEnd, set()),
    ],
)
def test_a_phase_is_not_cut_at_an_event_that_it_does_not_fire(event: type[lc.Event], cut: set[str]) -> None:
    class Bare(lc.ValidationPhase):
        data_key = "bare"  # the step is that of its base

    class Fires(lc.ValidationPhase):
        data_key = "own"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            handle(Own())

    class More(lc.TrainingPhase):
        data_key = "more"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)

    listener = lc.FunctionCallback(lambda learner, phase: None, event)
    phases = [lc.TrainingPhase(), lc.ValidationPhase(), Bare(), Fires(), More(), lc.PredictionPhase()]
    found = sections(toy_learner([listener], default_callbacks=False, phases=phases))
    assert {name for name, lines in found.items() if any("cut at" in line for line in lines)} == cut
