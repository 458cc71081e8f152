"""Checkpoints of JAX: random keys and dtypes that NumPy does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopcore as lc

BATCH = np.ones((4, 1), "float32"), np.ones((4, 1), "float32")


def forward(params: Any, state: Any, x: Any) -> Any:
    return x @ params["w"], state


class Carries(lc.Callback):
    carries = writes = ("shared.key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def setup(self, learner: Any) -> None:
        learner.shared.key = {"key": self.key}


def make(seed: int, impl: str | None = None, optimizer: Any = None, dtype: Any = jnp.float32) -> Any:
    key = jax.random.key(seed, impl=impl)
    model = forward, {"w": jnp.zeros((1, 1))}, {"key": key, "scale": jnp.full(3, float(seed)).astype(dtype)}
    optimizer = optimizer or optax.noisy_sgd(0.1, key=key)
    return lc.Learner(
        model, lc.losses.mse, optimizer, ([BATCH], None), callbacks=[Carries(key)], default_callbacks=False
    )


def data(learner: Any) -> list[Any]:
    carried = learner.backend.carried()
    leaves = [*jax.tree_util.tree_leaves(carried), learner.shared.key["key"]]
    assert sum(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves) == 3
    return [learner.to_host(leaf) for leaf in leaves]


@pytest.mark.parametrize("impl", [None, "rbg"])
def test_typed_keys(impl: str | None, tmp_path: Path) -> None:
    first, second = make(1, impl), make(2, impl)
    first.fit(1)
    second.load(first.save(tmp_path / "x"))
    for one, other in zip(data(first), data(second), strict=True):
        np.testing.assert_array_equal(one, other)
    for learner in (first, second):
        learner.fit(2)
    np.testing.assert_array_equal(first.export_weights()["w"], second.export_weights()["w"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "int4", "float16"])
def test_dtypes_of_buffers(dtype: str, tmp_path: Path) -> None:
    first, second = make(1, dtype=jnp.dtype(dtype)), make(2, dtype=jnp.dtype(dtype))
    second.load(first.save(tmp_path / "x"))
    scale = second.buffers.value["scale"]
    assert scale.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(scale).astype("complex64"), 1)
