"""Random arrays that are named by a key."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Array, DrawKey

LOOPS = ("jax._src.lax.control_flow.loops", "jax._src.api:vmap_f")  # where JAX runs a function for all iterations
_WORD = 0xFFFFFFFF


def typed(key: DrawKey) -> Array:
    """Make a typed key of JAX from a key of loopcore, whose step may be an array of a program."""
    # The stream is the same in all steps, and cached; only the step is folded in each time.
    step = np.uint32(int(key.step) & _WORD) if isinstance(key.step, int) else key.step
    return jax.random.fold_in(_stream(key.seed, key.stream), step)


@lru_cache(maxsize=4096)
def _stream(seed: int, stream: int) -> Array:
    """The key of a stream of a seed; seeds of more than 32 bits have their upper half folded in."""
    with jax.ensure_compile_time_eval():  # it is kept, so it must belong to no trace
        key = jax.random.fold_in(jax.random.key(np.uint32(seed & _WORD)), np.uint32(stream & _WORD))
        return jax.random.fold_in(key, np.uint32(seed >> 32 & _WORD)) if seed >> 32 else key


class Random:
    """Draws in one floating dtype; equal keys give equal arrays.

    Args:
        dtype: of floating draws.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype

    def key(self, key: DrawKey) -> Array:
        """Make a typed key of JAX for the functions of ``jax.random``."""
        return typed(key)

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Array:
        """Standard normal numbers."""
        return jax.random.normal(typed(key), tuple(shape), self._dtype)

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Array:
        """Uniform numbers in ``[low, high)``."""
        return jax.random.uniform(typed(key), tuple(shape), self._dtype, low, high)

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Array:
        """Ones with probability ``p``, else zeros."""
        return jax.random.bernoulli(typed(key), p, tuple(shape)).astype(self._dtype)

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Array:
        """Integers from ``low`` to ``high`` (excluded), int32."""
        return jax.random.randint(typed(key), tuple(shape), low, high, jnp.int32)

    def permutation(self, key: DrawKey, n: int) -> Array:
        """The integers below ``n`` in random order, int32."""
        return jax.random.permutation(typed(key), jnp.arange(n, dtype=jnp.int32))

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Array:
        """Numbers in [0, 1] of the Beta(a, b) distribution."""
        return jax.random.beta(typed(key), a, b, tuple(shape), self._dtype)

    def categorical(self, key: DrawKey, logits: Array) -> Array:
        """For each row of ``logits`` an index along its last axis, drawn with the softmax of the row, int32."""
        return jax.random.categorical(typed(key), logits, axis=-1).astype(jnp.int32)
