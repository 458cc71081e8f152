"""An optimizer of Keras 3, where its variables can be assigned (TensorFlow and torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from loopcore.backend import Leaves

OWN_NAMES = {"learning_rate": ("learning_rate",), "momentum": ("momentum", "beta_1"), "weight_decay": ("weight_decay",)}


def is_optimizer(value: Any) -> bool:
    """Whether it is an optimizer of Keras."""
    return isinstance(value, keras.optimizers.Optimizer)


class KerasOptimizer:
    """An optimizer and what it trains.

    Args:
        optimizer: the user's; it is built for the variables unless it was.
        variables: Keras variables, or the framework's own, by path.

    Attributes:
        optimizer: the user's.
        fixed: why a hyperparameter cannot be set, by its name.
    """

    def __init__(self, optimizer: Any, variables: Mapping[str, Any]) -> None:
        self.optimizer = optimizer
        self._variables = dict(variables)
        if not optimizer.built:
            optimizer.build(list(variables.values()))
        self._own = own_names(optimizer)
        self.fixed = fixed_reasons(optimizer, self._own)

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.optimizer).__name__

    @property
    def names(self) -> tuple[str, ...]:
        """Of its hyperparameters."""
        return tuple(self._own)

    def get(self, name: str) -> Any:
        """A hyperparameter; within a program what stands for the learning rate."""
        value = getattr(self.optimizer, self._own[name])
        try:
            return float(value)
        except TypeError:  # it stands for a value while a program is traced
            return keras.ops.convert_to_tensor(value)

    def set(self, name: str, value: Any) -> None:
        """Set the learning rate, for the next update."""
        self.optimizer.learning_rate.assign(value)

    def update(self, grads: Leaves) -> None:
        """One step for these paths."""
        self.optimizer.apply(list(grads.values()), [self._variables[path] for path in grads])

    def state(self) -> dict[str, Any]:
        """All variables it keeps but the learning rate, by name; what is kept for a variable by the variable's path."""
        return {f"{number}": variable for number, variable in enumerate(self.optimizer.variables)}


def own_names(optimizer: Any) -> dict[str, str]:
    """What Keras calls the hyperparameters that an optimizer has."""
    found: dict[str, str] = {}
    for name, candidates in OWN_NAMES.items():
        own = next((own for own in candidates if getattr(optimizer, own, None) is not None), None)
        if own is not None:
            found[name] = own
    return found


def fixed_reasons(optimizer: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Why a hyperparameter cannot be set, where it cannot."""
    kind = type(optimizer).__name__
    found = {
        name: f"Keras keeps {own} of {kind} as a Python number, which a compiled step bakes in: pass lc.Adam, lc.AdamW "
        "or lc.Momentum, whose hyperparameters are all inputs"
        for name, own in names.items()
        if name != "learning_rate"
    }
    if "learning_rate" in names and not isinstance(optimizer.learning_rate, keras.Variable):
        found["learning_rate"] = (
            f"the learning rate of this {kind} follows a schedule of Keras: pass a number to it, and use lc.Scheduler "
            "or assign learner.hyper"
        )
    return found
