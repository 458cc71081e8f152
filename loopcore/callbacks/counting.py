"""What callbacks that keep arrays on the device share."""

from __future__ import annotations

from loopcore.backend.protocol import Array
from loopcore.protocols import LearnerView


def is_float(array: Array) -> bool:
    """Whether an array has a floating dtype, in the words of every framework."""
    return "float" in str(array.dtype)


def counter(learner: LearnerView) -> Array:
    """A 0-d zero to count with: of the parameters' dtype, but of 32 bits at least."""
    zero = learner.xp.zeros(())
    return learner.xp.astype(zero, learner.xp.float32) if "16" in str(zero.dtype) else zero


def whole_counter(learner: LearnerView) -> Array:
    """A 0-d zero of int32 for what may be counted beyond 2**24, where float32 stands still."""
    return learner.xp.zeros((), dtype=learner.xp.int32)
