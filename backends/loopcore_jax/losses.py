"""The neutral losses, as those of optax: ``f(y_pred, ys, reduction="mean")``, class axis last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

from loopcore.backend import Array
from loopcore.errors import LossError


def cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Cross entropy of logits ``(..., classes)`` with integer labels ``(...)`` or probabilities ``(..., classes)``.

    The loss of a label that is no class is NaN: a compiled program cannot raise.

    Raises:
        LossError: ``ys`` has neither of these shapes.
        ValueError: unknown reduction.
    """
    if ys.shape == y_pred.shape[:-1] and not jnp.issubdtype(ys.dtype, jnp.floating):
        return _reduced(optax.softmax_cross_entropy_with_integer_labels(y_pred, _labels(ys)), reduction)
    if ys.shape == y_pred.shape:
        return _reduced(optax.softmax_cross_entropy(y_pred, _like(ys, y_pred)), reduction)
    raise LossError(
        f"cross_entropy got y_pred of shape {tuple(y_pred.shape)} and {ys.dtype} ys of shape {tuple(ys.shape)}: "
        f"write integer labels of shape {tuple(y_pred.shape[:-1])}, or probabilities of the shape of y_pred"
    )


def binary_cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Binary cross entropy of logits with targets in [0, 1] of the same shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(optax.sigmoid_binary_cross_entropy(y_pred, _like(ys, y_pred)), reduction)


def mse(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Squared error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(optax.squared_error(y_pred, _like(ys, y_pred)), reduction)


def mae(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Absolute error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(jnp.abs(y_pred - _like(ys, y_pred)), reduction)


def huber(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Huber loss with threshold 1, of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(optax.huber_loss(y_pred, _like(ys, y_pred)), reduction)


def _reduced(values: Array, reduction: str) -> Array:
    """The mean or the sum of the losses of a batch, or these themselves.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction == "mean":
        return jnp.mean(values)
    if reduction == "sum":
        return jnp.sum(values)
    if reduction == "none":
        return values
    raise ValueError(f'reduction={reduction!r} is unknown: write "mean", "sum" or "none"')


def _labels(ys: Array) -> Array:
    """Labels as int32, in which a negative one becomes one that is no class, as JAX would count it from the end."""
    # JAX reads out of bounds without an error: NaN where an index is too large, but the last class for -1.
    labels = jnp.asarray(ys, jnp.int32)
    return jnp.where(labels < 0, np.iinfo(np.int32).max, labels)


def _like(ys: Array, y_pred: Array) -> Array:
    """Targets in the dtype of the predictions, so that none of float64 widens the loss."""
    return jnp.asarray(ys, y_pred.dtype)
