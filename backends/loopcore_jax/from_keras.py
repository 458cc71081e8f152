"""Models and layers of Keras 3 on its JAX backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import keras
import numpy as np

from loopcore.backend import Array, Leaves, Tree
from loopcore.errors import BackendError
from loopcore_jax.array_store import Mirror
from loopcore_jax.arrays import copied
from loopcore_keras.models import KerasModel, constraints
from loopcore_keras.optimizers import fixed_reasons, own_names, prepare


class Keras:
    """A model or layer: trained are its trainable variables, its state are its other weights, both by path.

    Attributes:
        owner: the user's model.
        keras_variables: what holds its parameters and its state, by path.
        constraints: what becomes of a parameter after an update, by path.
    """

    takes_key = keeps_arrays = True
    state_prefix = False

    def __init__(self, layer: Any, title: str) -> None:
        self.owner = layer
        self._model = KerasModel(layer, title)
        self.params: Tree = {path: variable.value for path, variable in self._model.params.items()}
        self.state: Tree = {path: variable.value for path, variable in self._model.buffers.items()}
        self.keras_variables: dict[str, Any] = self._model.arrays
        self.constraints = constraints(self._model.params)

    @property
    def frozen(self) -> frozenset[str]:
        """Paths of the variables that the user has frozen by now."""
        return self._model.frozen

    @property
    def eager(self) -> bool:
        """Whether the user asked for steps without a program, by ``run_eagerly``."""
        return self._model.eager

    def check_trained(self) -> None:
        """Refuse to train a model that needs a scaled loss, as one in float16 does."""
        self._model.check_trained()

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Call the model with these arrays in place of its variables; returns the result and its new state."""
        # Each random layer has a seed of its own, and the key is another one at every call.
        seeds = [jax.random.key_data(jax.random.fold_in(key, number)) for number in range(len(self._model.seeds))]
        return self._model.call_apart({**params, **state}, seeds, args, kwargs, training)

    def native(self, params: Tree, state: Tree) -> Any:
        """Write arrays into the variables of the user's model, and return it."""
        for path, value in {**params, **state}.items():
            self._model.arrays[path].assign(value)
        return self._model.layer

    def copy(self, params: Tree, state: Tree) -> Any:
        """Refuse: a model of Keras cannot be copied cheaply, and the user's own variables hold no tracers."""
        raise BackendError(
            "learner.model.native of a Keras model on JAX, in an objective or a compiled step, would have the weights "
            "of before: call learner.model(x), learner.model.apply(params, x), or read learner.params.value"
        )

    def variables(self) -> tuple[Tree, Tree]:
        """The variables of the user's model."""
        return dict(self._model.params), dict(self._model.buffers)

    def present(self) -> tuple[Tree, Tree]:
        """The arrays of the variables of the user's model."""
        arrays = ({path: variable.value for path, variable in part.items()} for part in self.variables())
        return tuple(arrays)  # type: ignore[return-value]


class KerasRule:
    """An optimizer of Keras as a function of its state, which the user's own object shows.

    Args:
        optimizer: the user's.
        params: what it trains, by path.
        variables: of a model of Keras its variables, by path.

    Attributes:
        name: of its class.
        names: what Keras calls its hyperparameters.
        fixed: why a hyperparameter cannot be set, by its name.
    """

    def __init__(self, optimizer: Any, params: Leaves, variables: Mapping[str, Any]) -> None:
        self.name = type(optimizer).__name__
        self._optimizer = optimizer
        self._trained = {
            path: variables[path] if path in variables else _stand_in(path, array) for path, array in params.items()
        }
        # Keras makes the slots of an optimizer for variables: parameters of other libraries need stand-ins.
        prepare(optimizer, self._trained)
        self.names = own_names(optimizer)
        self.fixed = fixed_reasons(optimizer, self.names)
        self._variables = list(optimizer.variables)
        # Keras counts the learning rate among the variables of an optimizer, unless a schedule computes it.
        self._rate = next((n for n, v in enumerate(self._variables) if v is optimizer.learning_rate), None)
        self._mirror = Mirror()

    def init(self) -> list[Any]:
        """The state that the optimizer has by now, as copies."""
        state = [copied(variable.value) for variable in self._variables]
        for number, (array, variable) in enumerate(zip(state, self._variables, strict=True)):
            self._mirror.agree(number, array, variable.value)
        return state

    def value(self, name: str) -> float:
        """The value of a hyperparameter as the user gave it."""
        return float(getattr(self._optimizer, self.names[name]))

    def show(self, state: list[Any], hyper: Mapping[str, Any]) -> None:
        """Write the state and the present learning rate into the user's own object."""
        for number, (array, variable) in enumerate(zip(state, self._variables, strict=True)):
            if number == self._rate and "learning_rate" in hyper:  # the state has it after the next update
                rate = np.asarray(hyper["learning_rate"], array.dtype)
                if rate != np.asarray(variable.value):
                    variable.assign(jax.numpy.asarray(rate))
            elif self._mirror.user_array(number, array) is None:
                variable.assign(copied(array))
            self._mirror.agree(number, array, variable.value)

    def take(self, state: list[Any]) -> tuple[list[Any], dict[str, float]]:
        """Read what the user wrote into his own object since `show`.

        Args:
            state: the learner's.

        Returns:
            The state with these values, and the hyperparameters among them.
        """
        new_state, hyper = list(state), dict[str, float]()
        for number, variable in enumerate(self._variables):
            value = variable.value
            if not self._mirror.is_user_array(number, value):
                new_state[number] = copied(value)
                self._mirror.agree(number, new_state[number], value)
                if number == self._rate:
                    hyper["learning_rate"] = float(value)
        return new_state, hyper

    def step(
        self, grads: Leaves, state: list[Any], params: Leaves, hyper: Mapping[str, Any]
    ) -> tuple[Leaves, list[Any]]:
        """Compute parameters and state after one step.

        What has no gradient stays as it is, and so does what the state has for it.
        """
        # The rate is a variable of Keras, but a hyperparameter of the learner, whose value wins.
        if self._rate is not None and "learning_rate" in hyper:
            rate = jax.numpy.asarray(hyper["learning_rate"], state[self._rate].dtype)
            state = [rate if number == self._rate else value for number, value in enumerate(state)]
        # A variable of the model and the learner's array for it, and so for each variable of the state.
        present = [(variable, params[path]) for path, variable in self._trained.items()]
        mapping = [*present, *zip(self._variables, state, strict=True)]
        trained = {path: variable for path, variable in self._trained.items() if path in grads}
        # In this scope Keras assigns to no variable: it reads the arrays given here, and what it writes stays in it.
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._optimizer.apply([grads[path] for path in trained], list(trained.values()))
        new_params = {path: scope.get_current_value(variable) for path, variable in trained.items()}
        return new_params, [scope.get_current_value(variable) for variable in self._variables]


def _stand_in(path: str, array: Array) -> Any:
    """Make a variable of Keras for a parameter of another library; only its shape, dtype and name matter."""
    return keras.Variable(np.zeros(array.shape, array.dtype), name=path.replace("/", "."))
