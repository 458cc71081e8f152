"""The NumPy adapter: losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.numpy_adapter.calls import array, close, linear, losses, xp

DATA = np.random.default_rng(0)
LOGITS = DATA.normal(size=(4, 3))
LABELS = np.array([0, 2, 1, 1])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
HOT = np.eye(3)[LABELS]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_cross_entropy_with_labels_of_any_width(dtype: Any) -> None:
    close(losses.cross_entropy(LOGITS, LABELS.astype(dtype), "none"), -np.log(P[range(4), LABELS]))
    found = linear().grad(lambda x: losses.cross_entropy(x, LABELS.astype(dtype)), [])(LOGITS)
    close(found, (P - HOT) / 4)


def test_cross_entropy_with_probabilities_and_more_axes() -> None:
    soft = np.full((4, 3), 1 / 3)
    close(losses.cross_entropy(LOGITS, soft, "none"), -(soft * np.log(P)).sum(1))
    close(losses.cross_entropy(LOGITS, HOT, "sum"), losses.cross_entropy(LOGITS, LABELS, "sum"))
    assert losses.cross_entropy(LOGITS[None], LABELS[None], "none").shape == (1, 4)
    close(linear().grad(lambda x: losses.cross_entropy(x, soft), [])(LOGITS), (P - soft) / 4)


def test_cross_entropy_can_be_differentiated_twice() -> None:
    backend = linear()
    slope = backend.grad(lambda x: losses.cross_entropy(x, LABELS, "sum"), [])
    along = np.arange(12.0).reshape(4, 3)
    expected = P * along - P * (P * along).sum(1, keepdims=True)
    close(backend.grad(lambda x: xp.sum(along * slope(x)), [])(LOGITS), expected)


def test_binary_cross_entropy_is_stable() -> None:
    x, z = array(-800, -1, 0, 2, 800), np.array([0, 1, 0, 1, 1])
    expected = array(0, np.log(1 + np.e), np.log(2), np.log(1 + np.exp(-2)), 0)
    close(losses.binary_cross_entropy(x, z, "none"), expected)
    sigmoid = array(0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1)
    close(linear().grad(lambda x: losses.binary_cross_entropy(x, z, "sum"), [])(x), sigmoid - z)


@pytest.mark.parametrize(
    ("loss", "elementwise", "slope"),
    [
        (losses.mse, lambda d: d * d, lambda d: 2 * d),
        (losses.mae, np.abs, np.sign),
        (losses.huber, lambda d: np.where(np.abs(d) <= 1, d * d / 2, np.abs(d) - 0.5), lambda d: np.clip(d, -1, 1)),
    ],
)
def test_regression_losses(loss: Any, elementwise: Any, slope: Any) -> None:
    y, t = array(0.5, -3, 2, 1), np.array([0, 1, 2, -1])
    close(loss(y, t, "none"), elementwise(y - t))
    close(loss(y, t, "sum"), elementwise(y - t).sum())
    close(loss(y, t), elementwise(y - t).mean())
    close(linear().grad(lambda y: loss(y, t), [])(y), slope(y - t) / 4)


def test_losses_keep_float32() -> None:
    x = LOGITS.astype(np.float32)
    for loss in (losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy, losses.cross_entropy):
        assert loss(x, HOT).dtype == np.float32 == linear().grad(partial(loss, ys=HOT), [])(x).dtype
        assert loss(x, HOT.astype(np.int64) if loss is not losses.cross_entropy else LABELS).dtype == np.float32


def test_loss_errors() -> None:
    with pytest.raises(ValueError, match=r"reduction='avg'.*\"mean\", \"sum\" or \"none\""):
        losses.mse(LOGITS, HOT, "avg")
    with pytest.raises(ValueError, match=r"\(4, 3\) takes integer classes of shape \(4,\), not \(3,\)"):
        losses.cross_entropy(LOGITS, LABELS[:3])
    with pytest.raises(ValueError, match="classes 0 to 2, not 0 to 3"):
        losses.cross_entropy(LOGITS, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="not -1 to 2"):
        losses.cross_entropy(LOGITS, np.array([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=r"probabilities of that shape, not \(4, 2\)"):
        losses.cross_entropy(LOGITS, HOT[:, :2])
