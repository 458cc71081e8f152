"""Gradients of objectives and of functions, one inside the other."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import Arrays
from loopcore_torch.models import Models
from loopcore_torch.objectives import along_graph, backward, detach_all, filled, scalars

Scopes = Sequence[MutableMapping[str, Any]]
Result = TypeVar("Result")


class Gradients:
    """Differentiates closures with respect to parameters of `Models`, and functions of arrays.

    An outermost gradient is ``backward(inputs=...)`` with the result moved out of ``.grad``; one inside an objective
    is ``torch.autograd.grad(create_graph=True)`` with respect to aliases, so that only what its own closure computes
    from them counts.
    """

    def __init__(self, models: Models, arrays: Arrays) -> None:
        self._models = models
        self._arrays = arrays

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure: for each loss, for each group of paths, gradients by path."""
        models = self._models
        nested = models.depth > 0
        paths = wrt[0] if len(wrt) == 1 else tuple(dict.fromkeys(chain(*wrt)))
        stand_ins: dict[str, Tensor] = self._stand_ins(paths, at or {}, nested) if nested or at else {}
        inputs: list[Tensor] = [stand_ins[path] if path in stand_ins else models.params[path] for path in paths]

        def work() -> list[list[Tensor | None]]:
            losses = scalars(objective())
            if nested:
                return [along_graph(loss, inputs, True) for loss in losses]
            last = len(losses) - 1
            return [backward(loss, inputs, number < last) for number, loss in enumerate(losses)]

        rows = self._inside(work, stand_ins, scopes)
        found = [dict(zip(paths, filled(row, inputs, paths, number), strict=True)) for number, row in enumerate(rows)]
        if len(wrt) == 1:
            return [[grads] for grads in found]
        return [[{path: grads[path] for path in group} for group in wrt] for grads in found]

    def grad(self, fn: Callable[..., Any], scopes: Scopes) -> Callable[..., Any]:
        """Gradient of a scalar function of trees of arrays; can be differentiated again inside an objective."""

        def gradients(*args: Any) -> Any:
            nested = self._models.depth > 0
            leaves, spec = optree.tree_flatten(args)
            if not leaves:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            inputs = [self._argument(leaf, index, args, nested) for index, leaf in enumerate(leaves)]

            def work() -> list[Tensor | None]:
                losses = scalars(fn(*optree.tree_unflatten(spec, inputs)))
                if len(losses) > 1:
                    raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
                return along_graph(losses[0], inputs, nested)

            found = filled(self._inside(work, {}, scopes), inputs, ["the arguments of the function"])
            trees: Any = optree.tree_unflatten(spec, found)
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def _inside(self, work: Callable[[], Result], stand_ins: dict[str, Tensor], scopes: Scopes) -> Result:
        """Run as an objective: with graph, and with arrays that stand in for parameters."""
        models = self._models
        with_graph = torch.is_grad_enabled()
        outer = models.enter(stand_ins)
        torch.set_grad_enabled(True)
        try:
            return work()
        finally:
            torch.set_grad_enabled(with_graph)
            models.leave(outer)
            if models.depth == 0:
                detach_all(scopes)

    def _stand_ins(self, paths: tuple[str, ...], at: Leaves, nested: bool) -> dict[str, Tensor]:
        values = {path: self._arrays.tensor(leaf) for path, leaf in at.items()}
        if nested:
            values |= {path: self._models.array(path) for path in paths if path not in values}
        return {path: _variable(value, nested) for path, value in values.items()}

    def _argument(self, leaf: Any, index: int, args: tuple[Any, ...], nested: bool) -> Tensor:
        value = leaf if isinstance(leaf, str) else self._arrays.tensor(leaf)
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return _variable(value, nested)
        position = next(n for n in range(len(args)) if index < len(optree.tree_leaves(args[: n + 1])))
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
