"""Which functions take the labels first."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

import loopcore as lc
from loopcore._utils.argument_order import predictions_first


def first(ys: Any, y_pred: Any) -> Any:
    return ys[0]


def labels_first(y_true: Any, y_pred: Any) -> Any:
    return y_true[0]


@pytest.mark.parametrize(
    ("fn", "swapped"),
    [
        (r2_score, True),
        (functools.partial(r2_score, multioutput="variance_weighted"), True),
        (functools.wraps(r2_score)(lambda y_pred, ys: ys[0]), False),
        (labels_first, True),
        (functools.partial(labels_first), True),
        (first, False),
        (np.hypot, False),
    ],
    ids=str,
)
def test_who_gets_the_labels_first(fn: Any, swapped: bool) -> None:
    """What scikit-learn made, also behind a partial, and what says so by its parameters; not what quotes it."""
    assert (predictions_first(fn) is not fn) is swapped
    ys, y_pred = np.array([3.0, -0.5, 2.0, 7.0]), np.array([2.5, 0.0, 2.0, 8.0])
    expected = fn(ys, y_pred) if swapped else fn(y_pred, ys)
    np.testing.assert_equal(lc.Metric(fn, "m").fn(y_pred, ys), expected)
    np.testing.assert_equal(lc.Metric(fn, "m", args=("ys", "y_pred")).fn(y_pred, ys), fn(y_pred, ys))
