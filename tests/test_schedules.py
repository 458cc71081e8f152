"""Schedules by closed forms."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopcore as lc
from loopcore import schedules

SIZES = st.floats(0.01, 10)
LENGTHS = st.integers(1, 100)
STEPS = st.integers(0, 200)


@given(SIZES, SIZES, LENGTHS, STEPS)
def test_closed_forms(a: float, b: float, length: int, step: int) -> None:
    share = min(step / length, 1)
    close = pytest.approx
    assert schedules.constant(a)(step) == a
    assert schedules.linear(a, b, length)(step) == close(a + (b - a) * share)
    assert schedules.polynomial(a, b, length, 2.5)(step) == close(b + (a - b) * (1 - share) ** 2.5)
    assert schedules.cosine(a, b, length)(step) == close(b + (a - b) * (1 + math.cos(math.pi * share)) / 2)
    assert schedules.exponential(a, 0.9, length)(step) == close(a * 0.9 ** (step / length))
    assert schedules.steps(a, 0.5, length)(step) == close(a * 0.5 ** (step // length))
    assert schedules.scale(schedules.constant(a), b)(step) == close(a * b)
    assert schedules.shift(schedules.linear(a, b, length), 7)(step + 7) == close(a + (b - a) * share)
    warm = schedules.warmup(schedules.linear(a, b, length), 10)
    assert warm(step) == close(a * step / 10 if step < 10 else a + (b - a) * min((step - 10) / length, 1))


@given(SIZES, st.integers(4, 1000), st.floats(0.1, 0.9))
def test_one_cycle_goes_up_and_down_once(peak: float, length: int, rise: float) -> None:
    schedule = lc.one_cycle(peak, length, rise=rise)
    values = [schedule(step) for step in range(length + 5)]
    top = int(np.argmax(values))
    assert schedule(rise * length) == pytest.approx(peak) and schedule(0) == pytest.approx(peak / 25)
    assert values[length] == pytest.approx(peak / 25e4) == values[-1]
    assert all(a <= b for a, b in pairwise(values[: top + 1]))
    assert all(a >= b for a, b in pairwise(values[top:]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear(1, 0, 0),
        lambda: schedules.steps(1, 0.5, 0),
        lambda: lc.one_cycle(1, 10, rise=1.0),
        lambda: schedules.sequence(schedules.constant(1), at=(3,)),
        lambda: schedules.sequence(*[schedules.constant(1)] * 3, at=(5, 5)),
    ],
)
def test_what_makes_no_schedule(make: Any) -> None:
    with pytest.raises(ValueError, match=r"length|every|rise|at="):
        make()
