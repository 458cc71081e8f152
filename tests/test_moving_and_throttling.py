"""Defects of FluxTraining.jl's ToDevice and throttle (S-2, S-10, S-11), with callbacks that keep arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_moving_to_a_device_keeps_the_state_of_the_optimizer() -> None:  # S-2
    """``ToDevice`` set the model anew in every epoch of every phase, which reset the state of the optimizer."""
    learners = [
        toy_learner([*moved, lc.AveragedWeights(0.9)], optimizer=lc.Adam(0.1), data=([BATCH] * 3, [BATCH]))
        for moved in ([], [lc.ToDevice("cpu")])
    ]
    for learner in learners:
        learner.fit(3)
    plain, moved = ((one.params.value["w"], one.shared.averaged_params["w"]) for one in learners)
    np.testing.assert_array_equal(plain, moved)


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
