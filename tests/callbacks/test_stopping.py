"""A loss that is not finite stops a fit before it reaches a weight; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import Trace, toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def spoiled(at: int, value: float, steps: int = 6) -> list[Any]:
    """Batches of which one makes the loss not finite."""
    return [(BATCH[0], np.full((4, 1), value if n == at else 1.0)) for n in range(steps)]


def first_step_in(reason: str) -> int:
    found = re.search(r"\bstep (\d+)\b", reason)
    assert found, reason
    return int(found.group(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_stops_the_fit_before_it_reaches_a_weight(value: float, at: int) -> None:
    trace = Trace()
    learner = toy_learner([trace], data=(spoiled(at, value), [BATCH]), optimizer=lc.Momentum(0.1))
    calm = toy_learner(steps=max(at, 1), optimizer=lc.Momentum(0.1))
    result = learner.fit(3)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
    assert "phase 'training'" in result.reason and first_step_in(result.reason) == at + 1
    if at:
        calm.fit(1)
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    assert trace.events[-3:] == [
        ("StepEnd", "training", "completed"),
        ("EpochEnd", "training", "cancelled"),
        ("FitEnd", None, "cancelled"),
    ]
    assert learner.shared.history["training"].epochs == 0


def test_later_updates_are_blocked_until_the_host_looks() -> None:
    """On an accelerator the host sees the mark some steps later: until then nothing may be updated."""
    updated: list[bool] = []
    watch = lc.FunctionCallback(
        lambda learner, phase: updated.append(bool(learner.step.updated)), lc.StepEnd, reads=("step.updated",)
    )
    learner = toy_learner([watch], data=(spoiled(1, float("nan"), 8), None))
    learner.number = lambda value: value  # as on an accelerator, where a look is a transfer
    learner.is_ready = lambda array: learner.epoch is not None and learner.epoch.attempted >= 6
    result = learner.fit(1)
    assert result.status == "stopped" and first_step_in(result.reason) == 2, "the first bad step, not where it was seen"
    assert updated == [True] + [False] * 5
    np.testing.assert_allclose(learner.params.value["w"], [0.2], rtol=1e-15)


def test_a_new_fit_gets_a_new_chance() -> None:
    learner = toy_learner(data=(spoiled(2, float("nan")), None))
    assert learner.fit(1).status == "stopped"
    learner.data["training"] = [BATCH] * 3
    assert learner.fit(1).status == "completed"
    assert learner.shared.history["training"].epochs == 1


def test_the_guard_leaves_validation_alone() -> None:
    learner = toy_learner(data=([BATCH], spoiled(0, float("nan"), 1)))
    assert learner.fit(2).status == "completed"
    assert np.isnan(np.array(learner.history["val_loss"], float)).all()


@pytest.mark.parametrize("target", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_fit(target: float) -> None:  # M-9
    """An infinite loss passed, and the stop was an exception."""
    learner = toy_learner(target=target)
    with np.errstate(all="ignore"):
        result = learner.fit(1)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
