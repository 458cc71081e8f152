"""An optimizer of Keras 3, where its variables can be assigned (TensorFlow and torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from loopcore.backend import Leaves
from loopcore.errors import OptimizerError

# What a hyperparameter may be called in Keras: momentum is beta_1 in Adam's family.
OWN_NAMES = {"learning_rate": ("learning_rate",), "momentum": ("momentum", "beta_1"), "weight_decay": ("weight_decay",)}


def is_optimizer(value: Any) -> bool:
    """Whether it is an optimizer of Keras."""
    return isinstance(value, keras.optimizers.Optimizer)


class KerasOptimizer:
    """A Keras optimizer together with the variables it trains.

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
        prepare(optimizer, variables)
        self._keras_names = own_names(optimizer)
        self.fixed = fixed_reasons(optimizer, self._keras_names)

    @property
    def name(self) -> str:
        """The name of the optimizer's class."""
        return type(self.optimizer).__name__

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its hyperparameters, as loopcore calls them."""
        return tuple(self._keras_names)

    def get(self, name: str) -> Any:
        """Return the value of a hyperparameter; while a program is traced, the array that stands for it."""
        value = getattr(self.optimizer, self._keras_names[name])
        try:
            return float(value)
        except TypeError:  # it stands for a value while a program is traced
            return keras.ops.convert_to_tensor(value)

    def set(self, name: str, value: Any) -> None:
        """Assign a learning rate for the updates to come; `fixed` has all other hyperparameters."""
        # A variable, which a compiled step reads anew.
        self.optimizer.learning_rate.assign(value)

    def update(self, grads: Leaves) -> None:
        """Apply gradients by path to their variables: one step."""
        self.optimizer.apply(list(grads.values()), [self._variables[path] for path in grads])

    def state(self) -> dict[str, Any]:
        """All variables it keeps but the learning rate, by name; what is kept for a variable by the variable's path."""
        return {f"{number}": variable for number, variable in enumerate(self.optimizer.variables)}


def prepare(optimizer: Any, variables: Mapping[str, Any]) -> None:
    """Build an optimizer for the variables it trains, unless it was built; refuse one that cannot be used here.

    Args:
        optimizer: the user's.
        variables: Keras variables, or the framework's own, by path.

    Raises:
        OptimizerError: it does more than a step on gradients, or was built for other variables.
    """
    kind = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        raise OptimizerError(
            f"{kind} holds several optimizers, whose hyperparameters nobody could reach: write them as a dict from "
            'path prefix to optimizer, optimizer={"": keras.optimizers.Adam(1e-3), "head": keras.optimizers.SGD(0.1)}'
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise OptimizerError(
            f"{kind} needs a loss that is scaled, and loopcore takes the gradient of the loss itself: pass the "
            'optimizer within it, and build the model under the policy "mixed_bfloat16", which needs no scaling'
        )
    if optimizer.loss_scale_factor is not None:
        raise OptimizerError(
            f"{kind} divides gradients by loss_scale_factor={optimizer.loss_scale_factor}, and loopcore takes the "
            "gradient of the loss itself: leave loss_scale_factor out"
        )
    if optimizer.use_ema:
        raise OptimizerError(
            f"{kind} averages the weights (use_ema=True), which become the model only when fit of Keras ends: leave "
            f"use_ema out, and pass Learner(callbacks=[lc.AveragedWeights({optimizer.ema_momentum})])"
        )
    # For all variables at once, since Keras adds none later.
    if not optimizer.built:
        optimizer.build(list(variables.values()))
        return
    # The user has called it before, or given it to another Learner.
    unknown = [path for path, variable in variables.items() if not _knows(optimizer, variable)]
    if unknown:
        raise OptimizerError(
            f"this {kind} was built for other variables, and Keras cannot add {_some(unknown)} to it: make a new one, "
            f"keras.optimizers.{kind}(...), for a new Learner, as Keras itself asks for another compile"
        )


def _knows(optimizer: Any, variable: Any) -> bool:
    """Whether an optimizer was built for a variable; without a gradient ``apply`` looks for it, and changes nothing."""
    try:
        optimizer.apply([None], [variable])
    except ValueError as error:
        return "Unknown variable" not in str(error)
    return True


def _some(names: Sequence[str]) -> str:
    """Join the first five of some names, and say how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def own_names(optimizer: Any) -> dict[str, str]:
    """Return the attributes of a Keras optimizer that hold its hyperparameters, by loopcore's name of each."""
    keras_names: dict[str, str] = {}
    for name, candidates in OWN_NAMES.items():
        keras_name = next((n for n in candidates if getattr(optimizer, n, None) is not None), None)
        if keras_name is not None:
            keras_names[name] = keras_name
    return keras_names


def fixed_reasons(optimizer: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Return, for each hyperparameter that cannot be set, the message that says why."""
    kind = type(optimizer).__name__
    reasons = {
        name: f"Keras keeps {keras_name} of {kind} as a Python number, which a compiled step bakes in: pass lc.Adam, "
        "lc.AdamW or lc.Momentum, whose hyperparameters are all inputs"
        for name, keras_name in names.items()
        if name != "learning_rate"
    }
    # A schedule is a function of Keras's own count of steps.
    if "learning_rate" in names and not isinstance(optimizer.learning_rate, keras.Variable):
        reasons["learning_rate"] = (
            f"the learning rate of this {kind} follows a schedule of Keras: pass a number to it, and use lc.Scheduler "
            "or assign learner.hyper"
        )
    return reasons
