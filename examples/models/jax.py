"""Models of the examples in JAX: modules of flax.nnx."""

from __future__ import annotations

from flax import nnx


def regressor(inputs: int, seed: int = 0) -> nnx.Module:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(nnx.Linear(inputs, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 1, rngs=rngs))
