"""Random arrays from keys: counter-based, so that a key alone decides the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from autograd.tracer import getval

from loopcore.backend import Array, DrawKey

# Philox takes words of 64 bits; seeds may be larger, or negative.
_WORD = (1 << 64) - 1


def generator(key: DrawKey, call: int = 0) -> np.random.Generator:
    """Return a generator that a key alone determines; ``call`` numbers further ones of the same key."""
    # A counter-based generator: its numbers follow from key and counter alone. The lower words of the counter count the
    # draws, so that the steps of a stream never meet.
    return np.random.Generator(np.random.Philox(key=_words(key.seed, key.stream), counter=_words(0, 0, call, key.step)))


def _words(*values: int) -> Any:
    return np.array([int(value) & _WORD for value in values], np.uint64)


class Random:
    """Random arrays in one floating dtype; integers are int32.

    Args:
        dtype: of everything that is not an integer.

    Example:
        >>> draw = Random(np.dtype(np.float32)).normal
        >>> bool((draw(DrawKey(0, 1, 2), (3,)) == draw(DrawKey(0, 1, 2), (3,))).all())
        True
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        # NumPy draws floats of these two kinds alone; others are converted from float64.
        self._native: Any = dtype if dtype in (np.dtype(np.float32), np.dtype(np.float64)) else np.dtype(np.float64)

    def _own(self, values: Any) -> Array:
        return np.asarray(values, self._dtype)

    def key(self, key: DrawKey) -> np.random.Generator:
        """Return a NumPy generator for the key, to draw what has no method here."""
        return generator(key)

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Array:
        """Draw numbers of mean 0 and variance 1."""
        return self._own(generator(key).standard_normal(tuple(shape), dtype=self._native))

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Array:
        """Draw numbers between ``low`` and ``high``."""
        return self._own(low + (high - low) * generator(key).random(tuple(shape), dtype=self._native))

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Array:
        """Draw 1 with probability ``p``, else 0, as floats: a mask to multiply with."""
        return self._own(generator(key).random(tuple(shape), dtype=self._native) < p)

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Array:
        """Draw integers from ``low`` up to ``high``, which is excluded; int32."""
        return np.asarray(generator(key).integers(low, high, tuple(shape), dtype=np.int32))

    def permutation(self, key: DrawKey, n: int) -> Array:
        """Draw a random order of the numbers 0 to ``n - 1``, ``(n,)``; int32."""
        return generator(key).permutation(n).astype(np.int32)

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Array:
        """Draw numbers of the Beta(a, b) distribution."""
        return self._own(generator(key).beta(a, b, tuple(shape)))

    def categorical(self, key: DrawKey, logits: Array) -> Array:
        """Draw a class for every row of logits, ``(..., classes)`` -> ``(...)``; int32."""
        values = np.asarray(getval(logits))
        # The largest of logits plus Gumbel noise is distributed as their softmax.
        noise = generator(key).gumbel(size=values.shape)
        return np.asarray(np.argmax(values + noise, axis=-1), np.int32)
