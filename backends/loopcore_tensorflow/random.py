"""Random arrays that are named by a key, by TensorFlow's stateless generators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf

from loopcore.backend import Array, DrawKey
from loopcore_tensorflow.functions import scalar

_random: Any = tf.random  # its types know little of it
LOOPS = (  # where TensorFlow runs a function once for all iterations of a loop, in a graph at least
    *("tensorflow.python.ops.while_loop", "tensorflow.python.ops.while_v2"),
    "tensorflow.python.ops.parallel_for.control_flow_ops",
)
_WORD = 0xFFFFFFFFFFFFFFFF


def typed(key: DrawKey, call: int = 0) -> Array:
    """Make a seed of TensorFlow from a key, int64 of shape (2,); its step may be a tensor of a program.

    Args:
        key: names the draw.
        call: number of a call of a model within the step, from 1.
    """
    return folded(tf.constant(_stream(key.seed, key.stream, call)), key.step)


def folded(seed: Array, number: Any) -> Array:
    """Derive one of many seeds from a seed: that of a number, which may be a tensor."""
    return _random.experimental.stateless_fold_in(seed, number)


@lru_cache(maxsize=4096)
def _stream(seed: int, stream: int, call: int) -> list[int]:
    """Mix the numbers of a stream into two words of 63 bits, by SplitMix64.

    This is arithmetic of Python on the host: only the step, which changes, is folded in by an operation.
    """
    # Odd constants spread streams and calls over all bits, so that neighbours share no words.
    z = (seed * 0xD1342543DE82EF95 + (stream + 1) * 0x9E3779B97F4A7C15 + call * 0xA0761D6478BD642F) & _WORD
    words: list[int] = []
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & _WORD
        x = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
        words.append((x ^ (x >> 31)) >> 1)  # of 64 bits the upper 63, since int64 has a sign
    return words


class Random:
    """Draws in one floating dtype; equal keys give equal arrays, in a program and outside.

    Args:
        dtype: of floating draws.
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype

    def key(self, key: DrawKey) -> Array:
        """A seed of the stateless functions."""
        return typed(key)

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Array:
        """Standard normal numbers."""
        return _random.stateless_normal(tuple(shape), typed(key), dtype=self._dtype, alg="philox")

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Array:
        """Uniform numbers in ``[low, high)``."""
        unit = _random.stateless_uniform(tuple(shape), typed(key), dtype=self._dtype, alg="philox")
        return low + (high - low) * unit

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Array:
        """Ones with probability ``p``, else zeros."""
        return tf.cast(self.uniform(key, shape, 0.0, 1.0) < p, self._dtype)

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Array:
        """Integers from ``low`` to ``high`` (excluded), int32."""
        return _random.stateless_uniform(tuple(shape), typed(key), low, high, tf.int32, alg="philox")

    def permutation(self, key: DrawKey, n: int) -> Array:
        """The integers below ``n`` in random order, int32."""
        return _random.experimental.stateless_shuffle(tf.range(n, dtype=tf.int32), typed(key), alg="philox")

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Array:
        """Numbers in [0, 1] of the Beta(a, b) distribution, from two of the Gamma distribution."""
        # X / (X + Y) of two Gamma variables is a Beta variable. In float64, since for small parameters both may be
        # so small that float32 has zeros for them, and the quotient is NaN.
        first, second = (
            _random.stateless_gamma(tuple(shape), typed(key, call), scalar(alpha, tf.float64), dtype=tf.float64)
            for call, alpha in ((1, a), (2, b))
        )
        return tf.cast(first / (first + second), self._dtype)

    def categorical(self, key: DrawKey, logits: Array) -> Array:
        """For each row of ``logits`` an index along its last axis, drawn with the softmax of the row, int32."""
        logits = tf.convert_to_tensor(logits)  # TensorFlow draws for rows of a matrix only
        rows = tf.reshape(logits, (-1, logits.shape[-1]))
        indices = _random.stateless_categorical(rows, 1, typed(key), tf.int32)
        return tf.reshape(indices, logits.shape[:-1])
