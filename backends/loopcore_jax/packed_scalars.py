"""Small arrays packed as words into one vector, by their bits.

Every array that a program takes or returns costs a small step some microseconds; see ``loopcore.backend.packing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from loopcore.backend import Array
from loopcore.backend.packing import WORDS
from loopcore_jax.arrays import is_traced


def to_words(values: Sequence[Array]) -> Array:
    """Pack arrays of 32-bit elements and bools into one int32 vector of `WORDS` elements, padded with zeros."""
    parts = [_bits(jnp.asarray(value)).reshape(-1) for value in values]
    # The length is always the same, so that the vector that a program returns fits its next call.
    used = sum(part.size for part in parts)
    return jnp.concatenate([*parts, jnp.zeros(WORDS - used, jnp.int32)])


def from_words(vector: Array, start: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Unpack the array whose words begin at ``start``, the inverse of `to_words` for one array."""
    # Outside a program the few operations are one of their own, which JAX starts faster than each by itself.
    unpack = _unpacked if is_traced(vector) else _unpack_program
    return unpack(vector, start, shape, dtype)


def _bits(value: Array) -> Array:
    """An array as int32: a bool as 0 or 1, anything else by its bits, which a cast would change."""
    if value.dtype == jnp.int32:
        return value
    return value.astype(jnp.int32) if value.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(value, jnp.int32)


def _unpacked(vector: Any, start: int, shape: tuple[int, ...], dtype: str) -> Array:
    """The elements of a vector from ``start`` on as an array of a shape, their bits read as a dtype."""
    words = jnp.asarray(vector)[start : start + prod(shape)].reshape(shape)
    if dtype == "int32":
        return words
    return words != 0 if dtype == "bool" else jax.lax.bitcast_convert_type(words, dtype)


_unpack_program = partial(jax.jit, static_argnums=(1, 2, 3))(_unpacked)
