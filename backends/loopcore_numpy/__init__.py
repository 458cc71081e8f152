"""loopcore on NumPy, with gradients by autograd. The core imports it when a Learner needs it."""

from __future__ import annotations

from loopcore_numpy.adapter import Backend

__all__ = ["Backend"]
