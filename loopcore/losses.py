"""Neutral losses: names that every backend maps to its framework's own.

Each takes ``y_pred`` and ``ys`` and a ``reduction``: ``"mean"`` and ``"sum"`` give a 0-d array, ``"none"`` one value
per row (cross entropy) or per element. They work on the arrays of any backend, and as ``loss_fn`` of a Learner.
"""

from __future__ import annotations

from typing import Literal

from loopcore.backend.protocol import Array
from loopcore.backend.registry import namespace_of
from loopcore.errors import LossError

__all__ = ["binary_cross_entropy", "cross_entropy", "huber", "mae", "mse"]

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(y_pred: Array, ys: Array, reduction: Reduction = "mean") -> Array:
    """Compute the cross entropy of logits.

    Args:
        y_pred: logits, ``(..., classes)``, floating.
        ys: labels ``(...)`` of any integer dtype, or probabilities of the shape of ``y_pred``.
        reduction: over all rows.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))).__round__(4)
        1.3863
    """
    return namespace_of(y_pred).losses.cross_entropy(y_pred, ys, reduction)


def binary_cross_entropy(y_pred: Array, ys: Array, reduction: Reduction = "mean") -> Array:
    """Compute the binary cross entropy of logits.

    Args:
        y_pred: logits, any shape, floating.
        ys: targets in [0, 1] of the same shape; integers and bools are allowed.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.binary_cross_entropy(np.zeros(3), np.array([0.0, 1.0, 1.0]))).__round__(4)
        0.6931
    """
    _same_shape("binary_cross_entropy", y_pred, ys)
    return namespace_of(y_pred).losses.binary_cross_entropy(y_pred, ys, reduction)


def mse(y_pred: Array, ys: Array, reduction: Reduction = "mean") -> Array:
    """Compute the squared error.

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.mse(np.array([1.0, 3.0]), np.array([0.0, 0.0])))
        5.0
    """
    _same_shape("mse", y_pred, ys)
    return namespace_of(y_pred).losses.mse(y_pred, ys, reduction)


def mae(y_pred: Array, ys: Array, reduction: Reduction = "mean") -> Array:
    """Compute the absolute error.

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.mae(np.array([1.0, -3.0]), np.array([0.0, 0.0])))
        2.0
    """
    _same_shape("mae", y_pred, ys)
    return namespace_of(y_pred).losses.mae(y_pred, ys, reduction)


def huber(y_pred: Array, ys: Array, reduction: Reduction = "mean") -> Array:
    """Compute the Huber loss with threshold 1: quadratic near zero, linear beyond (Huber, 1964).

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.huber(np.array([3.0]), np.array([0.0])))
        2.5
    """
    _same_shape("huber", y_pred, ys)
    return namespace_of(y_pred).losses.huber(y_pred, ys, reduction)


def _same_shape(name: str, y_pred: Array, ys: Array) -> None:
    if tuple(y_pred.shape) != tuple(ys.shape):  # (n, 1) against (n,) would broadcast to (n, n) without a word
        raise LossError(
            f"{name} got y_pred of shape {tuple(y_pred.shape)} and ys of shape {tuple(ys.shape)}: make them equal, "
            "for instance with learner.xp.expand_dims(ys, axis=-1)"
        )
