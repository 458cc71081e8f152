"""A callback moves models to a device; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import BackendError
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_models_move_once() -> None:
    device = lc.ToDevice("cpu")
    learner = toy_learner(optimizer=lc.Momentum(0.1), data=([BATCH], [BATCH]))
    calm = toy_learner(optimizer=lc.Momentum(0.1), data=([BATCH], [BATCH]))
    moves: list[Any] = []
    move: Callable[[Any], None] = learner.backend.to_device

    def counted(device: Any) -> None:
        moves.append(device)
        move(device)

    learner.backend.to_device = counted  # type: ignore[method-assign]
    learner.fit(1)
    learner.callbacks.add(device)
    learner.fit(2)
    calm.fit(3)
    assert moves == ["cpu"]
    np.testing.assert_array_equal(learner.params.value["w"], calm.params.value["w"])
    with pytest.raises(BackendError, match="'cuda:0'"):
        learner.callbacks.replace(device, lc.ToDevice("cuda:0"))
    assert device in list(learner.callbacks) and learner.fit(1).status == "completed"


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


def test_no_accelerator() -> None:
    assert lc.testing.toy_learner().accelerator is None
    with pytest.raises(BackendError, match=r"ToGPU\(required=False\)"):
        lc.testing.toy_learner([lc.ToGPU()])
