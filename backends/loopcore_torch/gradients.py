"""Gradients of objectives and of functions, one inside the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor

from loopcore.backend import Leaves, Scopes
from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import Arrays
from loopcore_torch.models import Models
from loopcore_torch.objectives import Inputs, along_graph, detach_all, scalars
from loopcore_torch.outermost_gradients import outermost

Spec: TypeAlias = "optree.PyTreeSpec"


class Gradients:
    """Differentiates closures with respect to parameters of `Models`, and functions of arrays.

    A gradient is ``torch.autograd.grad``: nothing is ever left in ``.grad``. One inside an objective creates a graph
    and is taken with respect to aliases, so that only what its own closure computes from them counts. An outermost
    one of a module that works on ``.grad`` (DistributedDataParallel, FSDP) is ``backward(inputs=...)``.
    """

    def __init__(self, models: Models, arrays: Arrays) -> None:
        self._models = models
        self._arrays = arrays

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate a zero-argument closure: for each loss, for each group of paths, gradients by path."""
        models = self._models
        if models.depth or at or len(wrt) != 1 or models.autocast:
            return self._gradient(objective, wrt, at or {}, scopes)
        paths = wrt[0]  # the usual case, and what a step costs: nothing is done twice here
        inputs = models.inputs.get(paths) or models.inputs_of(paths)
        grad_enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        models.depth = 1
        try:
            result = objective()
            if type(result) is Tensor and result.ndim == 0:
                return [[outermost(models, result, self._arrays.unit, inputs, 0, True)]]
            return [[grads] for grads in self._outermost(scalars(result), inputs)]
        finally:
            models.depth = 0
            torch.set_grad_enabled(grad_enabled)
            detach_all(scopes)
            if models.states:
                detach_all(models.states)

    def _gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves, scopes: Scopes
    ) -> list[list[Leaves]]:
        """The general case: nested, at other values, or with respect to several groups of paths."""
        paths = tuple(dict.fromkeys(chain(*wrt)))
        rows = self._nested(objective, paths, at) if self._models.depth else self._at(objective, paths, at, scopes)
        return [[{path: grads[path] for path in group} for group in wrt] for grads in rows]

    def _at(self, objective: Callable[[], Any], paths: tuple[str, ...], at: Leaves, scopes: Scopes) -> list[Leaves]:
        """Differentiate an outermost objective, with the values of ``at`` in place of parameters."""
        models = self._models
        # Leaves of the graph, cut off from where they were computed: no outer gradient is open.
        stand_ins = {path: _variable(self._arrays.tensor(leaf), False) for path, leaf in at.items()}
        if stand_ins:
            inputs = Inputs(paths, tuple(stand_ins.get(path, models.params[path]) for path in paths))
        else:
            inputs = models.inputs.get(paths) or models.inputs_of(paths)
        outer = models.enter(stand_ins)
        try:
            with torch.enable_grad():
                if models.autocast is None:
                    return self._outermost(scalars(objective()), inputs)
                return self._with_autocast(models.autocast, objective, inputs)
        finally:
            models.leave(outer)
            detach_all([*scopes, *models.states])

    def _with_autocast(self, kind: str, objective: Callable[[], Any], inputs: Inputs) -> list[Leaves]:
        """Compute the losses with autocast and their gradients without, and cast the weights anew in each step."""
        torch.clear_autocast_cache()  # of what was cast without a graph
        try:
            losses = scalars(objective())
            with torch.autocast(kind, enabled=False):
                return self._outermost(losses, inputs)
        finally:
            torch.clear_autocast_cache()

    def _outermost(self, losses: Sequence[Tensor], inputs: Inputs) -> list[Leaves]:
        """Return the gradients of each loss of an outermost objective; the last frees the graph."""
        last = len(losses) - 1
        return [
            outermost(self._models, loss, self._arrays.unit, inputs, number, number == last)
            for number, loss in enumerate(losses)
        ]

    def _nested(self, objective: Callable[[], Any], paths: tuple[str, ...], at: Leaves) -> list[Leaves]:
        """Differentiate an objective within another, so that the outer one can differentiate the result."""
        models = self._models
        values = {path: self._arrays.tensor(leaf) for path, leaf in at.items()}
        values |= {path: models.array(path) for path in paths if path not in values}
        with torch.enable_grad():
            # By aliases and not by the arrays themselves: the outer objective may have used these already, and what it
            # computed of them is a constant to the inner one.
            stand_ins = {path: _variable(value, True) for path, value in values.items()}
            inputs = [stand_ins[path] for path in paths]
            outer = models.enter(stand_ins)
            try:
                losses = scalars(objective())
                return [along_graph(loss, paths, inputs, number, True) for number, loss in enumerate(losses)]
            finally:
                models.leave(outer)

    def grad(self, fn: Callable[..., Any], scopes: Scopes) -> Callable[..., Any]:
        """Return a function that gives the gradient of ``fn``; inside an objective it can be differentiated again."""

        def gradients(*args: Any) -> Any:
            if not args:
                raise GradientError("grad(fn)() needs the arrays to differentiate by: write grad(fn)(x)")
            models = self._models
            nested = models.depth > 0
            # A model that `fn` calls runs with its graph only while an objective is open.
            outer = models.enter({})
            try:
                with torch.enable_grad():
                    inputs, specs = self._variables(args, nested)
                    losses = scalars(fn(*_trees(specs, inputs)))
                    if len(losses) > 1:
                        raise LossError(f"the function given to grad returned {len(losses)} values: return one scalar")
                    grads = along_graph(losses[0], list(inputs), list(inputs.values()), 0, nested)
            finally:
                models.leave(outer)
                if not nested:
                    detach_all([*scopes, *models.states])
            trees = _trees(specs, grads)
            return trees[0] if len(trees) == 1 else trees

        return gradients

    def _variables(self, args: tuple[Any, ...], nested: bool) -> tuple[dict[str, Tensor], list[Spec]]:
        """Return the tensors to differentiate by, named for messages, and the structure of each argument."""
        inputs: dict[str, Tensor] = {}
        specs: list[Spec] = []
        for position, arg in enumerate(args):
            leaves, spec = optree.tree_flatten(arg)
            specs.append(spec)
            for number, leaf in enumerate(leaves):
                # Messages show it where a path would stand.
                name = f"argument {position}" if leaf is arg else f"leaf {number} of argument {position}"
                inputs[name] = _variable(self._argument(leaf, name), nested)
        return inputs, specs

    def _argument(self, leaf: Any, name: str) -> Tensor:
        """Return an argument of a function as a tensor; refuse what has no gradient."""
        value = leaf if isinstance(leaf, str) else self._arrays.tensor(leaf)
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            return value
        kind = f"an array of {value.dtype}" if isinstance(value, Tensor) else f"a {type(leaf).__name__}"
        raise GradientError(
            f"{name} of the function given to grad is {kind}, which has no gradient: close over it, as in "
            "grad(lambda x: fn(x, labels))(x)"
        )


def _trees(specs: list[Spec], leaves: dict[str, Tensor]) -> tuple[Any, ...]:
    """Return the arguments with these leaves in place of their own."""
    remaining = iter(leaves.values())
    return tuple(optree.tree_unflatten(spec, [next(remaining) for _ in range(spec.num_leaves)]) for spec in specs)


def _variable(value: Tensor, nested: bool) -> Tensor:
    """Make a tensor to differentiate by; inside an objective it stays part of the outer graph."""
    if not nested:
        return value.detach().requires_grad_()
    # A view is another node of the graph: a gradient by it counts what is computed from the view alone.
    alias = value.view_as(value)
    return alias if alias.requires_grad else alias.requires_grad_()
