"""Help for tests of loops, callbacks, phases and backends."""

from __future__ import annotations

from loopcore.testing.randomness import same_random
from loopcore.testing.toy import Trace, toy_learner

__all__ = ["Trace", "same_random", "toy_learner"]
