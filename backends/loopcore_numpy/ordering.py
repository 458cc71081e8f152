"""Order along axes, running sums and sums of segments, in array-API spelling where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_vjps import unbroadcast_f
from autograd.tracer import getval

from loopcore.backend import Array
from loopcore.backend.array_namespace import only_axis
from loopcore_numpy import derivatives as d
from loopcore_numpy.derivatives import anp


def _sums(x: Any, axis: int) -> Any:
    return np.cumsum(x, axis, None if x.dtype.kind == "b" else x.dtype)


_cumulative: Any = primitive(_sums)
# An element is part of every sum from its place on: its gradient is a running sum from the other end.
defvjp(_cumulative, lambda ans, x, axis: lambda g: d.flip(_cumulative(d.flip(g, axis), axis), axis))


def _add_rows(x: Any, ids: Any, length: int) -> Any:
    result = np.zeros((length, *x.shape[1:]), x.dtype)
    np.add.at(result, ids, x)
    return result


_segments: Any = primitive(_add_rows)
# A row is added in one place: its gradient is read there.
defvjp(_segments, lambda ans, x, ids, length: lambda g: d.take(g, ids, 0))

# The two derivatives are softmax weights: they add up to 1.
_log_of_two: Any = primitive(lambda x1, x2: np.logaddexp(x1, x2))
defvjp(
    _log_of_two,
    lambda ans, x1, x2: unbroadcast_f(x1, lambda g: g * d.sigmoid(x1 - x2)),
    lambda ans, x1, x2: unbroadcast_f(x2, lambda g: g * d.sigmoid(x2 - x1)),
)


def matrix_transpose(x: Array, /) -> Array:
    """Swap the last two axes."""
    return anp.swapaxes(x, -1, -2)


def logaddexp(x1: Array, x2: Array, /) -> Array:
    """``log(exp(x1) + exp(x2))`` without overflow."""
    return _log_of_two(x1, x2)


def cumulative_sum(x: Array, /, *, axis: int | None = None, include_initial: bool = False) -> Array:
    """Sums of the elements so far along an axis; of bools their number.

    Args:
        x: any shape.
        axis: may be left out for an array of one axis.
        include_initial: begin with a zero, and be longer by one.
    """
    at = only_axis("cumulative_sum", anp.ndim(x), axis)
    total = _cumulative(x, at)
    if not include_initial:
        return total
    shape = list(anp.shape(x))
    shape[at] = 1
    return anp.concatenate([np.zeros(shape, np.result_type(getval(total))), total], at)


def sort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Order along an axis; the gradient goes where the elements came from."""
    return d.take_along_axis(x, argsort(x, axis=axis, descending=descending), axis)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Indices that order along an axis; equal elements stay in their order."""
    values = getval(x)
    if not descending:
        return np.argsort(values, axis, stable=True)
    # Flipping twice keeps equal elements in their order.
    backwards = np.flip(np.argsort(np.flip(values, axis), axis, stable=True), axis)
    return values.shape[axis] - 1 - backwards


def top_k(x: Array, k: int, /, *, axis: int = -1) -> tuple[Array, Array]:
    """The largest elements along an axis and their indices, the largest first.

    Args:
        x: any shape; which of equal elements comes first depends on the framework.
        k: how many.
        axis: along which.
    """
    indices = np.take(argsort(x, axis=axis, descending=True), np.arange(k), axis)
    return d.take_along_axis(x, indices, axis), indices


def segment_sum(x: Array, segment_ids: Array, num_segments: int) -> Array:
    """Sum the rows of each segment, ``(n, ...)`` -> ``(num_segments, ...)``; of an empty one zeros.

    Args:
        x: an array or more axes, the first along the rows.
        segment_ids: ``(n,)`` integers from 0, below ``num_segments``, in any order: where each row is added.
        num_segments: length of the result.
    """
    return _segments(x, np.asarray(getval(segment_ids)), num_segments)
