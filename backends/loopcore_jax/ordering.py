"""Order along axes, running sums and sums of segments, in array-API spelling where there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from loopcore.backend import Array
from loopcore.backend.array_namespace import only_axis


def matrix_transpose(x: Array, /) -> Array:
    """Swap the last two axes."""
    return jnp.matrix_transpose(x)


def logaddexp(x1: Array, x2: Array, /) -> Array:
    """``log(exp(x1) + exp(x2))`` without overflow."""
    return jnp.logaddexp(x1, x2)


def cumulative_sum(x: Array, /, *, axis: int | None = None, include_initial: bool = False) -> Array:
    """Sums of the elements so far along an axis; of bools their number.

    Args:
        x: any shape.
        axis: may be left out for an array of one axis.
        include_initial: begin with a zero, and be longer by one.
    """
    at = only_axis("cumulative_sum", jnp.ndim(x), axis)
    return jnp.cumulative_sum(x, axis=at, include_initial=include_initial)


def sort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Order along an axis; the gradient goes where the elements came from."""
    return jnp.sort(x, axis=axis, descending=descending)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False) -> Array:
    """Indices that order along an axis; equal elements stay in their order."""
    return jnp.argsort(x, axis=axis, descending=descending)


def top_k(x: Array, k: int, /, *, axis: int = -1) -> tuple[Array, Array]:
    """The largest elements along an axis and their indices, the largest first.

    Args:
        x: any shape; which of equal elements comes first depends on the framework.
        k: how many.
        axis: along which.
    """
    # JAX looks along the last axis only.
    values, indices = jax.lax.top_k(jnp.moveaxis(x, axis, -1), k)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


def segment_sum(x: Array, segment_ids: Array, num_segments: int) -> Array:
    """Sum the rows of each segment, ``(n, ...)`` -> ``(num_segments, ...)``; of an empty one zeros.

    Args:
        x: an array or more axes, the first along the rows.
        segment_ids: ``(n,)`` integers from 0, below ``num_segments``, in any order: where each row is added.
        num_segments: length of the result.
    """
    return jax.ops.segment_sum(x, segment_ids, num_segments)
