"""A run of an older version goes on, on JAX."""

from __future__ import annotations

from tests.old_checkpoints import *  # noqa: F403 - the same tests for each framework

BACKEND = "jax"
