"""Schedules against optax's, and those of optax as they are; nothing is compiled again when a rate changes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopcore as lc
from loopcore import schedules

A, B, LENGTH = st.floats(0.01, 2), st.floats(0.01, 2), st.integers(2, 60)


def same(mine: schedules.Schedule, theirs: Any, last: int) -> None:
    steps = np.arange(last + 10)
    expected = np.array([float(theirs(step)) for step in steps])
    np.testing.assert_allclose([mine(int(step)) for step in steps], expected, rtol=2e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(A, B, LENGTH)
def test_those_of_optax(a: float, b: float, length: int) -> None:
    same(schedules.linear(a, b, length), optax.linear_schedule(a, b, length), length)
    same(schedules.polynomial(a, b, length, 2), optax.polynomial_schedule(a, b, 2, length), length)
    same(schedules.cosine(a, 0.0, length), optax.cosine_decay_schedule(a, length), length)
    same(schedules.cosine(a, a * 0.25, length), optax.cosine_decay_schedule(a, length, 0.25), length)
    same(schedules.exponential(a, 0.8, length), optax.exponential_decay(a, length, 0.8), length)
    same(schedules.steps(a, 0.8, length), optax.exponential_decay(a, length, 0.8, staircase=True), length)
    pieces = {length // 2: 0.5, length: 0.5}
    same(schedules.steps(a, 0.5, list(pieces)), optax.piecewise_constant_schedule(a, pieces), length)
    joined = optax.join_schedules([optax.linear_schedule(a, b, length), optax.constant_schedule(b)], [length])
    same(schedules.sequence(schedules.linear(a, b, length), schedules.constant(b), at=(length,)), joined, length)
    warm = optax.warmup_cosine_decay_schedule(0.0, a, length // 2 + 1, 2 * length, b)
    decay = schedules.cosine(a, b, 2 * length - length // 2 - 1)
    same(schedules.warmup(decay, length // 2 + 1), warm, 2 * length)


@settings(max_examples=15, deadline=None)
@given(A, st.integers(20, 80))
def test_one_cycle_is_that_of_optax(peak: float, length: int) -> None:
    """optax rounds the step of the peak."""
    theirs = optax.cosine_onecycle_schedule(length, peak, pct_start=0.25, div_factor=25.0, final_div_factor=1e4)
    rise = int(0.25 * length) / length
    same(lc.one_cycle(peak, length, rise=rise, stop=peak / 25e4), theirs, length)


def test_a_schedule_of_optax_is_taken_as_it_is_and_compiles_once() -> None:
    xs, ys = np.ones((4, 3), "f4"), np.ones((4, 2), "f4")
    rate, weight = optax.cosine_decay_schedule(0.5, 20), schedules.linear(0, 1, 9)
    scheduler = lc.Scheduler({lc.LearningRate: rate, "weight": weight})
    learner: Any = lc.Learner(
        (lambda params, x: x @ params["w"], {"w": jnp.zeros((3, 2))}),
        lc.losses.mse,
        lc.Adam(9.0),
        ([(xs, ys)] * 5, None),
        hyper={"weight": 0.0},
        callbacks=[scheduler],
        default_callbacks=False,
    )
    learner.fit(2)
    assert learner.backend.traces == 1
    assert learner.hyper.learning_rate == pytest.approx(float(np.asarray(optax.cosine_decay_schedule(0.5, 20)(9))))
    assert "fused" in learner.explain()
