"""What must come out, in plain NumPy and without loopcore: a small network by hand, optimizers, finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
Params: TypeAlias = dict[str, Array]
Rule: TypeAlias = Callable[[Array, Array, list[Array], int], Array]


def mlp(w: Params, x: Array) -> Array:
    """``out(tanh(hidden(x)))``."""
    y: Array = np.tanh(x @ w["hidden.weight"] + w["hidden.bias"]) @ w["out.weight"] + w["out.bias"]
    return y


def mlp_gradient(w: Params, x: Array, dy: Array) -> Params:
    """Gradient of ``sum(dy * mlp(w, x))`` with respect to the weights."""
    hidden = np.tanh(x @ w["hidden.weight"] + w["hidden.bias"])
    before = dy @ w["out.weight"].T * (1 - hidden**2)
    return {
        "hidden.weight": x.T @ before,
        "hidden.bias": before.sum(axis=0),
        "out.weight": hidden.T @ dy,
        "out.bias": dy.sum(axis=0),
    }


def mse(y: Array, target: Array) -> float:
    """Mean of the squared differences."""
    return float(np.mean((y - target) ** 2))


def mse_gradient(w: Params, x: Array, target: Array) -> Params:
    """Gradient of ``mse(mlp(w, x), target)`` with respect to the weights."""
    y = mlp(w, x)
    return mlp_gradient(w, x, 2 * (y - target) / y.size)


def sgd(learning_rate: float) -> Rule:
    """``w - learning_rate * g``."""
    return lambda w, g, slots, t: w - learning_rate * g


def momentum(learning_rate: float, momentum: float) -> Rule:
    """Heavy ball."""

    def rule(w: Array, g: Array, slots: list[Array], t: int) -> Array:
        slots[0] = momentum * slots[0] + g
        return w - learning_rate * slots[0]

    return rule


def adam(learning_rate: float, weight_decay: float = 0.0) -> Rule:
    """Kingma and Ba 2015, with the decoupled decay of Loshchilov and Hutter 2019."""

    def rule(w: Array, g: Array, slots: list[Array], t: int) -> Array:
        slots[0] = 0.9 * slots[0] + 0.1 * g
        slots[1] = 0.999 * slots[1] + 0.001 * g**2
        mean, square = slots[0] / (1 - 0.9**t), slots[1] / (1 - 0.999**t)
        return w - learning_rate * (mean / (np.sqrt(square) + 1e-8) + weight_decay * w)

    return rule


class Optimizer:
    """Applies a rule to a dict of weights, in place, and counts its updates."""

    def __init__(self, rule: Rule, weights: Params, *names: str) -> None:
        self._rule = rule
        self._weights = weights
        self._slots = {name: [np.zeros_like(weights[name])] * 2 for name in names or weights}
        self._slots = {name: list(slots) for name, slots in self._slots.items()}
        self.updates = 0

    def update(self, gradient: Params) -> None:
        """One step for its weights."""
        self.updates += 1
        for name, slots in self._slots.items():
            self._weights[name] = self._rule(self._weights[name], gradient[name], slots, self.updates)


def finite_difference(fn: Callable[[Array], Any], x: Array, step: float = 1e-6) -> Array:
    """Gradient of the sum of ``fn(x)`` by central differences in float64, good to about 1e-8 of its size."""
    x = np.array(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (np.sum(fn(ahead)) - np.sum(fn(behind))) / (2 * step)
    return gradient


def difference_of_weights(fn: Callable[[Params], float], w: Params, step: float = 1e-6) -> Params:
    """Gradient of a function of weights by central differences."""

    def of_one(name: str) -> Callable[[Array], float]:
        return lambda value: fn({**w, name: value})

    return {name: finite_difference(of_one(name), value, step) for name, value in w.items()}
