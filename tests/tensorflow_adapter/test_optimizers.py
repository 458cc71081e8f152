"""The TensorFlow adapter: optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import OptimizerError
from tests.tensorflow_adapter.calls import dense, learner_of


def test_adam_is_the_one_of_the_paper_and_not_epsilon_hat() -> None:
    """TensorFlow's kernel adds epsilon before the correction of the bias; here it is added after."""
    learner = learner_of({"w": np.ones(3)}, lc.Adam(0.1, epsilon=0.5))

    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.xp.sum(learner.params.value["w"] * state.g))

    w, mean, square = np.ones(3), np.zeros(3), np.zeros(3)
    phase = lc.TrainingPhase()
    for step in range(1, 6):
        g = np.array([0.1, -2.0, 0.5]) * step
        lc.run_step(body, learner, phase, g=g)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        w = w - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 0.5)
    np.testing.assert_allclose(learner.to_host(learner.params.value["w"]), w, rtol=1e-5)


def test_optimizers_of_others() -> None:
    with pytest.raises(OptimizerError, match=r"keras\.optimizers\.Adam"):
        learner_of(dense(), object())
