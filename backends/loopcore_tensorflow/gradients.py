"""Gradients of objectives and of functions, one inside the other: each has a tape of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import optree
import tensorflow as tf

from loopcore.backend import Array, Leaves, Scopes
from loopcore.backend.objectives import argument_names, kind_error, shape_error, unreached
from loopcore.errors import GradientError, LossError
from loopcore_tensorflow.arrays import Arrays, dense
from loopcore_tensorflow.autodiff_context import AutodiffContext
from loopcore_tensorflow.models import Models


class Gradients:
    """Differentiates closures with respect to parameters, and functions of arrays.

    Args:
        models: have the variables of the parameters.
        arrays: makes tensors of what a function is differentiated by.
        context: has the open tapes of this thread.
    """

    def __init__(self, models: Models, arrays: Arrays, context: AutodiffContext) -> None:
        self._models = models
        self._arrays = arrays
        self._context = context

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure by a tape.

        Args:
            objective: returns a scalar loss, or a tuple of them.
            wrt: groups of paths of parameters.
            at: values by path that the objective reads in place of parameters.
            scopes: left alone, since tensors that the objective wrote there outlive the tape as plain values.

        Returns:
            For each loss, for each group of paths, the gradients by path; zeros where a loss does not depend on one.

        Raises:
            GradientError: no loss depends on any of the parameters.
            LossError: the objective returned something else than losses.
        """
        paths = tuple(dict.fromkeys(chain(*wrt)))
        stand_ins = self._stand_ins(paths, at)
        sources = [stand_ins[path] if path in stand_ins else self._models.variable(path) for path in paths]
        # Only the sources are watched, so that gradients by anything else take no memory. The tape is persistent: there
        # is a backward pass for each loss, and `is_differentiated` asks it while it still records.
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with self._context.objective(tape, sources, stand_ins), tape:
            tape.watch(sources)
            losses = scalars(objective())
        rows = [tape.gradient(loss, sources) for loss in losses]
        if all(gradient is None for row in rows for gradient in row):
            raise GradientError(unreached(len(losses), paths))
        return [_grouped(paths, row, sources, wrt) for row in rows]

    def _stand_ins(self, paths: Sequence[str], at: Leaves | None) -> Leaves:
        """Tensors that the objective reads in place of parameters: the values of ``at``, and copies of outer ones.

        What stands in for a parameter in an outer objective gets a copy here, since this gradient must count only what
        this objective reads, not what the outer one computed from it before.
        """
        stand_ins = {path: self._value_at(path, value) for path, value in (at or {}).items()}
        for path in paths:
            outer = self._context.stand_ins.get(path)
            if path not in stand_ins and outer is not None:
                stand_ins[path] = tf.identity(outer)
        return stand_ins

    def _value_at(self, path: str, value: Any) -> Array:
        """A value of ``at=`` as a new tensor in the dtype of its parameter."""
        if path not in self._models.params:
            raise GradientError(f"at= has a value for {path}, which is no parameter of the models")
        return tf.identity(self._arrays.tensor(value, self._models.params[path].dtype))

    def grad(self, fn: Callable[..., Any], scopes: Scopes) -> Callable[..., Any]:
        """Make a function that returns the gradient of a scalar function of trees of arrays.

        It can be differentiated again inside an objective, or by another `grad`.
        """

        def gradients(*args: Any, **kwargs: Any) -> Any:
            if not args:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            leaves, spec = optree.tree_flatten(cast(Any, args), none_is_leaf=True)
            names = list(argument_names(args, partial(optree.tree_leaves, none_is_leaf=True)))
            sources = [self._argument(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
            # Persistent for `is_differentiated`, as in `gradient`.
            tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
            with self._context.objective(tape, sources, {}), tape:
                tape.watch(sources)
                losses = scalars(fn(*optree.tree_unflatten(spec, sources), **kwargs))
            if len(losses) > 1:
                raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
            row = tape.gradient(losses[0], sources)
            if all(gradient is None for gradient in row):
                raise GradientError(unreached(1, names))
            plain = [_or_zeros(gradient, source) for gradient, source in zip(row, sources, strict=True)]
            trees = cast("tuple[Any, ...]", optree.tree_unflatten(spec, plain))
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def is_differentiated(self, leaf: Any) -> bool:
        """Whether a tensor depends on what an open objective is differentiated by."""
        if not isinstance(leaf, tf.Tensor):
            return False
        # A tape cannot be asked whether it knows a tensor, only for its gradients.
        with self._context.unrecorded():
            rows = [tape.gradient(leaf, sources) for tape, sources in self._context.tapes]
        return any(gradient is not None for row in rows for gradient in row)

    def _argument(self, leaf: Any, name: str) -> Array:
        """A leaf of the arguments of a function as a tensor of its own.

        Args:
            leaf: what the caller passed.
            name: what messages call it.

        Raises:
            GradientError: it has no gradient.
        """
        value = self._arrays.tensor(leaf) if type(leaf) is float else self._arrays.leaf(leaf)
        if isinstance(value, tf.Tensor) and (value.dtype.is_floating or value.dtype.is_complex):
            # A copy: where the function reaches the same array by another way, that one is a constant.
            return tf.identity(value)
        description = f"an array of {value.dtype.name}" if isinstance(value, tf.Tensor) else f"a {type(leaf).__name__}"
        raise GradientError(
            f"{name} of the function given to grad is {description}, which has no gradient: close over it, as in "
            "grad(lambda x: fn(x, labels))(x)"
        )


def scalars(result: Any) -> list[Array]:
    """List the losses an objective returned, one or a tuple of them.

    Raises:
        LossError: something else came.
    """
    if isinstance(result, (tf.Tensor, tf.Variable)):
        # A variable has no ``ndim``.
        if result.ndim if isinstance(result, tf.Tensor) else result.shape.rank:
            raise shape_error(result.shape)
        if not result.dtype.is_floating:
            raise LossError(
                f"the objective returned a scalar of {result.dtype.name}, which has no gradient: return a float"
            )
        return [result]
    if isinstance(result, (tuple, list)) and result:
        return [scalars(part)[0] for part in cast("Sequence[Any]", result)]
    raise kind_error(result, "a scalar array is needed: return the 0-d array itself, without .numpy() or float()")


def _grouped(
    paths: Sequence[str], row: Sequence[Any], sources: Sequence[Any], wrt: Sequence[tuple[str, ...]]
) -> list[Leaves]:
    """The gradients of one loss by path, a dict for each group of paths."""
    leaves = {path: _or_zeros(gradient, source) for path, gradient, source in zip(paths, row, sources, strict=True)}
    return [{path: leaves[path] for path in group} for group in wrt]


def _or_zeros(gradient: Any, source: Any) -> Array:
    """A gradient as a dense tensor; TensorFlow has None where the loss does not depend on the source."""
    return tf.zeros_like(source) if gradient is None else dense(gradient)
