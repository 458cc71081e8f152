"""A function as a callback."""

from __future__ import annotations

from typing import Any

import pytest

import loopcore as lc
from loopcore.errors import AccessError
from loopcore.testing import toy_learner


def test_a_function_is_guarded_like_any_callback() -> None:
    def change(learner: Any, phase: Any) -> None:
        learner.step.grads = {"w": learner.step.grads["w"] * 0.0}

    frozen = toy_learner([lc.FunctionCallback(change, lc.BackwardEnd, lc.TrainingPhase, writes=("step.grads",))])
    frozen.fit(1)
    assert frozen.params.value["w"].item() == 0.0
    with pytest.raises(AccessError, match=r"writes=\('step\.grads',\)"):
        toy_learner([lc.FunctionCallback(change, lc.BackwardEnd, reads=("step.grads",))]).fit(1)
    traced = lc.FunctionCallback(change, lc.BackwardEnd, writes=("step.grads",), traced=True)
    learner = toy_learner([traced])
    learner.fit(1)
    assert learner.params.value["w"].item() == 0.0
