"""JAX: the loops an expert writes by hand, and loopcore."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import loopcore as lc
from benchmarks.models import loopcore_loops
from benchmarks.models.bench import Bench, Size, Variant, chosen

LEARNING_RATE = 1e-5  # so small that the work of a step stays the same however many steps have been run


def bench(size: Size, threads: int, only: str) -> Bench:
    draw = np.random.default_rng(0)
    on_host = [
        (
            draw.normal(size=(size.batch, size.widths[0])).astype(np.float32),
            draw.integers(size.widths[-1], size=size.batch, dtype=np.int32),
        )
        for _ in range(8)
    ]
    batches = [(jnp.asarray(xs), jnp.asarray(ys)) for xs, ys in on_host]

    def params() -> list[dict[str, Any]]:
        weights = np.random.default_rng(1)
        return [
            {"w": jnp.asarray(weights.normal(0, i**-0.5, (i, o)), jnp.float32), "b": jnp.zeros(o, jnp.float32)}
            for i, o in pairwise(size.widths)
        ]

    def model() -> tuple[Any, Any]:
        return apply, params()

    neutral: Any = (model, lc.losses.cross_entropy, lambda _: lc.Adam(LEARNING_RATE))
    found = [
        Variant("raw", RawLoop(params())),
        Variant("raw again", RawLoop(params())),
        Variant("raw + metrics", RawLoopWithMetrics(params())),
        *loopcore_loops.variants(*neutral),
        *loopcore_loops.fed(
            on_host,
            Variant("raw, NumPy batches", RawLoop(params())),
            loopcore_loops.variants(*neutral, ", NumPy batches"),
        ),
        *loopcore_loops.listeners(*neutral),
        *loopcore_loops.listeners(*neutral, writes=True),
    ]
    return Bench(batches, chosen(found, only), model=model)


def apply(params: list[dict[str, Any]], x: Any) -> Any:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss_of(params: Any, xs: Any, ys: Any) -> tuple[Any, Any]:
    y_pred = apply(params, xs)
    return optax.softmax_cross_entropy_with_integer_labels(y_pred, ys).mean(), y_pred


class RawLoop:
    """One jitted step that donates what it replaces."""

    def __init__(self, params: Any) -> None:
        self.params = params
        self.optimizer = optax.adam(LEARNING_RATE)
        self.state = self.optimizer.init(params)
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, params: Any, state: Any, xs: Any, ys: Any) -> Any:
        (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(params, xs, ys)
        updates, state = self.optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def __call__(self, batches: Sequence[Any]) -> None:
        params, state = self.params, self.state
        for xs, ys in batches:
            params, state, loss = self.step(params, state, xs, ys)
        loss.block_until_ready()
        self.params, self.state = params, state


class RawLoopWithMetrics(RawLoop):
    """The same with mean loss and accuracy, kept in one array on the device and read when the block ends."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.step = jax.jit(self._metric_step, donate_argnums=(0, 1, 2))

    def _metric_step(self, params: Any, state: Any, sums: Any, xs: Any, ys: Any) -> Any:
        (loss, y_pred), grads = jax.value_and_grad(loss_of, has_aux=True)(params, xs, ys)
        updates, state = self.optimizer.update(grads, state, params)
        hits = jnp.sum(jnp.argmax(y_pred, -1) == ys)
        sums = sums + jnp.stack([loss * len(ys), hits.astype(jnp.float32), jnp.float32(len(ys))])
        return optax.apply_updates(params, updates), state, sums

    def __call__(self, batches: Sequence[Any]) -> None:
        params, state, sums = self.params, self.state, jnp.zeros(3)
        for xs, ys in batches:
            params, state, sums = self.step(params, state, sums, xs, ys)
        np.asarray(sums)
        self.params, self.state = params, state
