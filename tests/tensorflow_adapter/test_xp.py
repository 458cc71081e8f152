"""The TensorFlow adapter: the functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from tests.tensorflow_adapter.calls import dense, learner_of, tf


@pytest.mark.parametrize("compile", [False, True])
def test_operators_of_two_dtypes_say_what_to_write(compile: bool) -> None:
    class Accuracy(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.right = learner.xp.argmax(state.xs, axis=-1) == state.ys

    learner = learner_of(dense(), compile=compile)
    with pytest.raises(Exception, match=r"int32|int64") as caught:
        learner.run_step(Accuracy(), {"xs": np.ones((2, 3)), "ys": np.zeros(2, np.int32)})
    assert "xp.astype(xp.argmax(y, axis=-1), ys.dtype) == ys" in "".join(caught.value.__notes__)


def test_full_of_an_array() -> None:
    xp = learner_of(dense()).xp
    np.testing.assert_array_equal(xp.full((2, 3), np.arange(3.0, dtype="f4")), [[0, 1, 2]] * 2)


def test_the_wider_of_two_floating_dtypes() -> None:
    xp = learner_of(dense()).xp
    single, double = tf.ones(2, tf.float32), tf.ones(2, tf.float64)
    assert {xp.maximum(single, double).dtype, xp.maximum(double, single).dtype} == {tf.float64}
    assert xp.maximum(single, tf.ones(2, tf.int64)).dtype == tf.float32
