"""Array-API spellings of JAX functions; only what differs from ``jax.numpy`` is written here."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from loopcore.backend import Array

Axis: TypeAlias = int | tuple[int, ...] | None


def astype(x: Array, dtype: Any, /) -> Array:
    """Convert to another dtype."""
    return jnp.asarray(x).astype(dtype)


# ``jnp.sign`` has no derivative at all, so that a loss that depends on a parameter by it alone would be refused; in the
# other frameworks the derivative is zero.
@jax.custom_jvp
def _sign(x: Array) -> Array:
    return jnp.sign(x)


@_sign.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _sign(*primals), tangents[0] * 0  # zeros alone would count as a constant


def sign(x: Array, /) -> Array:
    """-1, 0 or 1. Its gradient is 0 everywhere; for ``jax.numpy`` the result does not depend on ``x`` at all."""
    return _sign(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.sign(x)


def einsum(subscripts: str, /, *operands: Array) -> Array:
    """Sum of products over named axes; lengths of one name agree.

    Args:
        subscripts: as ``"ij,jk->ik"``, a letter for each axis; ``...`` stands for further ones.
        operands: an array for each term.
    """
    return jnp.einsum(subscripts, *operands)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    """Remove axes, which must have length 1."""
    return jnp.squeeze(x, axis)


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """Pick slices along an axis; ``indices`` (integers, any shape) stand in its place."""
    if axis is None and jnp.ndim(x) != 1:
        raise ValueError(f"take from an array of shape {tuple(x.shape)} needs axis=")
    return jnp.take(x, indices, axis=axis or 0)


def softmax(x: Array, /, *, axis: int = -1) -> Array:
    """Exponentials that sum to 1 along an axis."""
    return jax.nn.softmax(x, axis=axis)


def log_softmax(x: Array, /, *, axis: int = -1) -> Array:
    """Logarithm of `softmax`, without overflow."""
    return jax.nn.log_softmax(x, axis=axis)


def logsumexp(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` without overflow."""
    return jnp.asarray(jax.nn.logsumexp(x, axis=axis, keepdims=keepdims))


def vector_norm(x: Array, /, *, axis: Axis = None, keepdims: bool = False, ord: Any = 2) -> Array:
    """Norm of vectors along axes. Its first and second gradients are 0 at the zero vector."""
    if ord != 2 or jnp.iscomplexobj(x):
        return jnp.linalg.vector_norm(x, axis=axis, keepdims=keepdims, ord=ord)
    squares = jnp.sum(x * x, axis=axis, keepdims=keepdims)
    zero = squares == 0  # the gradient of a root is infinite there
    roots = jnp.sqrt(jnp.where(zero, jnp.ones_like(squares), squares))
    return jnp.where(zero, jnp.zeros_like(squares), roots)
