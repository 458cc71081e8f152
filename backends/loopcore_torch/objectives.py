"""What an objective returned, and what it wrote."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, cast

import optree
import torch
from torch import Tensor, nn

from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import detached

_leaf_types: set[type] = {bool, int, float, complex, str, bytes, type(None)}  # of values that hold no tensor


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


def backward(loss: Tensor, inputs: list[Tensor], keep_graph: bool) -> list[Tensor | None]:
    """Gradients by ``Tensor.backward``, as DDP needs it; whatever the user left in ``.grad`` is dropped."""
    if not loss.requires_grad:
        return [None] * len(inputs)
    for leaf in inputs:
        leaf.grad = None
    try:
        loss.backward(inputs=inputs, retain_graph=keep_graph)  # type: ignore[no-untyped-call]
        return [leaf.grad for leaf in inputs]
    except RuntimeError as error:
        if all(leaf.requires_grad for leaf in inputs):
            raise
        raise GradientError(
            "a parameter in wrt has requires_grad=False: set it to True, or freeze the parameter by leaving it "
            "without an optimizer"
        ) from error
    finally:
        for leaf in inputs:
            leaf.grad = None


def along_graph(loss: Tensor, inputs: list[Tensor], differentiable: bool) -> list[Tensor | None]:
    """Gradients by ``torch.autograd.grad``, which can be differentiated again if asked."""
    if not loss.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(loss, inputs, create_graph=differentiable, allow_unused=True))


def filled(found: list[Tensor | None], inputs: list[Tensor], names: Sequence[str], number: int = 0) -> list[Tensor]:
    """Zeros for what was not reached.

    Raises:
        GradientError: nothing was reached.
    """
    for grad in found:
        if grad is None:
            break
    else:
        return cast("list[Tensor]", found)
    if all(grad is None for grad in found):
        which = "the loss" if number == 0 else f"loss number {number}"
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise GradientError(
            f"{which} does not depend on {shown}: compute it inside the objective from learner.model(...); what was "
            "computed before it began, detached values and integers are constants"
        )
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, inputs, strict=True)]


def detach_all(scopes: Sequence[MutableMapping[str, Any]]) -> None:
    """Cut the values of the scopes, and the leaves of trees among them, out of their graph."""
    for scope in scopes:
        for name, value in scope.items():
            kind = type(value)
            if kind is Tensor or kind is nn.Parameter:
                if value.requires_grad:
                    scope[name] = value.detach()
            elif kind not in _leaf_types:
                cut = detached(value)
                if cut is not value:
                    scope[name] = cut
                elif not isinstance(value, Tensor) and optree.tree_is_leaf(value):
                    _leaf_types.add(kind)
