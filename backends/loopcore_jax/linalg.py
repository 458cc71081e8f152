"""``xp.linalg`` but for norms."""

from __future__ import annotations

import jax.numpy as jnp

from loopcore.backend import Array


def solve(x1: Array, x2: Array, /) -> Array:
    """Solve ``x1 @ x = x2`` for ``x``; batches broadcast.

    Args:
        x1: ``(..., n, n)``.
        x2: ``(..., n, k)``, or a vector ``(n,)``.
    """
    return jnp.linalg.solve(x1, x2)


def slogdet(x: Array, /) -> tuple[Array, Array]:
    """Sign of the determinant, and the logarithm of its absolute value: ``(..., n, n)`` -> two of ``(...)``."""
    sign, logarithm = jnp.linalg.slogdet(x)
    return sign, logarithm


def inv(x: Array, /) -> Array:
    """The inverse of square matrices."""
    return jnp.linalg.inv(x)
