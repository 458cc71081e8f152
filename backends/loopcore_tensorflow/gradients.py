"""Gradients of objectives and of functions, one inside the other: each has a tape of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import optree
import tensorflow as tf

from loopcore.backend import Array, Leaves
from loopcore.errors import GradientError, LossError
from loopcore_tensorflow.arrays import Arrays, dense
from loopcore_tensorflow.autodiff_context import AutodiffContext
from loopcore_tensorflow.models import Models


class Gradients:
    """Differentiates closures with respect to parameters, and functions of arrays."""

    def __init__(self, models: Models, arrays: Arrays, context: AutodiffContext) -> None:
        self._models = models
        self._arrays = arrays
        self._context = context

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure: for each loss, for each group of paths, gradients by path."""
        models = self._models
        paths = tuple(dict.fromkeys(chain(*wrt)))
        stand_ins = {path: self._stand_in(path, value) for path, value in (at or {}).items()}
        for path in paths:  # what stands in for it in an outer objective must count only where this one reads it
            outer = self._context.stand_ins.get(path)
            if path not in stand_ins and outer is not None:
                stand_ins[path] = tf.identity(outer)
        sources = [stand_ins[path] if path in stand_ins else models.variable(path) for path in paths]
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with self._context.objective(tape, sources, stand_ins), tape:
            tape.watch(sources)
            losses = scalars(objective())
        rows = [tape.gradient(loss, sources) for loss in losses]
        if all(gradient is None for row in rows for gradient in row):
            raise GradientError(_unreached(len(losses), paths))
        plain = [
            {path: _or_zeros(gradient, source) for path, gradient, source in zip(paths, row, sources, strict=True)}
            for row in rows
        ]
        return [[{path: row[path] for path in group} for group in wrt] for row in plain]

    def _stand_in(self, path: str, value: Any) -> Array:
        if path not in self._models.params:
            raise GradientError(f"at= has a value for {path}, which is no parameter of the models")
        return tf.identity(self._arrays.tensor(value, self._models.params[path].dtype))

    def grad(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Gradient of a scalar function of trees of arrays; can be differentiated again inside an objective."""

        def gradients(*args: Any, **kwargs: Any) -> Any:
            if not args:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            leaves, spec = optree.tree_flatten(cast(Any, args), none_is_leaf=True)
            names = list(_names(args))
            sources = [self._argument(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
            tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
            with self._context.objective(tape, sources, {}), tape:
                tape.watch(sources)
                losses = scalars(fn(*optree.tree_unflatten(spec, sources), **kwargs))
            if len(losses) > 1:
                raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
            row = tape.gradient(losses[0], sources)
            if all(gradient is None for gradient in row):
                raise GradientError(_unreached(1, names))
            plain = [_or_zeros(gradient, source) for gradient, source in zip(row, sources, strict=True)]
            trees = cast("tuple[Any, ...]", optree.tree_unflatten(spec, plain))
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def is_differentiated(self, leaf: Any) -> bool:
        """Whether a tensor depends on what an open objective is differentiated by."""
        if not isinstance(leaf, tf.Tensor):
            return False
        with self._context.unrecorded():
            rows = [tape.gradient(leaf, sources) for tape, sources in self._context.tapes]
        return any(gradient is not None for row in rows for gradient in row)

    def _argument(self, leaf: Any, name: str) -> Array:
        value = self._arrays.tensor(leaf) if type(leaf) is float else self._arrays.leaf(leaf)
        if isinstance(value, tf.Tensor) and (value.dtype.is_floating or value.dtype.is_complex):
            return tf.identity(value)  # where the function reaches the same array by another way, it is a constant
        description = f"an array of {value.dtype.name}" if isinstance(value, tf.Tensor) else f"a {type(leaf).__name__}"
        raise GradientError(
            f"{name} of the function given to grad is {description}, which has no gradient: close over it, as in "
            "grad(lambda x: fn(x, labels))(x)"
        )


def scalars(result: Any) -> list[Array]:
    """The losses an objective returned, one or a tuple of them.

    Raises:
        LossError: something else came.
    """
    if isinstance(result, (tf.Tensor, tf.Variable)):
        if result.ndim if isinstance(result, tf.Tensor) else result.shape.rank:
            raise LossError(
                f"the objective returned a loss of shape {tuple(result.shape)}, a scalar is needed: use "
                'reduction="mean" in the loss, or learner.xp.mean(loss)'
            )
        if not result.dtype.is_floating:
            raise LossError(
                f"the objective returned a scalar of {result.dtype.name}, which has no gradient: return a float"
            )
        return [result]
    if isinstance(result, (tuple, list)) and result:
        return [scalars(part)[0] for part in cast("Sequence[Any]", result)]
    if result is None:
        raise LossError("the objective returned nothing: end it with return state.loss")
    if isinstance(result, (int, float)):
        raise LossError(
            f"the objective returned the number {result!r}, a scalar array is needed: return the 0-d array itself, "
            "without .numpy() or float()"
        )
    raise LossError(f"the objective returned a {type(result).__name__}: return a scalar, or a tuple of scalars")


def _or_zeros(gradient: Any, source: Any) -> Array:
    return tf.zeros_like(source) if gradient is None else dense(gradient)


def _names(args: tuple[Any, ...]) -> Iterator[str]:
    """What messages call the leaves of the arguments."""
    for position, arg in enumerate(args):
        leaves = optree.tree_leaves(arg, none_is_leaf=True)
        is_leaf = len(leaves) == 1 and leaves[0] is arg
        yield from (
            f"argument {position}" if is_leaf else f"leaf {number} of argument {position}"
            for number in range(len(leaves))
        )


def _unreached(losses: int, names: Sequence[str]) -> str:
    subject = "the loss does" if losses == 1 else "the losses do"
    listing = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"{subject} not depend on {listing}: compute it inside the objective from learner.model(...); what was "
        "computed before it began, values cut by stop_gradient and integers are constants"
    )
