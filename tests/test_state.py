"""The state of a step by itself."""

from __future__ import annotations

from copy import copy

import numpy as np

import loopcore as lc
from loopcore.testing import toy_learner


def test_a_copy_of_a_state_has_its_values_and_decides_nothing_for_it() -> None:
    state = toy_learner(default_callbacks=False).run_step(lc.TrainingPhase(), (np.ones((2, 1)), np.ones((2, 1))))
    twin = copy(state)
    twin.apply, twin.more = False, 1
    assert (twin.loss, twin.outcome, twin.apply) == (state.loss, "completed", False)
    assert state.apply is True
    assert not hasattr(state, "more")
