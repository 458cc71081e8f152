"""Order along axes, running sums and sums of segments, in array-API spelling where there is one."""

from __future__ import annotations

import tensorflow as tf

from loopcore.backend import Array
from loopcore.backend.array_namespace import only_axis
from loopcore_tensorflow.functions import pair


def matrix_transpose(x: Array, /) -> Array:
    """Swap the last two axes."""
    return tf.linalg.matrix_transpose(x)


def logaddexp(x1: Array, x2: Array, /) -> Array:
    """``log(exp(x1) + exp(x2))`` without overflow."""
    x1, x2 = pair(x1, x2)
    top = tf.stop_gradient(tf.maximum(x1, x2))  # the sum does not depend on it
    # Two infinities of one sign would give NaN by their difference.
    top = tf.where(tf.math.is_finite(top), top, tf.zeros_like(top))
    return tf.math.log(tf.exp(x1 - top) + tf.exp(x2 - top)) + top


def cumulative_sum(x: Array, /, *, axis: int | None = None, include_initial: bool = False) -> Array:
    """Sums of the elements so far along an axis; of bools their number.

    Args:
        x: any shape.
        axis: may be left out for an array of one axis.
        include_initial: begin with a zero, and be longer by one.
    """
    at = only_axis("cumulative_sum", x.ndim, axis)
    total = tf.cumsum(tf.cast(x, tf.int64) if x.dtype == tf.bool else x, at)
    if not include_initial:
        return total
    return tf.pad(total, [(int(number == at), 0) for number in range(x.ndim)])


def sort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Order along an axis; the gradient goes where the elements came from."""
    return tf.sort(x, axis, _direction(descending))


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Indices that order along an axis; equal elements stay in their order."""
    return tf.cast(tf.argsort(x, axis, _direction(descending), stable=True), tf.int64)


def top_k(x: Array, k: int, /, *, axis: int = -1) -> tuple[Array, Array]:
    """The largest elements along an axis and their indices, the largest first.

    Args:
        x: any shape; which of equal elements comes first depends on the framework.
        k: how many.
        axis: along which.
    """
    # TensorFlow looks along the last axis only.
    last = (*(number for number in range(x.ndim) if number != axis % x.ndim), axis % x.ndim)
    back = tuple(last.index(number) for number in range(x.ndim))
    values, indices = tf.math.top_k(tf.transpose(x, last), k)
    return tf.transpose(values, back), tf.cast(tf.transpose(indices, back), tf.int64)


def segment_sum(x: Array, segment_ids: Array, num_segments: int) -> Array:
    """Sum the rows of each segment, ``(n, ...)`` -> ``(num_segments, ...)``; of an empty one zeros.

    Args:
        x: an array or more axes, the first along the rows.
        segment_ids: ``(n,)`` integers from 0, below ``num_segments``, in any order: where each row is added.
        num_segments: length of the result.
    """
    return tf.math.unsorted_segment_sum(x, segment_ids, num_segments)


def _direction(descending: bool) -> str:
    """The word of TensorFlow for an order."""
    return "DESCENDING" if descending else "ASCENDING"
