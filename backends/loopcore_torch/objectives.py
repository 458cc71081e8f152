"""What an objective returned, and what it wrote."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import OPAQUE, detached

Found: TypeAlias = "dict[str, Tensor | None]"


def scalars(result: Any) -> Sequence[Tensor]:
    """The losses an objective returned, one or a tuple of them.

    Raises:
        LossError: something else came.
    """
    if isinstance(result, Tensor):
        if result.ndim == 0:
            return (result,)
        raise LossError(
            f"the objective returned a loss of shape {tuple(result.shape)}, a scalar is needed: use "
            'reduction="mean" in the loss, or learner.xp.mean(loss)'
        )
    if isinstance(result, (tuple, list)) and result:
        return [scalars(part)[0] for part in cast("Sequence[Any]", result)]
    if result is None:
        raise LossError("the objective returned nothing: end it with return state.loss")
    if isinstance(result, (int, float)):
        raise LossError(
            f"the objective returned the number {result!r}, which belongs to no graph: return the 0-d array itself, "
            "without .item() or float()"
        )
    raise LossError(f"the objective returned a {type(result).__name__}: return a scalar, or a tuple of scalars")


def outermost(
    loss: Tensor, one: Tensor, paths: Sequence[str], inputs: Sequence[Tensor], number: int, last: bool, hooked: bool
) -> Leaves:
    """Gradients of an outermost objective.

    Args:
        loss: a scalar.
        one: 0-d; the gradient of the loss by itself, which torch takes 4 microseconds to make anew.
        paths: names of ``inputs``.
        inputs: leaves of the graph.
        number: of the loss among those of the objective.
        last: whether the graph can be freed.
        hooked: whether the module works on ``.grad`` while gradients arrive, as DistributedDataParallel does.
    """
    if not loss.requires_grad:
        return filled(dict.fromkeys(paths), inputs, number)
    try:
        if hooked:
            found = _backward(loss, one, inputs, last)
        else:  # 5 microseconds faster, and nobody sees a .grad
            found = torch.autograd.grad((loss,), inputs, (one,), retain_graph=not last, allow_unused=True)
    except RuntimeError as error:
        if all(leaf.requires_grad for leaf in inputs):
            raise
        raise GradientError(
            "a parameter in wrt has requires_grad=False: set it to True, or freeze the parameter by leaving it "
            "without an optimizer"
        ) from error
    by_path: Found = {}
    reached = True
    for path, grad in zip(paths, found, strict=True):
        by_path[path] = grad
        reached &= grad is not None
    return cast(Leaves, by_path) if reached else filled(by_path, inputs, number)


def _backward(loss: Tensor, one: Tensor, inputs: Sequence[Tensor], last: bool) -> tuple[Tensor | None, ...]:
    """By ``Tensor.backward``; whatever the user left in ``.grad`` is dropped."""
    try:
        for leaf in inputs:
            leaf.grad = None
        loss.backward(one, inputs=inputs, retain_graph=not last)  # type: ignore[no-untyped-call]
        return tuple(leaf.grad for leaf in inputs)
    finally:
        for leaf in inputs:
            leaf.grad = None


def along_graph(
    loss: Tensor, paths: Sequence[str], inputs: Sequence[Tensor], number: int, differentiable: bool
) -> Leaves:
    """Gradients by ``torch.autograd.grad``, which can be differentiated again if asked."""
    if not loss.requires_grad:
        return filled(dict.fromkeys(paths), inputs, number)
    found = torch.autograd.grad(loss, inputs, create_graph=differentiable, allow_unused=True)
    return filled(dict(zip(paths, found, strict=True)), inputs, number)


def filled(found: Found, inputs: Sequence[Tensor], number: int) -> Leaves:
    """Zeros for what was not reached.

    Raises:
        GradientError: nothing was reached.
    """
    if all(grad is None for grad in found.values()):
        which = "the loss" if number == 0 else f"loss number {number}"
        shown = ", ".join(list(found)[:5]) + (", ..." if len(found) > 5 else "")
        raise GradientError(
            f"{which} does not depend on {shown}: compute it inside the objective from learner.model(...); what was "
            "computed before it began, detached values and integers are constants"
        )
    pairs = zip(found.items(), inputs, strict=True)
    return {path: torch.zeros_like(leaf) if grad is None else grad for (path, grad), leaf in pairs}


def detach_all(scopes: Sequence[MutableMapping[str, Any]]) -> None:
    """Cut the values of the scopes, and the leaves of trees among them, out of their graph."""
    for scope in scopes:
        for name, value in scope.items():
            kind = type(value)
            if kind is Tensor:
                if value.requires_grad:
                    scope[name] = value.detach()
            elif kind not in OPAQUE:
                cut = detached(value)
                if cut is not value:
                    scope[name] = cut
