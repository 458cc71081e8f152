"""Making the random draws of all backends equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from loopcore.backend import DrawKey
from loopcore.randomness import override


@contextmanager
def same_random() -> Iterator[None]:
    """Within the block every ``learner.random`` draws with NumPy, so that all backends see the same numbers.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> with lc.testing.same_random():
        ...     noise = learner.random.normal((2,))
        >>> noise.shape
        (2,)
    """
    token = override.set(_NumPyDraws())
    try:
        yield
    finally:
        override.reset(token)


class _NumPyDraws:
    """A `RandomBackend` of float64 NumPy arrays; the learner converts them."""

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Any:
        return _generator(key).standard_normal(tuple(shape))

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Any:
        return _generator(key).uniform(low, high, tuple(shape))

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Any:
        return (_generator(key).random(tuple(shape)) < p).astype(np.float64)

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Any:
        return _generator(key).integers(low, high, tuple(shape), dtype=np.int32)

    def permutation(self, key: DrawKey, n: int) -> Any:
        return _generator(key).permutation(n)

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Any:
        return _generator(key).beta(a, b, tuple(shape))

    def categorical(self, key: DrawKey, logits: Any) -> Any:
        rows = np.asarray(logits, dtype=np.float64)
        return np.argmax(rows + _generator(key).gumbel(size=rows.shape), axis=-1)


def _generator(key: DrawKey) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
