"""The TensorFlow adapter: random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from tests.tensorflow_adapter.calls import dense, learner_of, tf


@pytest.mark.parametrize("compile", [False, True])
def test_a_draw_in_a_loop_of_tensorflow_is_refused(compile: bool) -> None:
    loops: list[Callable[[Callable[[], Any]], Any]] = [
        lambda draw: tf.while_loop(lambda n, c: n < 4, lambda n, c: (n + 1, c + draw()), (0, 0.0)),
        lambda draw: tf.map_fn(lambda x: x + draw(), tf.zeros(4)),
        lambda draw: tf.vectorized_map(lambda x: x + draw(), tf.zeros(4)),
    ]

    class Looping(lc.ValidationPhase):
        def __init__(self, loop: Callable[[Callable[[], Any]], Any]) -> None:
            self.loop = loop

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            self.loop(lambda: learner.random.normal(()))

    for loop in loops:
        with pytest.raises(lc.errors.TraceError, match=r"learner\.random was used inside tensorflow's"):
            learner_of(dense(), compile=compile).run_step(Looping(loop), {"xs": np.ones((2, 3), "f4")})


def test_a_seed_for_stateless_draws() -> None:
    keys = [learner_of(dense()).random.key() for _ in range(2)]
    assert keys[0].shape == (2,)
    numbers = [tf.random.stateless_normal((3,), key).numpy().tolist() for key in keys]
    assert numbers[0] == numbers[1]
