"""Small arrays as the words of one vector, by their bits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import tensorflow as tf

from loopcore.backend import Array
from loopcore.backend.packing import WORDS


def to_words(values: Sequence[Array]) -> Array:
    """One int32 vector of `WORDS`."""
    parts: list[Any] = [tf.reshape(_bits(tf.convert_to_tensor(value)), (-1,)) for value in values]
    used = sum(int(part.shape[0]) for part in parts)
    return tf.concat([*parts, tf.zeros(WORDS - used, tf.int32)], 0)


def from_words(vector: Array, start: int, shape: tuple[int, ...], dtype: str) -> Array:
    """The array whose bits begin at ``start``."""
    words = tf.reshape(tf.convert_to_tensor(vector)[start : start + prod(shape)], shape)
    if dtype == "int32":
        return words
    return words != 0 if dtype == "bool" else tf.bitcast(words, tf.as_dtype(dtype))


def _bits(value: Array) -> Array:
    if value.dtype == tf.int32:
        return value
    return tf.cast(value, tf.int32) if value.dtype == tf.bool else tf.bitcast(value, tf.int32)
