"""Making the random draws of all backends equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loopcore.handles.randomness import HostDraws, override


@contextmanager
def same_random() -> Iterator[None]:
    """Within the block every ``learner.random`` draws with NumPy, so that all backends see the same numbers.

    A step that is compiled gets them as inputs: the host draws them before it. Where an argument of a draw is itself a
    value of the step, as in ``beta`` of a hyperparameter, it runs eagerly.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> with lc.testing.same_random():
        ...     noise = learner.random.normal((2,))
        >>> noise.shape
        (2,)
    """
    token = override.set(HostDraws())
    try:
        yield
    finally:
        override.reset(token)
