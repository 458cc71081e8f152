"""Models and layers of Keras 3 on its torch backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loopcore_keras.models import KerasModel
from loopcore_keras.optimizers import KerasOptimizer
from loopcore_torch.bound_module import Bound


class Mode:
    """The mode of a model that takes it as an argument, in the words of ``nn.Module``: its own does nothing."""

    def __init__(self) -> None:
        self.training = False

    def train(self, mode: bool = True) -> None:
        """Set it."""
        self.training = mode

    def to(self, device: torch.device) -> None:
        """The variables of Keras stay where they were made."""

    def named_parameters(self) -> dict[str, Tensor]:
        """None of its own."""
        return {}


class BoundKeras(Bound):
    """A bound model or layer. Its random layers draw by seeds from torch's generator, which every step seeds."""

    def __init__(self, name: str, layer: Any) -> None:
        super().__init__(name, layer, self._call)
        self.module = self.moded = Mode()
        self._keras = KerasModel(layer, f"the model {name!r}" if name else "the model")
        for keras_path, variable in self._keras.arrays.items():
            path = f"{self._prefix}{keras_path}"
            self.names[path] = keras_path
            self.keras_variables[path] = variable
            if keras_path in self._keras.params:
                self.params[path] = variable.value
            else:
                self._owners[path] = (layer, keras_path)

    def native(self) -> Any:
        """The user's model."""
        return self._keras.layer

    def frozen_by_user(self) -> list[str]:
        """Paths of what the user froze with ``layer.trainable = False``."""
        return [f"{self._prefix}{path}" for path in self._keras.frozen]

    def check_trained(self) -> None:
        """Refuse to train what needs a loss that is scaled."""
        self._keras.check_trained()

    def buffer(self, path: str) -> Tensor:
        """The present buffer."""
        value: Tensor = self.keras_variables[path].value
        return value

    def _call(self, *args: Any, **kwargs: Any) -> Any:
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
                self._keras.buffers[keras_path].assign(value.detach())
        return result

    def _seeds(self) -> list[Tensor]:
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
        self.param_groups: list[dict[str, Any]] = []

    def step(self) -> None:
        """Update what has a gradient."""
        grads = {path: variable.value.grad for path, variable in self._variables.items()}
        with torch.no_grad():
            self.keras.update({path: grad for path, grad in grads.items() if grad is not None})
