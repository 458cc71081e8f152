"""Models and layers of Keras 3 on its torch backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loopcore_keras.models import KerasModel
from loopcore_keras.optimizers import KerasOptimizer
from loopcore_torch.bound_module import Bound


class Mode:
    """Stands in for an ``nn.Module`` that has a mode: a layer of Keras takes it as an argument instead."""

    def __init__(self) -> None:
        self.training = False

    def train(self, mode: bool = True) -> None:
        """Set the mode that the next call gets."""
        self.training = mode

    def to(self, device: torch.device) -> None:
        """Do nothing: the variables of Keras stay where they were made."""

    def named_parameters(self) -> dict[str, Tensor]:
        """Return nothing: the parameters are those of the Keras variables."""
        return {}


class BoundKeras(Bound):
    """A bound model or layer. Its random layers draw by seeds from torch's generator, which every step seeds."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__(name, layer, self._call)
        # A layer of Keras is an nn.Module here, but takes its mode as an argument of the call.
        self.module = self.moded = Mode()
        self._keras = KerasModel(layer, f"the model {name!r}" if name else "the model")
        for keras_path, variable in self._keras.arrays.items():
            path = f"{self._prefix}{keras_path}"
            self.names[path] = keras_path
            self.keras_variables[path] = variable
            if keras_path in self._keras.params:
                self.params[path] = variable.value
            else:
                # Only the keys are used: `buffer` reads the tensor of the Keras variable.
                self._owners[path] = (layer, keras_path)

    def native(self) -> Any:
        """Return the user's model."""
        return self._keras.layer

    def frozen_by_user(self) -> list[str]:
        """Return the paths of what the user froze with ``layer.trainable = False``."""
        return [f"{self._prefix}{path}" for path in self._keras.frozen]

    def check_trained(self) -> None:
        """Raise an OptimizerError if the model needs a loss that is scaled."""
        self._keras.check_trained()

    def buffer(self, path: str) -> Tensor:
        """Return the present tensor of a buffer."""
        value: Tensor = self.keras_variables[path].value
        return value

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        # Keras keeps a seed for each random layer. It is drawn anew from torch's generator, which the step has seeded,
        # so that dropout is a matter of the step's key here too.
        for variable, seed in zip(self._keras.seeds, self._seeds(), strict=True):
            variable.assign(seed)
        return self._keras.call(args, kwargs, self.module.training)

    def call_apart(
        self, stand_ins: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], update: bool
    ) -> Any:
        """Call with other arrays in place of variables."""
        result, after = self._keras.call_apart(stand_ins, self._seeds(), args, kwargs, self.module.training)
        if update:
            for keras_path, value in after.items():
                # A buffer that kept its graph would keep the step's memory.
                self._keras.buffers[keras_path].assign(value.detach())
        return result

    def _seeds(self) -> list[Tensor]:
        """Draw a seed for each random layer from torch's generator, which every step seeds."""
        return [torch.randint(2**31 - 1, (2,), dtype=torch.int64) for _ in self._keras.seeds]


class KerasSteps:
    """An optimizer of Keras that steps on what is in ``.grad``, as those of torch do.

    Args:
        optimizer: the user's.
        variables: what it trains, Keras variables by path.
    """

    def __init__(self, optimizer: Any, variables: dict[str, Any]) -> None:
        self.keras = KerasOptimizer(optimizer, variables)
        self._variables = variables
        # Empty: who goes over the groups of torch's optimizers finds none here, and asks `keras`.
        self.param_groups: list[dict[str, Any]] = []

    def step(self) -> None:
        """Update the variables that have a gradient."""
        grads = {path: variable.value.grad for path, variable in self._variables.items()}
        with torch.no_grad():
            # Keras warns of variables whose gradient is None.
            self.keras.update({path: grad for path, grad in grads.items() if grad is not None})
