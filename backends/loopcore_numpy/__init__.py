"""loopcore on NumPy, with gradients by autograd. The core imports it when a Learner needs it.

Why it is more than some hundred lines: NumPy has no models, losses, optimizers or random streams to adapt, and autograd
differentiates functions of arrays. What the other frameworks bring is written here, and the suite measures them by it.
"""

from __future__ import annotations

from loopcore_numpy.adapter import Backend

__all__ = ["Backend"]
