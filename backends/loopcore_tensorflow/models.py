"""The models of one learner: their variables by path, and how to call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from loopcore.backend import Array, Kind, Leaves, Tree
from loopcore.errors import UnknownModelError
from loopcore_keras.models import KerasModel, is_model
from loopcore_tensorflow import modules
from loopcore_tensorflow.arrays import Arrays
from loopcore_tensorflow.autodiff_context import AutodiffContext
from loopcore_tensorflow.pairs import BoundPair
from loopcore_tensorflow.random import folded, typed
from loopcore_tensorflow.step_parts import StepParts

Bound: TypeAlias = KerasModel | modules.Module | BoundPair


class Models:
    """The bound models of one learner.

    Args:
        arrays: makes tensors; gets its dtype from the parameters.
        context: has what stands in for parameters in this thread.
        parts: compiles calls of a step that is cut.

    Attributes:
        params: trainable variables of all models, by full path, as their library has them.
        buffers: their other variables.
    """

    def __init__(self, arrays: Arrays, context: AutodiffContext, parts: StepParts) -> None:
        self._arrays = arrays
        self._parts = parts
        self._context = context
        self._bound: dict[str, Bound] = {}
        self.params: dict[str, Any] = {}
        self.buffers: dict[str, Any] = {}

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the models. Sets the dtype of `Arrays` from their first parameter.

        Raises:
            UnknownModelError: one is of no kind that TensorFlow's users know, or has no variables yet.
        """
        self._bound, self.params, self.buffers = {}, {}, {}
        self._parts.clear()
        dtype: Any = None
        # Pairs come last: their NumPy arrays, float64 by habit, get the dtype of a model that has variables.
        for name, model in sorted(models.items(), key=lambda item: is_pair(item[1])):
            self._bound[name] = bound = bind_model(name, model, dtype, self._arrays)
            dtype = dtype or next((tf.as_dtype(v.dtype) for v in bound.params.values()), None)
        self._bound = {name: self._bound[name] for name in models}  # in the user's own order again
        for name, bound in self._bound.items():
            self.params |= {_full(name, bound, path): variable for path, variable in bound.params.items()}
            self.buffers |= {_full(name, bound, path): variable for path, variable in bound.buffers.items()}
        self._arrays.dtype = dtype or tf.float32

    def native(self, model: str) -> Any:
        """The user's own object, whose variables the learner trains; a pair or a tree has copies."""
        return self._bound[model].layer

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """Full paths of the variables of each model."""
        return {
            name: tuple(_full(name, bound, path) for path in _part(bound, kind)) for name, bound in self._bound.items()
        }

    def frozen_by_user(self) -> frozenset[str]:
        """Full paths of what the user froze with ``layer.trainable = False`` of Keras."""
        return frozenset(_full(name, bound, path) for name, bound in self._keras() for path in bound.frozen)

    def eager(self) -> bool:
        """Whether the user asked for steps without a program, by ``run_eagerly`` of a Keras model or of TensorFlow."""
        return tf.config.functions_run_eagerly() or any(bound.eager for _, bound in self._keras())

    def check_trained(self, paths: Iterable[str]) -> None:
        """Refuse to train a model that cannot be trained here.

        Raises:
            OptimizerError: says what to write.
        """
        trained = set(paths)
        for name, bound in self._keras():
            if not trained.isdisjoint(_full(name, bound, path) for path in bound.params):
                bound.check_trained()

    def _keras(self) -> list[tuple[str, KerasModel]]:
        """The models of Keras, each with its name."""
        return [(name, bound) for name, bound in self._bound.items() if isinstance(bound, KerasModel)]

    # -- weights -----------------------------------------------------------------------------------------------

    def variable(self, path: str) -> Any:
        """The variable of a path, as TensorFlow knows it and not as Keras wraps it."""
        variable = self.params[path] if path in self.params else self.buffers[path]
        return variable if isinstance(variable, tf.Variable) else variable.value

    def array(self, path: str) -> Array:
        """The present value: what stands in for it in the running objective, else that of the variable."""
        context = self._context
        # Buffers are in ``states`` and parameters in ``stand_ins``, each only where an objective has another value.
        present = context.states.get(path) if path in context.states else context.stand_ins.get(path)
        return tf.identity(self.variable(path)) if present is None else present

    def get(self, paths: Iterable[str]) -> Leaves:
        """The present values by path, which are also a snapshot, since tensors never change."""
        return {path: self.array(path) for path in paths}

    snapshot = get

    def set(self, leaves: Mapping[str, Any]) -> None:
        """Copy values by full path into the variables."""
        for path, value in leaves.items():
            variable = self.variable(path)
            # What a model left in an open objective would hide the new value from `array`.
            self._context.states.pop(path, None)
            variable.assign(self._arrays.tensor(value, variable.dtype))

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Turn leaves by relative path into what users of the model know: the dict itself, or the user's tree."""
        bound = self._bound[model]
        return bound.pack(kind, leaves) if isinstance(bound, BoundPair) else leaves

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """Sort the leaves of a model's own tree by relative path, the inverse of `pack`.

        Raises:
            ValueError: the structure differs.
        """
        bound = self._bound[model]
        if isinstance(bound, BoundPair):
            return bound.unpack(kind, tree)
        names = _part(bound, kind).keys()
        if not isinstance(tree, Mapping) or tree.keys() != names:
            keys = list(tree) if isinstance(tree, Mapping) else type(tree).__name__
            raise ValueError(f"expected a dict with the keys {list(names)}, got {keys}")
        return tree if type(tree) is dict else dict(tree)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model with what stands in for its parameters.

        Args:
            model: its name.
            args: of the call.
            kwargs: of the call.
            training: the mode.
            update_state: whether it keeps the state that the call leaves, such as running statistics.
        """
        bound, context = self._bound[model], self._context
        stand_ins = _relative(model, bound, context.stand_ins)
        if isinstance(bound, BoundPair):
            result, state = self._call_pair(model, bound, stand_ins, args, kwargs, training)
            if update_state:
                self._keep(bound, state)
            return result
        seeds = self._seeds(bound)
        # Nothing stands in and the state may change: the model runs on its own variables, which costs the least.
        if update_state and not stand_ins:
            for variable, seed in zip(bound.seeds, seeds, strict=True):
                # Layers of Keras draw by the state of their seed generators, which each call sets.
                variable.assign(tf.cast(seed, variable.dtype))
            if context.parts:
                key = (id(bound), training)
                return self._parts.run(key, lambda args, kwargs: bound.call(args, kwargs, training), args, kwargs)
            return bound.call(args, kwargs, training)
        result, after = bound.call_apart(stand_ins, seeds, args, kwargs, training)
        if update_state:
            for path, value in after.items():
                bound.buffers[path].assign(value)
        return result

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its state stays."""
        bound = self._bound[model]
        tensors = {path: self._arrays.tensor(leaf, self.variable(path).dtype) for path, leaf in leaves.items()}
        values = _relative(model, bound, {**self._context.stand_ins, **tensors})
        if isinstance(bound, BoundPair):
            return self._call_pair(model, bound, values, args, kwargs, training)[0]
        return bound.call_apart(values, self._seeds(bound), args, kwargs, training)[0]

    def _call_pair(
        self,
        model: str,
        bound: BoundPair,
        values: Leaves,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        training: bool,
    ) -> tuple[Any, Leaves]:
        """Call a function of the user; never as a program of its own, since nobody knows what else it reads."""
        context, rng = self._context, None
        if bound.takes_rng:
            context.calls += 1
            rng = typed(context.key, context.calls)
        states = {path: context.states[full] for path, full in bound.full.items() if full in context.states}
        return bound.call_with({**states, **values}, rng, args, kwargs, training)

    def _keep(self, bound: BoundPair, state: Leaves) -> None:
        """Assign the new state of a pair; an open objective also keeps the tensors, which its tape knows."""
        for path, value in state.items():
            if self._context.tapes:
                self._context.states[bound.full[path]] = value
            bound.buffers[path].assign(value)

    def _seeds(self, bound: KerasModel | modules.Module) -> list[Array]:
        """Make the seeds that the random layers of a call draw by; each call of a step gets others."""
        if not bound.seeds:
            return []
        self._context.calls += 1
        seed = typed(self._context.key, self._context.calls)
        return [folded(seed, number) for number in range(len(bound.seeds))]


def is_pair(model: Any) -> bool:
    """Whether it may be ``(apply_fn, params[, state])`` or a tree of arrays."""
    return isinstance(model, (tuple, list, Mapping, np.ndarray, tf.Tensor, tf.Variable))


def bind_model(name: str, model: Any, dtype: Any, arrays: Arrays) -> Bound:
    """Bind one model: find its variables, or make them of its arrays.

    Args:
        name: of the model, ``""`` if it is the only one.
        model: what the user gave.
        dtype: what NumPy arrays of a pair become; None keeps theirs.
        arrays: knows the device.

    Raises:
        UnknownModelError: it is none that TensorFlow takes.
    """
    title = f"the model {name!r}" if name else "the model"
    if is_model(model):
        return KerasModel(model, title)
    if isinstance(model, tf.Module):
        return modules.Module(model, title)
    if is_pair(model):
        return BoundPair(model, name, dtype, arrays)
    hint = f": write {model.__name__}(...)" if isinstance(model, type) else ""
    raise UnknownModelError(
        f"{title} is a {type(model).__name__}{hint}. The TensorFlow backend takes a Keras model or layer, a tf.Module, "
        "(apply_fn, params[, state]), or a tree (dict, list, tuple) of floating arrays"
    )


def _part(bound: Bound, kind: Kind) -> dict[str, Any]:
    """The parameters or the buffers of a model, by relative path."""
    return bound.params if kind == "params" else bound.buffers


def _full(name: str, bound: Bound, path: str) -> str:
    """The path that the learner has for a relative one: with the name of the model, if there are several."""
    if isinstance(bound, BoundPair):
        return bound.full[path]
    return f"{name}.{path}" if name else path


def _relative(model: str, bound: Bound, values: Leaves) -> Leaves:
    """Of values by full path those for parameters of one model, by relative path."""
    if not values:
        return {}
    return {path: values[full] for path in bound.params if (full := _full(model, bound, path)) in values}
