"""``xp.linalg`` but for norms."""

from __future__ import annotations

import tensorflow as tf

from loopcore.backend import Array


def solve(x1: Array, x2: Array, /) -> Array:
    """Solve ``x1 @ x = x2`` for ``x``; batches broadcast.

    Args:
        x1: ``(..., n, n)``.
        x2: ``(..., n, k)``, or a vector ``(n,)``.
    """
    if x2.ndim == 1:  # a matrix of one column for TensorFlow
        return tf.squeeze(solve(x1, x2[:, tf.newaxis]), -1)
    # TensorFlow's solve takes equal batches only.
    batch = tf.broadcast_dynamic_shape(tf.shape(x1)[:-2], tf.shape(x2)[:-2])
    coefficients, constants = (tf.broadcast_to(x, tf.concat([batch, tf.shape(x)[-2:]], 0)) for x in (x1, x2))
    return tf.linalg.solve(coefficients, constants)


def slogdet(x: Array, /) -> tuple[Array, Array]:
    """Sign of the determinant, and the logarithm of its absolute value: ``(..., n, n)`` -> two of ``(...)``."""
    sign, logarithm = tf.linalg.slogdet(x)
    return sign, logarithm


def inv(x: Array, /) -> Array:
    """The inverse of square matrices."""
    return tf.linalg.inv(x)
