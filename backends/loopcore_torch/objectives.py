"""What an objective returned, and what it wrote."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.backend.objectives import kind_error, shape_error
from loopcore.errors import GradientError
from loopcore_torch.arrays import OPAQUE, detached

PartialGrads: TypeAlias = "dict[str, Tensor | None]"


def scalars(result: Any) -> Sequence[Tensor]:
    """Return the losses that an objective returned, one or a tuple of them, as a sequence.

    Raises:
        LossError: something else came.
    """
    if isinstance(result, Tensor):
        if result.ndim == 0:
            return (result,)
        raise shape_error(result.shape)
    if isinstance(result, (tuple, list)) and result:
        # The same check, and the same messages, for each of them.
        return [scalars(part)[0] for part in cast("Sequence[Any]", result)]
    raise kind_error(result, "which belongs to no graph: return the 0-d array itself, without .item() or float()")


class Inputs:
    """The tensors by which a gradient is taken: leaves of the graph.

    Attributes:
        paths: their names.
        tensors: themselves.
        complete: whether one gradient has reached all of them; None before the first one.
    """

    __slots__ = ("complete", "paths", "tensors")

    def __init__(self, paths: tuple[str, ...], tensors: tuple[Tensor, ...]) -> None:
        self.paths = paths
        self.tensors = tensors
        self.complete: bool | None = None


class Reach:
    """Which parameters gradients did not reach. Nothing is noted as long as all are reached.

    Attributes:
        since: path -> the zeros that stand for its gradient, or None if one since the last update reached it.
        never: paths that none has reached so far.
    """

    def __init__(self) -> None:
        self.since: dict[str, Tensor | None] = {}
        self.never: dict[str, None] = {}
        self._ever = set[str]()

    def note(self, partial_grads: PartialGrads, grads: Leaves, inputs: Inputs, complete: set[str]) -> None:
        """Note a gradient: None in ``partial_grads`` is what it did not reach; one before reached ``complete``."""
        self._ever |= complete
        for (path, grad), leaf in zip(partial_grads.items(), inputs.tensors, strict=True):
            if grad is not None:
                self.since[path] = None
                self._ever.add(path)
                self.never.pop(path, None)
            # Once one gradient has reached it, others that do not before the next update change nothing.
            elif path not in self.since or self.since[path] is not None:
                self.since[path] = grads[path]
                # A phase may train parts of a model in turn: what was reached once is not forgotten.
                if leaf.requires_grad and path not in self._ever:
                    self.never[path] = None


def along_graph(
    loss: Tensor, paths: Sequence[str], inputs: Sequence[Tensor], number: int, differentiable: bool
) -> Leaves:
    """Take gradients by ``torch.autograd.grad``, which can be differentiated again if asked."""
    if not loss.requires_grad:
        return filled(dict.fromkeys(paths), inputs, number)
    tensor_grads = torch.autograd.grad(loss, inputs, create_graph=differentiable, allow_unused=True)
    return filled(dict(zip(paths, tensor_grads, strict=True)), inputs, number)


def filled(grads: PartialGrads, inputs: Sequence[Tensor], number: int) -> Leaves:
    """Return the gradients with zeros in place of None.

    Raises:
        GradientError: nothing was reached.
    """
    # That a loss leaves out some parameters is usual; that it leaves out all of them is a mistake.
    if all(grad is None for grad in grads.values()):
        which = "the loss" if number == 0 else f"loss number {number}"
        names = ", ".join(list(grads)[:5]) + (", ..." if len(grads) > 5 else "")
        raise GradientError(
            f"{which} does not depend on {names}: compute it inside the objective from learner.model(...); what was "
            "computed before it began, detached values and integers are constants"
        )
    pairs = zip(grads.items(), inputs, strict=True)
    return {path: torch.zeros_like(leaf) if grad is None else grad for (path, grad), leaf in pairs}


def detach_all(scopes: Sequence[MutableMapping[str, Any]]) -> None:
    """Cut the values of the scopes, and the leaves of trees among them, out of their graph."""
    for scope in scopes:
        for name, value in scope.items():
            # By its exact type: every step pays for this, and the usual values, tensors and numbers, cost one
            # comparison.
            kind = type(value)
            if kind is Tensor:
                if value.requires_grad:
                    scope[name] = value.detach()
            elif kind not in OPAQUE:
                cut = detached(value)
                if cut is not value:
                    scope[name] = cut
