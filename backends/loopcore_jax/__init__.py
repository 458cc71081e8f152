"""The JAX adapter of loopcore: ``Backend`` is what the core finds.

Why it is more than some hundred lines: it takes models of six libraries, each with a state, a mode and random keys of
its own (a file each), keeps the hyperparameters of optax settable without another trace, and differentiates objectives
that write values, piece by piece where they are cut.
"""

from loopcore_jax.adapter import Backend

__all__ = ["Backend"]
