"""Gradients of objectives and of functions, one inside the other: each is one ``jax.vjp``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp

from loopcore.backend import Array, CutError, Leaves, Scopes
from loopcore.backend.objectives import argument_names, kind_error, shape_error, unreached
from loopcore.errors import GradientError, LossError
from loopcore_jax.array_store import CurrentArrays
from loopcore_jax.arrays import Arrays, is_traced, transform

Pullback: TypeAlias = Callable[[list[Array]], tuple[list[Array]]]
_LOOKS = 16  # at what an objective reaches, which may be another thing at every eager step


class Gradients:
    """Differentiates closures with respect to parameters, and functions of arrays.

    JAX differentiates functions of arrays, and an objective is a closure that reads parameters. So the closure runs as
    a function of tracers, which stand for the parameters as long as it does, and what it wrote is a further result.

    Args:
        current: gets the tracers.
        arrays: makes arrays of what a function is differentiated by.
    """

    def __init__(self, current: CurrentArrays, arrays: Arrays) -> None:
        self._current = current
        self._arrays = arrays
        self._dependence: dict[str, bool] = {}  # whether some loss depended on a path that gradients were taken by
        self._looks: Counter[Any] = Counter()  # how often the dependence was looked up, by objective

    def unreached(self) -> tuple[str, ...]:
        """Paths that gradients were taken by, and that no objective has reached."""
        params = self._current.store.params
        return tuple(path for path, depends in self._dependence.items() if not depends and path in params)

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure.

        Args:
            objective: returns a scalar loss, or a tuple of them.
            wrt: groups of paths of parameters.
            at: values by path that the objective reads in place of parameters.
            scopes: what the objective may write arrays into; none of these is a tracer afterwards.

        Returns:
            For each loss, for each group of paths, the gradients by path.
        """
        return [groups for groups, _ in self.piece(objective, wrt, at, scopes, (), lambda _: None)]

    def piece(
        self,
        objective: Callable[[], Any],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Scopes,
        inputs: Sequence[Array],
        receive: Callable[[list[Array]], None],
    ) -> list[tuple[list[Leaves], list[Array]]]:
        """Differentiate the last piece of an objective that is cut, by the inputs of the piece too.

        Args:
            objective: the rest of it.
            wrt: as for `gradient`.
            at: as for `gradient`.
            scopes: as for `gradient`.
            inputs: what the piece before handed on.
            receive: gets the tracers of the inputs before the objective runs.

        Returns:
            For each loss the gradients by parameters, as `gradient` returns them, and those by the inputs.
        """
        current = self._current
        outer = current.context.traced or {}
        fixed = {path: jnp.asarray(value, current.store.params[path].dtype) for path, value in (at or {}).items()}
        paths = tuple(dict.fromkeys(chain(*wrt)))
        # In an outer objective a value is a tracer, so that this gradient can be differentiated again.
        values = [fixed[path] if path in fixed else current.array(path) for path in paths]
        count = len(paths)

        def call(traced: list[Array]) -> list[Array]:
            current.context.traced = {**outer, **fixed, **dict(zip(paths, traced[:count], strict=True))}
            receive(traced[count:])
            return scalars(objective())

        # A closure is a new object at every step, its code is not.
        objective_key = (paths, getattr(objective, "__code__", None))
        rows = self._differentiate(call, [*values, *inputs], paths, scopes, objective_key)
        return [(_grouped(paths, row, wrt), row[count:]) for row in rows]

    @staticmethod
    def pull(
        pullback: Pullback, cotangents: list[Array], wrt: Sequence[tuple[str, ...]]
    ) -> tuple[list[Leaves], list[Array]]:
        """Take gradients backwards through one more piece of an objective that is cut.

        Args:
            pullback: of the piece, from the `CutError` at its end.
            cotangents: gradients by what the piece handed on.
            wrt: groups of paths of parameters.

        Returns:
            The gradients by parameters, and those by what the piece began with.
        """
        paths = tuple(dict.fromkeys(chain(*wrt)))
        (row,) = pullback(cotangents)
        return _grouped(paths, row, wrt), row[len(paths) :]

    def grad(self, fn: Callable[..., Any], scopes: Scopes) -> Callable[..., Any]:
        """Make a function that returns the gradient of a scalar function of trees of arrays.

        It can be differentiated again inside an objective, or by another `grad`.
        """

        def gradients(*args: Any, **kwargs: Any) -> Any:
            if not args:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            leaves, spec = jax.tree_util.tree_flatten(args)
            names = list(argument_names(args, jax.tree_util.tree_leaves))
            values = [self._argument(leaf, name) for leaf, name in zip(leaves, names, strict=True)]

            def call(traced: list[Array]) -> list[Array]:
                # An empty dict says that this thread differentiates, though nothing stands for parameters.
                self._current.context.traced = self._current.context.traced or {}
                losses = scalars(fn(*jax.tree_util.tree_unflatten(spec, traced), **kwargs))
                if len(losses) > 1:
                    raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
                return losses

            trees = jax.tree_util.tree_unflatten(spec, self._differentiate(call, values, names, scopes)[0])
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def _differentiate(
        self,
        call: Callable[[list[Array]], list[Array]],
        values: list[Array],
        names: Sequence[str],
        scopes: Scopes,
        objective_key: Any = None,
    ) -> list[list[Array]]:
        """Gradients of each loss that ``call`` returns with respect to each of the values.

        What ``call`` wrote leaves the gradient as its side output, also when it raised: no scope keeps a tracer.
        """
        context = self._current.context
        # The buffers are a scope too: models write their new state into them in the objective.
        outer, kind, side_scopes = context.traced, context.kind, [*scopes, self._current.store.buffers]
        errors: list[BaseException] = []
        dependence: list[bool] = []

        def fn(traced: list[Array]) -> tuple[list[Array], list[Array]]:
            losses: list[Array] = []
            # An array that depends on the values is a tracer of this type; one of the trace of a program is another.
            context.kind = type(traced[0])
            context.depth += 1
            try:
                losses = call(traced)
                dependence.extend(type(loss) is context.kind for loss in losses)
            except BaseException as error:  # raised again below, when the values written until then are plain
                errors.append(error)
                # A cut ends the piece here: it is differentiated by what it hands on instead of by losses.
                losses = error.leaves if isinstance(error, CutError) else []
            finally:
                context.traced, context.kind = outer, kind
                context.depth -= 1
            return losses, _traced_in(side_scopes)

        losses, pullback, plain = jax.vjp(fn, values, has_aux=True)
        _put_back(side_scopes, plain)
        if objective_key is not None and losses:
            self._note_reached(names, pullback, losses, objective_key)
        if errors:
            if isinstance(errors[0], CutError):
                errors[0].leaves, errors[0].pullback = losses, pullback
            try:
                raise errors[0]
            finally:
                errors.clear()  # the exception keeps this frame, which must not keep the exception
        # The type of a loss tells at once, but for an inner objective, whose losses may be tracers of the outer one.
        if not any(dependence) or (outer is not None and not _depends(pullback, losses)):
            raise GradientError(unreached(len(losses), names))
        # One forward pass, and a backward pass for each loss.
        return [pullback(_unit(losses, number))[0] for number in range(len(losses))]

    def _note_reached(self, paths: Sequence[str], pullback: Pullback, losses: list[Array], objective_key: Any) -> None:
        """Keep which parameters an objective reaches, as long as some are left that none has."""
        if self._looks[objective_key] >= _LOOKS or all(self._dependence.get(path) for path in paths):
            return
        self._looks[objective_key] += 1
        for path, depends in zip(paths, _dependent(pullback, losses), strict=False):
            self._dependence[path] = self._dependence.get(path, False) or depends

    def _argument(self, leaf: Any, name: str) -> Array:
        """A leaf of the arguments of a function as an array that has gradients.

        Args:
            leaf: what the caller passed.
            name: what messages call it.

        Raises:
            GradientError: it has no gradient.
        """
        value = jnp.asarray(leaf, self._arrays.dtype) if type(leaf) is float else self._arrays.leaf(leaf)
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.inexact):
            return value
        description = f"an array of {value.dtype}" if isinstance(value, jax.Array) else f"a {type(leaf).__name__}"
        raise GradientError(
            f"{name} of the function given to grad is {description}, which has no gradient: close over it, as in "
            "grad(lambda x: fn(x, labels))(x)"
        )


def _grouped(paths: Sequence[str], row: Sequence[Array], wrt: Sequence[tuple[str, ...]]) -> list[Leaves]:
    """The gradients of one loss by path, a dict for each group; those by inputs are behind them in ``row``."""
    leaves = dict(zip(paths, row, strict=False))
    return [{path: leaves[path] for path in group} for group in wrt]


def scalars(result: Any) -> list[Array]:
    """List the losses an objective returned, one or a tuple of them.

    Raises:
        LossError: something else came.
    """
    if isinstance(result, jax.Array):
        if result.ndim:
            raise shape_error(result.shape)
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise LossError(f"the objective returned a scalar of {result.dtype}, which has no gradient: return a float")
        return [result]
    if isinstance(result, (tuple, list)) and result:
        return [scalars(part)[0] for part in cast("Sequence[Any]", result)]
    raise kind_error(result, "a scalar array is needed: return the 0-d array itself, without .item() or float()")


def _traced_in(scopes: Scopes) -> list[Array]:
    """List all tracers in the values of the scopes, at any depth."""
    tracers: list[Array] = []

    def note(leaf: Any) -> Any:
        if is_traced(leaf):
            tracers.append(leaf)
        return leaf

    for scope in scopes:
        for value in scope.values():
            transform(note, value)
    return tracers


def _put_back(scopes: Scopes, plain: list[Array]) -> None:
    """Replace the tracers that `_traced_in` listed by their values, in its order."""
    values = iter(plain)
    if plain:
        for scope in scopes:
            for key, value in scope.items():
                scope[key] = transform(lambda leaf: next(values) if is_traced(leaf) else leaf, value)


def _depends(pullback: Pullback, losses: list[Array]) -> bool:
    """Whether some gradient depends on the losses, so that the losses depend on what it is the gradient by."""
    return any(_dependent(pullback, losses))


def _dependent(pullback: Pullback, losses: list[Array]) -> list[bool]:
    """Which gradients depend on the losses: where a loss does not depend on a value, its gradient is a constant zero.

    The pullback is traced and not run, and its equations are followed from its inputs.
    """
    program = jax.make_jaxpr(pullback)([jnp.zeros_like(loss) for loss in losses]).jaxpr
    dependent = {id(variable) for variable in program.invars}
    for equation in program.eqns:
        if any(id(variable) in dependent for variable in equation.invars):
            dependent |= {id(variable) for variable in equation.outvars}
    return [id(variable) in dependent for variable in program.outvars]


def _unit(losses: list[Array], number: int) -> list[Array]:
    """The cotangents that select one of the losses: one for it, zero for the others."""
    return [jnp.full((), float(index == number), loss.dtype) for index, loss in enumerate(losses)]
