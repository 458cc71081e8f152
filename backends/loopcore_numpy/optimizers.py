"""The neutral optimizers on NumPy arrays, step by step as ``torch.optim`` computes them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any

import numpy as np

from loopcore.backend import Array, Leaves
from loopcore.errors import GradientError, OptimizerError
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec

Slots = tuple[Array, ...]


class Optimizer(ABC):
    """One optimizer with its state: some arrays per path, and a count of updates.

    Args:
        spec: the neutral spec it obeys.
        params: the parameters it trains, by path.
    """

    tunable: tuple[str, ...] = ("learning_rate",)
    slots: int = 0

    def __init__(self, spec: OptimizerSpec, params: Leaves) -> None:
        self.name = type(spec).__name__
        # beta1 is what every adapter calls the momentum of Adam's family
        self.hyper: dict[str, float] = {"momentum" if n == "beta1" else n: v for n, v in asdict(spec).items()}
        self.steps = 0
        self.state: dict[str, Slots] = {
            path: tuple(np.zeros_like(value) for _ in range(self.slots)) for path, value in params.items()
        }

    def propose(self, params: Leaves, grads: Leaves) -> tuple[Leaves, dict[str, Slots]]:
        """New parameters and new state for the paths of ``grads`` that it trains; changes nothing."""
        new: Leaves = {}
        state: dict[str, Slots] = {}
        for path, slots in self.state.items():
            if path in grads:
                param = params[path]
                new[path], state[path] = self.step(param, _fitting(path, grads[path], param), slots, self.steps + 1)
        return new, state

    def commit(self, state: dict[str, Slots]) -> None:
        """Take the proposed state and count the update."""
        self.state.update(state)
        self.steps += 1

    def export(self) -> Leaves:
        """Return the count of updates and copies of the slots, by name."""
        state: Leaves = {"steps": np.array(self.steps)}
        for path, slots in self.state.items():
            state |= {f"{path}.{number}": slot.copy() for number, slot in enumerate(slots)}
        return state

    def load(self, state: Leaves) -> None:
        """Restore what `export` gave."""
        self.steps = int(state["steps"])
        self.state = {
            path: tuple(np.array(state[f"{path}.{number}"]) for number in range(len(slots)))
            for path, slots in self.state.items()
        }

    @abstractmethod
    def step(self, param: Array, grad: Array, slots: Slots, t: int) -> tuple[Array, Slots]:
        """Compute the t-th update (from 1) of one array; returns the new array and its new slots."""


class _SGD(Optimizer):
    def step(self, param: Array, grad: Array, slots: Slots, t: int) -> tuple[Array, Slots]:
        return param - self.hyper["learning_rate"] * grad, ()


class _Momentum(Optimizer):
    tunable = ("learning_rate", "momentum")
    slots = 1

    def step(self, param: Array, grad: Array, slots: Slots, t: int) -> tuple[Array, Slots]:
        velocity = self.hyper["momentum"] * slots[0] + grad
        return param - self.hyper["learning_rate"] * velocity, (velocity,)


class _Adam(Optimizer):
    tunable: tuple[str, ...] = ("learning_rate", "momentum")
    slots = 2

    def step(self, param: Array, grad: Array, slots: Slots, t: int) -> tuple[Array, Slots]:
        beta1, beta2 = self.hyper["momentum"], self.hyper["beta2"]
        # As torch's lerp computes it, so that trajectories agree.
        mean = slots[0] + (grad - slots[0]) * (1 - beta1)
        square = beta2 * slots[1] + (1 - beta2) * (grad * grad)
        root = np.sqrt(square) / math.sqrt(1 - beta2**t) + self.hyper["epsilon"]
        return param - self.hyper["learning_rate"] / (1 - beta1**t) * (mean / root), (mean, square)


class _AdamW(_Adam):
    tunable = ("learning_rate", "momentum", "weight_decay")

    def step(self, param: Array, grad: Array, slots: Slots, t: int) -> tuple[Array, Slots]:
        # Decoupled: the decay is not part of the gradient that Adam scales.
        decayed = param * (1 - self.hyper["learning_rate"] * self.hyper["weight_decay"])
        return super().step(decayed, grad, slots, t)


_KINDS: tuple[tuple[type[OptimizerSpec], type[Optimizer]], ...] = (
    (AdamW, _AdamW),  # before Adam, whose subclass it is
    (Adam, _Adam),
    (Momentum, _Momentum),
    (SGD, _SGD),
)


def make(spec: Any, params: Leaves) -> Optimizer:
    """Make the optimizer that a neutral spec describes.

    Raises:
        OptimizerError: it is no neutral spec.
    """
    for kind, optimizer in _KINDS:
        if isinstance(spec, kind):
            return optimizer(spec, params)
    cls: type[Any] = spec if isinstance(spec, type) else type(spec)
    raise OptimizerError(
        f"{cls.__module__}.{cls.__qualname__} cannot train a NumPy model: use a neutral optimizer, "
        "optimizer=lc.Adam(1e-3) (or lc.SGD, lc.Momentum, lc.AdamW)"
    )


def _fitting(path: str, grad: Any, param: Array) -> Array:
    """Return a gradient in the dtype of its parameter; refuse one of another shape."""
    grad = np.asarray(grad, param.dtype)
    if grad.shape != param.shape:
        raise GradientError(f"the gradient of {path!r} has shape {grad.shape}, the parameter {param.shape}")
    return grad
