"""Weighted means of trees, for callbacks that keep one on the device."""

from __future__ import annotations

from typing import Any


def is_float(array: Any) -> bool:
    """Whether an array has a floating dtype, in the words of every framework."""
    return "float" in str(array.dtype)


def blend(learner: Any, old: Any, new: Any, t: Any) -> Any:
    """``old + t * (new - old)`` for every floating leaf; counters and the like are those of ``new``.

    Args:
        learner: gives the array functions.
        old: a tree of arrays.
        new: a tree of the same structure.
        t: a float, or a 0-d array of any floating dtype.
    """

    def leaf(was: Any, now: Any) -> Any:
        if not is_float(now):
            return now
        return was + (t if type(t) is float else learner.xp.astype(t, now.dtype)) * (now - was)

    return learner.tree.map(leaf, old, new)


def counter(learner: Any) -> Any:
    """A 0-d zero to count with: of the parameters' dtype, but of 32 bits at least."""
    zero = learner.xp.zeros(())
    return learner.xp.astype(zero, learner.xp.float32) if "16" in str(zero.dtype) else zero
