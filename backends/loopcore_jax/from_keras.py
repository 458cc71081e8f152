"""Models and layers of Keras 3 on its JAX backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import keras
import numpy as np

from loopcore.backend import Leaves, Tree
from loopcore_keras.models import KerasModel
from loopcore_keras.optimizers import fixed_reasons, own_names


class Keras:
    """A model or layer: trained are its trainable variables, its state are its other weights, both by path."""

    takes_key = keeps_arrays = True
    state_prefix = False

    def __init__(self, layer: Any, title: str) -> None:
        self.owner = layer
        self._model = KerasModel(layer, title)
        self.params: Tree = {path: variable.value for path, variable in self._model.params.items()}
        self.state: Tree = {path: variable.value for path, variable in self._model.buffers.items()}

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Call it with these arrays in place of its variables."""
        seeds = [jax.random.key_data(jax.random.fold_in(key, number)) for number in range(len(self._model.seeds))]
        return self._model.call_apart({**params, **state}, seeds, args, kwargs, training)

    def native(self, params: Tree, state: Tree) -> Any:
        """The user's model, with these arrays written into it."""
        for path, value in {**params, **state}.items():
            self._model.arrays[path].assign(value)
        return self._model.layer

    def variables(self) -> tuple[Tree, Tree]:
        """The variables of the user's model."""
        return dict(self._model.params), dict(self._model.buffers)

    def present(self) -> tuple[Tree, Tree]:
        """The arrays of the variables of the user's model."""
        held = ({path: variable.value for path, variable in part.items()} for part in self.variables())
        return tuple(held)  # type: ignore[return-value]


class KerasRule:
    """An optimizer of Keras as a function of its state; the user's own object is not touched.

    Args:
        optimizer: the user's.
        params: what it trains, by path.

    Attributes:
        name: of its class.
        names: what Keras calls its hyperparameters.
        fixed: why a hyperparameter cannot be set, by its name.
    """

    def __init__(self, optimizer: Any, params: Leaves) -> None:
        self.name = type(optimizer).__name__
        self._paths = tuple(params)
        self._optimizer = type(optimizer).from_config(optimizer.get_config())
        stand_ins = [keras.Variable(np.zeros(p.shape, p.dtype), name=f"p{n}") for n, p in enumerate(params.values())]
        self._optimizer.build(stand_ins)
        self.names = own_names(self._optimizer)
        self.fixed = fixed_reasons(self._optimizer, self.names)
        self._variables = list(self._optimizer.variables)
        self._rate = next((n for n, v in enumerate(self._variables) if v is self._optimizer.learning_rate), None)

    def init(self) -> list[Any]:
        """Its first state."""
        return [jax.numpy.array(variable.value) for variable in self._variables]

    def value(self, name: str) -> float:
        """A hyperparameter as the user gave it."""
        return float(getattr(self._optimizer, self.names[name]))

    def step(
        self, grads: Leaves, state: list[Any], params: Leaves, hyper: Mapping[str, Any]
    ) -> tuple[Leaves, list[Any]]:
        """Parameters and state after one step; what has no gradient stays as it is, and so does what is kept for it."""
        if self._rate is not None and "learning_rate" in hyper:
            rate = jax.numpy.asarray(hyper["learning_rate"], state[self._rate].dtype)
            state = [rate if number == self._rate else value for number, value in enumerate(state)]
        given = [grads[path] if path in grads else jax.numpy.zeros_like(params[path]) for path in self._paths]
        moved, after = self._optimizer.stateless_apply(state, given, [params[path] for path in self._paths])
        found = {path: value for path, value in zip(self._paths, moved, strict=True) if path in grads}
        idle = tuple(f"/p{number}_" for number, path in enumerate(self._paths) if path not in grads)
        kept = [any(mark in variable.path for mark in idle) for variable in self._variables]
        return found, [old if keep else new for keep, old, new in zip(kept, state, after, strict=True)]
