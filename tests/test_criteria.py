"""Each criterion against a closed form or a sequence by hand."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore import criteria

LOSSES = st.lists(st.floats(0.01, 100) | st.floats(-100, -0.01), min_size=1, max_size=30)


def stops(criterion: Any, losses: Any, training: Any = ()) -> int | None:
    """The number of the loss it stops at, from 1."""
    for number, loss in enumerate(losses):
        if number < len(training):
            criterion.update_training(training[number])
        if criterion.update(loss):
            return number + 1
    return None


def first(conditions: Any) -> int | None:
    return next((number for number, holds in enumerate(conditions, 1) if holds), None)


@given(LOSSES, st.integers(1, 5))
def test_closed_forms(losses: list[float], n: int) -> None:
    count = range(1, len(losses) + 1)
    best = [min(losses[:k]) for k in count]
    since = [k - 1 - losses[:k].index(min(losses[:k])) for k in count]
    rising = [k > n and all(losses[j] > losses[j - 1] for j in range(k - n, k)) for k in count]
    assert stops(criteria.Threshold(5), losses) == first(loss < 5 for loss in losses)
    assert stops(criteria.NumberLimit(n), losses) == first(k >= n for k in count)
    assert stops(criteria.NumberSinceBest(n), losses) == first(since_best >= n for since_best in since)
    assert stops(criteria.Patience(n), losses) == first(rising)
    gl = [100 * (loss - least) / abs(least) for loss, least in zip(losses, best, strict=True)]
    assert stops(criteria.GL(20), losses) == first(value > 20 for value in gl)
    later, after = criteria.Warmup(criteria.NumberSinceBest(2), n), stops(criteria.NumberSinceBest(2), losses[n:])
    assert stops(later, losses) == (None if after is None else n + after)
    both = criteria.NumberLimit(n) | criteria.Threshold(5)
    assert stops(both, losses) == first(k >= n or losses[k - 1] < 5 for k in count)


@given(LOSSES, LOSSES, st.integers(2, 5))
def test_pq(losses: list[float], training: list[float], k: int) -> None:
    size = min(len(losses), len(training))
    losses, training = losses[:size], training[:size]

    def decision(t: int) -> tuple[bool, bool]:
        """Whether it stops; and whether that hangs on the last bits."""
        window = training[t - k : t] if t >= k else []
        if not window:
            return False, False
        gl = 100 * (losses[t - 1] - min(losses[:t])) / abs(min(losses[:t]))
        progress = 1000 * (sum(window) / k - min(window)) / abs(min(window))
        near = abs(gl - 0.75 * progress) < 1e-9 * max(1.0, gl) or 0 < progress < 1e-9
        return progress <= 2**-52 or gl > 0.75 * progress, near

    found = stops(criteria.PQ(0.75, k), losses, training)
    for t in range(1, (found or size) + 1):
        expected, near = decision(t)
        assert near or expected == (t == found)


def test_pq_stops_when_training_stalls() -> None:
    assert stops(criteria.PQ(k=3), [4.0, 3.0, 2.0, 1.0], [5.0, 2.0, 2.0, 2.0]) == 4
    assert stops(criteria.PQ(k=3, tol=50.0), [3.0, 2.0, 1.0], [2.1, 2.0, 2.0]) == 3, "17 per mille"


def test_the_rest() -> None:
    assert [criteria.InvalidValue().update(value) for value in (1.0, nan, inf, -inf)] == [False, True, True, True]
    assert stops(criteria.InvalidValue(), [1.0, 1.0, 1.0], [1.0, nan]) == 2, "a training loss"
    assert stops(criteria.TimeLimit(1e-9), [1.0, 1.0]) in (1, 2)
    assert stops(criteria.NumberSinceBest(2, min_delta=0.5), [3.0, 2.9, 2.8]) == 3
    assert stops(criteria.NumberSinceBest(2), [nan, 1.0, nan, 2.0]) == 4, "a NaN is never the best"
    with pytest.raises(ValueError, match="at least 1"):
        criteria.Patience(0)
    with pytest.raises(ValueError, match="above 0"):
        criteria.GL(0)
    with pytest.raises(ValueError, match="at least 2"):
        criteria.PQ(k=1)


@pytest.mark.parametrize(
    ("kind", "said", "make"),
    [
        (TypeError, r"Disjunction takes criteria, .* not 3", lambda: criteria.Disjunction(3)),  # type: ignore[arg-type]
        (TypeError, r"Disjunction takes criteria, .* not 3", lambda: criteria.Patience(2) | 3),  # type: ignore[operator]
        (TypeError, r"write GL\(\)", lambda: criteria.Patience(2) | criteria.GL),
        (TypeError, r"Warmup takes criteria, .* not 3", lambda: criteria.Warmup(3)),  # type: ignore[arg-type]
        (ValueError, "value='a': a number", lambda: criteria.Threshold("a")),  # type: ignore[arg-type]
        (ValueError, "value=nan: a number", lambda: criteria.Threshold(nan)),
        (ValueError, "seconds='a': a number above 0", lambda: criteria.TimeLimit("a")),  # type: ignore[arg-type]
        (ValueError, "min_delta=-1: a number, at least 0", lambda: criteria.NumberSinceBest(3, min_delta=-1)),
    ],
)
def test_criteria_that_make_no_sense(kind: type[Exception], said: str, make: Any) -> None:
    with pytest.raises(kind, match=said):
        make()


def test_a_threshold_may_be_any_number() -> None:
    given: Any = np.float32(0.5)
    assert criteria.Threshold(given).update(0.25) and criteria.Threshold(-2).update(-3.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: criteria.Patience(3),
        lambda: criteria.NumberSinceBest(3),
        lambda: criteria.PQ(0.5, 2),
        lambda: criteria.Warmup(criteria.GL(5), 2) | criteria.NumberLimit(9),
    ],
)
def test_a_criterion_goes_on_from_its_state(make: Any) -> None:
    losses = [3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7]
    whole, part, rest = make(), make(), make()
    expected = [(whole.update_training(loss), whole.update(loss))[1] for loss in losses]
    for loss in losses[:4]:
        part.update_training(loss)
        part.update(loss)
    rest.load_state_dict(json.loads(json.dumps(part.state_dict())))
    assert [(rest.update_training(loss), rest.update(loss))[1] for loss in losses[4:]] == expected[4:]
