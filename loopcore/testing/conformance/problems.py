"""The problems the suite solves: weights, data, learners, and a way to run one body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

import numpy as np

import loopcore as lc

Array: TypeAlias = "np.ndarray[Any, Any]"
Batch: TypeAlias = tuple[Array, Array]
INPUTS, WIDTH, OUTPUTS = 3, 4, 2


def dense_weights(seed: int = 0, layer: str = "") -> dict[str, Array]:
    """Weights of one dense layer."""
    draw = np.random.default_rng(seed).normal
    prefix = f"{layer}." if layer else ""
    return {f"{prefix}weight": draw(0, 0.5, (INPUTS, OUTPUTS)), f"{prefix}bias": draw(0, 0.5, OUTPUTS)}


def mlp_weights(seed: int = 0) -> dict[str, Array]:
    """Weights of two dense layers."""
    draw = np.random.default_rng(seed).normal
    return {
        "hidden.weight": draw(0, 0.5, (INPUTS, WIDTH)),
        "hidden.bias": draw(0, 0.5, WIDTH),
        "out.weight": draw(0, 0.5, (WIDTH, OUTPUTS)),
        "out.bias": draw(0, 0.5, OUTPUTS),
    }


def square_mlp_weights(seed: int = 0) -> dict[str, Array]:
    """Weights of two dense layers that map `INPUTS` to `INPUTS` numbers."""
    draw = np.random.default_rng(seed).normal
    weights = mlp_weights(seed)
    return {**weights, "out.weight": draw(0, 0.5, (WIDTH, INPUTS)), "out.bias": draw(0, 0.5, INPUTS)}


def norm_weights(seed: int = 0) -> dict[str, Array]:
    """Weights and running statistics of a normalisation, and a dense layer."""
    draw = np.random.default_rng(seed)
    return {
        "norm.scale": draw.uniform(0.5, 1.5, INPUTS),
        "norm.offset": draw.normal(0, 0.5, INPUTS),
        "norm.mean": draw.normal(0, 0.5, INPUTS),
        "norm.variance": draw.uniform(0.5, 1.5, INPUTS),
        **dense_weights(seed, "out"),
    }


forced_plan: ContextVar[str] = ContextVar("forced_plan", default="fused")


def batches(count: int, size: int = 5, outputs: int = OUTPUTS, seed: int = 1) -> list[Batch]:
    """Pairs of inputs and targets."""
    draw = np.random.default_rng(seed).normal
    return [(draw(0, 1, (size, INPUTS)), draw(0, 1, (size, outputs))) for _ in range(count)]


def ragged(*sizes: int, seed: int = 1) -> list[Batch]:
    """Pairs of these lengths."""
    return [batches(1, size, seed=seed + number)[0] for number, size in enumerate(sizes)]


def make_learner(model: Any, **options: Any) -> lc.Learner:
    """A learner without the default callbacks that keeps all step values; mean squared error and SGD by default.

    `forced_plan` decides how its steps run.
    """
    defaults: dict[str, Any] = {
        "loss_fn": lc.losses.mse,
        "optimizer": lc.SGD(0.1),
        "default_callbacks": False,
        "reads": ("step",),
    }
    options = {**defaults, **options}
    if forced_plan.get() == "eager":
        options["compile"] = False
    elif forced_plan.get() == "split":
        options["callbacks"] = [*options.get("callbacks", ()), Cutter()]
    return lc.Learner(model, **options)


class Cutter(lc.Callback):
    """Listens to every event, so that a compiled step is cut wherever one is fired within it, and does nothing.

    It says that it writes a value; who writes nothing only looks, and cuts nothing.
    """

    writes = ("step.of_the_cutter",)

    @lc.on(lc.Event)
    def listen(self, learner: Any, phase: Any) -> None:
        """Do nothing."""


def run(learner: lc.Learner, body: Callable[..., None], phase: lc.Phase | None = None, **values: Any) -> Any:
    """Run one body as a training step; returns the state."""
    return lc.run_step(body, learner, phase or lc.TrainingPhase(), **values)


def train(learner: lc.Learner, pairs: Sequence[Batch]) -> None:
    """One training step for each pair."""
    phase = lc.TrainingPhase()
    for pair in pairs:
        learner.run_step(phase, pair)


def host(learner: lc.Learner, value: Any) -> Any:
    """A value on the host, as NumPy."""
    return learner.to_host(value)


class At(lc.Callback):
    """Calls a function at one event, each time or only at the n-th (from 0)."""

    def __init__(
        self,
        event: type[lc.Event],
        fn: Callable[[Any, Any], None],
        phase: type[lc.Phase] | None = None,
        *,
        only: int | None = None,
        reads: tuple[str, ...] = (),
        writes: tuple[str, ...] = (),
    ) -> None:
        callback = lc.FunctionCallback(self._call, event, phase, reads=reads, writes=writes)
        self.reads, self.writes = reads, writes
        self.listeners = callback.listeners
        self.call = callback.call
        self.calls = 0
        self._fn = fn
        self._only = only

    def _call(self, learner: Any, phase: Any) -> None:
        self.calls += 1
        if self._only in (None, self.calls - 1):
            self._fn(learner, phase)
