"""Gradients of objectives and of functions, one inside the other."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from itertools import chain
from typing import Any

import optree
import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import Arrays
from loopcore_torch.models import Models
from loopcore_torch.objectives import along_graph, backward, detach_all, filled, scalars

Scopes = Sequence[MutableMapping[str, Any]]


class Gradients:
    """Differentiates closures with respect to parameters of `Models`, and functions of arrays.

    An outermost gradient is ``backward(inputs=...)`` with the result moved out of ``.grad``; one inside an objective
    is ``torch.autograd.grad(create_graph=True)`` with respect to aliases, so that only what its own closure computes
    from them counts.
    """

    def __init__(self, models: Models, arrays: Arrays) -> None:
        self._models = models
        self._arrays = arrays
        self._outermost = torch.enable_grad()  # entered once at a time; a new one for each step costs a microsecond

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure: for each loss, for each group of paths, gradients by path."""
        models = self._models
        paths = wrt[0] if len(wrt) == 1 else tuple(dict.fromkeys(chain(*wrt)))
        if models.depth:
            rows = self._nested(objective, paths, at or {})
        else:
            rows = self._outer(objective, paths, at or {}, scopes)
        found = [dict(zip(paths, row, strict=True)) for row in rows]
        if len(wrt) == 1:
            return [[grads] for grads in found]
        return [[{path: grads[path] for path in group} for group in wrt] for grads in found]

    def _outer(
        self, objective: Callable[[], Any], paths: tuple[str, ...], at: Leaves, scopes: Scopes
    ) -> list[list[Tensor]]:
        models = self._models
        params = models.params
        stand_ins = {path: _variable(self._arrays.tensor(leaf), False) for path, leaf in at.items()} if at else at
        inputs: list[Tensor] = (
            [stand_ins.get(path, params[path]) for path in paths] if at else [params[p] for p in paths]
        )
        outer = models.enter(stand_ins)
        try:
            with self._outermost:
                losses = scalars(objective())
                last = len(losses) - 1
                found = [backward(loss, inputs, number < last) for number, loss in enumerate(losses)]
        finally:
            models.leave(outer)
            detach_all(scopes)
        return [filled(row, inputs, paths, number) for number, row in enumerate(found)]

    def _nested(self, objective: Callable[[], Any], paths: tuple[str, ...], at: Leaves) -> list[list[Tensor]]:
        models = self._models
        values = {path: self._arrays.tensor(leaf) for path, leaf in at.items()}
        values |= {path: models.array(path) for path in paths if path not in values}
        with torch.enable_grad():
            stand_ins = {path: _variable(value, True) for path, value in values.items()}
            inputs = [stand_ins[path] for path in paths]
            outer = models.enter(stand_ins)
            try:
                losses = scalars(objective())
                found = [along_graph(loss, inputs, True) for loss in losses]
            finally:
                models.leave(outer)
        return [filled(row, inputs, paths, number) for number, row in enumerate(found)]

    def grad(self, fn: Callable[..., Any], scopes: Scopes) -> Callable[..., Any]:
        """Gradient of a scalar function of trees of arrays; can be differentiated again inside an objective."""

        def gradients(*args: Any) -> Any:
            given: Any = args
            leaves, spec = optree.tree_flatten(given)
            if not leaves:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            models = self._models
            nested = models.depth > 0
            outer = models.enter({})
            try:
                with torch.enable_grad():
                    inputs = [self._argument(leaf, index, args, nested) for index, leaf in enumerate(leaves)]
                    losses = scalars(fn(*optree.tree_unflatten(spec, inputs)))
                    if len(losses) > 1:
                        raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
                    found = along_graph(losses[0], inputs, nested)
            finally:
                models.leave(outer)
                if not nested:
                    detach_all(scopes)
            trees: Any = optree.tree_unflatten(spec, filled(found, inputs, ["the arguments of the function"]))
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def _argument(self, leaf: Any, index: int, args: tuple[Any, ...], nested: bool) -> Tensor:
        value = leaf if isinstance(leaf, str) else self._arrays.tensor(leaf)
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return _variable(value, nested)
        given: Any = args
        position = next(n for n in range(len(args)) if index < len(optree.tree_leaves(given[: n + 1])))
        what = f"an array of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise GradientError(
            f"argument {position} of the function given to grad holds {what}, which has no gradient: close over it, "
            "as in grad(lambda x: fn(x, labels))(x)"
        )


def _variable(value: Tensor, nested: bool) -> Tensor:
    """A tensor to differentiate by; inside an objective it stays part of the outer graph."""
    if not nested:
        return value.detach().requires_grad_()
    alias = value.view_as(value)
    return alias if alias.requires_grad else alias.requires_grad_()
