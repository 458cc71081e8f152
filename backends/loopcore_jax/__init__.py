"""The JAX adapter of loopcore: ``Backend`` is what the core finds."""

from loopcore_jax.adapter import Backend

__all__ = ["Backend"]
