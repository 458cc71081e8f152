"""The neutral losses, as TensorFlow's own: ``f(y_pred, ys, reduction="mean")``, class axis last."""

from __future__ import annotations

import tensorflow as tf

from loopcore.backend import Array
from loopcore.errors import LossError


def cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Cross entropy of logits ``(..., classes)`` with integer labels ``(...)`` or probabilities ``(..., classes)``.

    Raises:
        LossError: ``ys`` has neither of these shapes.
        ValueError: unknown reduction.
    """
    if ys.shape == y_pred.shape[:-1] and not ys.dtype.is_floating:
        # The kernel takes labels of these dtypes only.
        labels = ys if ys.dtype in (tf.int32, tf.int64) else tf.cast(ys, tf.int64)
        return _reduced(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, y_pred), reduction)
    if ys.shape == y_pred.shape:
        return _reduced(tf.nn.softmax_cross_entropy_with_logits(_like(ys, y_pred), y_pred), reduction)
    raise LossError(
        f"cross_entropy got y_pred of shape {tuple(y_pred.shape)} and {ys.dtype.name} ys of shape {tuple(ys.shape)}: "
        f"write integer labels of shape {tuple(y_pred.shape[:-1])}, or probabilities of the shape of y_pred"
    )


def binary_cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Binary cross entropy of logits with targets in [0, 1] of the same shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(tf.nn.sigmoid_cross_entropy_with_logits(_like(ys, y_pred), y_pred), reduction)


def mse(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Squared error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(tf.math.squared_difference(y_pred, _like(ys, y_pred)), reduction)


def mae(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Absolute error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    return _reduced(tf.abs(y_pred - _like(ys, y_pred)), reduction)


def huber(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Huber loss with threshold 1, of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    error = y_pred - _like(ys, y_pred)
    size = tf.abs(error)
    return _reduced(tf.where(size <= 1, 0.5 * tf.square(error), size - 0.5), reduction)


def _reduced(values: Array, reduction: str) -> Array:
    """The mean or the sum of the losses of a batch, or these themselves.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction == "mean":
        return tf.reduce_mean(values)
    if reduction == "sum":
        return tf.reduce_sum(values)
    if reduction == "none":
        return values
    raise ValueError(f'reduction={reduction!r} is unknown: write "mean", "sum" or "none"')


def _like(ys: Array, y_pred: Array) -> Array:
    """Targets in the dtype of the predictions, since TensorFlow's operators promote nothing."""
    return ys if ys.dtype == y_pred.dtype else tf.cast(ys, y_pred.dtype)
