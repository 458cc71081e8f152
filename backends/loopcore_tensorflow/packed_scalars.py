"""Small arrays packed as words into one vector, by their bits.

Every array that a program takes or returns costs a small step some microseconds; see ``loopcore.backend.packing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import tensorflow as tf

from loopcore.backend import Array
from loopcore.backend.packing import WORDS


def to_words(values: Sequence[Array]) -> Array:
    """Pack arrays of 32-bit elements and bools into one int32 vector of `WORDS` elements, padded with zeros."""
    # The length is always the same, so that the vector that a program returns fits its next call.
    parts: list[Any] = [tf.reshape(_bits(tf.convert_to_tensor(value)), (-1,)) for value in values]
    used = sum(int(part.shape[0]) for part in parts)
    return tf.concat([*parts, tf.zeros(WORDS - used, tf.int32)], 0)


def from_words(vector: Array, start: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Unpack the array whose words begin at ``start``, the inverse of `to_words` for one array."""
    words = tf.reshape(tf.convert_to_tensor(vector)[start : start + prod(shape)], shape)
    if dtype == "int32":
        return words
    return words != 0 if dtype == "bool" else tf.bitcast(words, tf.as_dtype(dtype))


def _bits(value: Array) -> Array:
    """An array as int32: a bool as 0 or 1, anything else by its bits, which a cast would round."""
    if value.dtype == tf.int32:
        return value
    return tf.cast(value, tf.int32) if value.dtype == tf.bool else tf.bitcast(value, tf.int32)
