"""Optimizers: neutral specs by TensorFlow's kernels, those of Keras as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loopcore.backend import Array, Leaves
from loopcore.errors import OptimizerError
from loopcore.handles.parameters import check_state
from loopcore.optimizers import OptimizerSpec
from loopcore_keras.models import constraints
from loopcore_keras.optimizers import KerasOptimizer, is_optimizer
from loopcore_tensorflow.arrays import Arrays, is_symbolic, to_numpy
from loopcore_tensorflow.autodiff_context import AutodiffContext
from loopcore_tensorflow.models import Models
from loopcore_tensorflow.step_parts import StepParts
from loopcore_tensorflow.update_rules import rule_of

_NAMES = ("learning_rate", "momentum", "weight_decay")


class Kernels:
    """An optimizer that updates variables by TensorFlow's kernels, as a neutral spec says, and keeps its state.

    Args:
        spec: what the user gave the learner.
        variables: what it trains, by path.
        constraints: what becomes of a variable after its update, by path.
    """

    fixed: Mapping[str, str] = {}

    def __init__(
        self, spec: OptimizerSpec, variables: Mapping[str, Any], constraints: Mapping[str, Callable[[Any], Any]]
    ) -> None:
        self.name = type(spec).__name__
        self._rule = rule_of(spec)
        self._variables = dict(variables)
        self._constraints = constraints
        # Hyperparameters are variables, so that a program reads those of now, and none compiles anew for another rate.
        dtype = next(iter(variables.values())).dtype
        self._hyper = {name: tf.Variable(tf.constant(value, dtype)) for name, value in self._rule.hyper.items()}
        self._slots = {
            path: tuple(tf.Variable(tf.zeros_like(variable)) for _ in self._rule.slots)
            for path, variable in variables.items()
        }
        # Each path has a count of its own: parameters without a gradient in some steps make fewer of them.
        self._counts = {path: tf.Variable(tf.constant(0, tf.int64)) for path in variables} if self._rule.slots else {}
        self._values = dict(self._rule.hyper)  # the same numbers for the host, which waits for no device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the hyperparameters that it has."""
        return tuple(self._hyper)

    def get(self, name: str) -> Any:
        """The present value of a hyperparameter; within a program the tensor that stands for it."""
        return self._values[name] if tf.executing_eagerly() else tf.identity(self._hyper[name])

    def set(self, name: str, value: Any) -> None:
        """Set a hyperparameter, for the next update."""
        # A tensor of a program has no number yet; the variable alone takes it.
        if isinstance(value, (int, float)):
            self._values[name] = float(value)
        self._hyper[name].assign(value)

    def update(self, grads: Leaves) -> None:
        """Update the variables of these paths by one step."""
        hyper = {name: tf.identity(variable) for name, variable in self._hyper.items()}
        for path, grad in grads.items():
            variable = self._variables[path]
            count = tf.cast(self._counts[path].assign_add(1), variable.dtype) if self._counts else tf.constant(0.0)
            # Parameters of several dtypes may share an optimizer, and kernels take one.
            typed_hyper = {name: tf.cast(value, variable.dtype) for name, value in hyper.items()}
            self._rule.apply(variable, self._slots[path], grad, typed_hyper, count)
            if path in self._constraints:
                variable.assign(self._constraints[path](variable))

    def state(self) -> dict[str, Any]:
        """All variables of its state, by name: counts of steps, and the slots of each path."""
        variables: dict[str, Any] = {f"{path}.count": count for path, count in self._counts.items()}
        for path, slots in self._slots.items():
            variables |= {f"{path}.{name}": slot for name, slot in zip(self._rule.slots, slots, strict=True)}
        return variables


class Optimizers:
    """The attached optimizers of one learner.

    Args:
        models: have the variables.
        arrays: makes tensors of gradients.
        context: says whether updates are compiled by themselves.
        parts: compiles them then.
    """

    def __init__(self, models: Models, arrays: Arrays, context: AutodiffContext, parts: StepParts) -> None:
        self._models = models
        self._arrays = arrays
        self._context = context
        self._parts = parts
        self._attached: list[tuple[Any, tuple[str, ...]]] = []
        self._owner: dict[str, int] = {}

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take optimizers with the paths they train.

        Raises:
            OptimizerError: one of another framework.
        """
        for _, paths in optimizers:
            self._models.check_trained(paths)
        self._attached = [(self._adapted(optimizer, paths), paths) for optimizer, paths in optimizers]
        # Compiled updates hold the variables of the optimizers before.
        self._parts.clear()
        self._owner = {path: number for number, (_, paths) in enumerate(self._attached) for path in paths}

    def _adapted(self, optimizer: Any, paths: tuple[str, ...]) -> Any:
        """What updates these paths as an optimizer of the user says: kernels for a spec, or the user's own of Keras.

        Raises:
            OptimizerError: it is of another framework.
        """
        if isinstance(optimizer, OptimizerSpec):
            variables = {path: self._models.variable(path) for path in paths}
            return Kernels(optimizer, variables, constraints({path: self._models.params[path] for path in paths}))
        if is_optimizer(optimizer):
            return KerasOptimizer(optimizer, {path: self._models.params[path] for path in paths})
        kind = type(optimizer)
        raise OptimizerError(
            f"the optimizer is a {kind.__module__}.{kind.__qualname__}, but the model is a TensorFlow one: pass "
            "loopcore.Adam(1e-3), or an optimizer of Keras such as keras.optimizers.Adam(1e-3)"
        )

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """None: an optimizer of Keras is made for no variables in particular."""
        return None

    def optimizer_name(self, optimizer: int) -> str:
        """The name of an optimizer for messages and logs."""
        return str(self._attached[optimizer][0].name)

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """Which hyperparameters an optimizer has, in a fixed order."""
        names = self._attached[optimizer][0].names
        return tuple(name for name in _NAMES if name in names)

    def get_hyper(self, optimizer: int, name: str) -> Any:
        """The present value of a hyperparameter; within a program the tensor that stands for it."""
        return self._attached[optimizer][0].get(name)

    def set_hyper(self, optimizer: int, name: str, value: Any) -> None:
        """Set a hyperparameter of an optimizer, for the next update.

        Raises:
            OptimizerError: Keras keeps it where a program would bake it in.
        """
        attached = self._attached[optimizer][0]
        if name in attached.fixed:
            raise OptimizerError(attached.fixed[name])
        attached.set(name, value)

    def export_optimizers(self) -> dict[str, Any]:
        """The variables of all optimizers, by number and name."""
        return {name: to_numpy(_plain(variable)) for name, variable in self._variables().items()}

    def import_optimizers(self, state: Mapping[str, Any]) -> None:
        """Go on from what `export_optimizers` gave.

        Raises:
            ValueError: it is that of other optimizers.
        """
        check_state(self.export_optimizers(), state)
        for name, variable in self._variables().items():
            variable.assign(state[name])

    def _variables(self) -> dict[str, Any]:
        """The variables of all optimizers, by number of the optimizer and name."""
        return {
            f"{n}.{name}": v for n, (optimizer, _) in enumerate(self._attached) for name, v in optimizer.state().items()
        }

    def update(self, grads: Leaves, apply: Any) -> Any:
        """Make one step of every optimizer that trains one of these paths.

        Args:
            grads: gradients by path.
            apply: whether to; where a tensor of a program says so, the update is under ``tf.cond``.

        Returns:
            Whether it happened; a tensor if that decides.

        Raises:
            OptimizerError: no optimizer trains one of the paths.
        """
        symbolic = is_symbolic(apply)
        if apply is not True and not symbolic and not bool(apply):
            return False
        frozen = [path for path in grads if path not in self._owner]
        if frozen:
            raise OptimizerError(f"no optimizer trains {', '.join(frozen[:5])}: leave these out of the gradients")
        tensors = {path: self._arrays.tensor(grad, self._models.variable(path).dtype) for path, grad in grads.items()}
        if symbolic:
            return tf.cond(apply, lambda: self._step(tensors), lambda: tf.constant(False))
        # The paths are in the key: another selection of parameters is another program.
        if self._context.parts:
            self._parts.run((id(self), *tensors), self._step, tensors)
        else:
            self._step(tensors)
        return True

    def _step(self, grads: Leaves) -> Array:
        """Hand each optimizer its gradients; returns True as a tensor, which ``tf.cond`` and programs need."""
        by_optimizer: dict[int, Leaves] = {}
        for path, grad in grads.items():
            by_optimizer.setdefault(self._owner[path], {})[path] = grad
        for number, own_grads in by_optimizer.items():
            self._attached[number][0].update(own_grads)
        return tf.constant(True)


def _plain(variable: Any) -> Any:
    """A variable as TensorFlow knows it."""
    return variable if isinstance(variable, tf.Variable) else variable.value
