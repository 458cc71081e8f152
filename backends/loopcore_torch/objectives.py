"""What an objective returned, and what it wrote."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.errors import GradientError, LossError
from loopcore_torch.arrays import OPAQUE, detached

if TYPE_CHECKING:
    from loopcore_torch.models import Models

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


class Inputs:
    """What gradients are taken by: leaves of the graph.

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
    """What gradients do not reach, as far as they were looked at: nothing is noted while all are reached.

    Attributes:
        since: path -> the zeros that stand for its gradient, or None if one since the last update reached it.
        never: paths that none has reached so far.
    """

    def __init__(self) -> None:
        self.since: dict[str, Tensor | None] = {}
        self.never: dict[str, None] = {}
        self._ever = set[str]()

    def note(self, found: Found, grads: Leaves, inputs: Inputs, complete: set[str]) -> None:
        """A gradient was taken: None in ``found`` is what it did not reach; one before reached ``complete``."""
        self._ever |= complete
        for (path, grad), leaf in zip(found.items(), inputs.tensors, strict=True):
            if grad is not None:
                self.since[path] = None
                self._ever.add(path)
                self.never.pop(path, None)
            elif path not in self.since or self.since[path] is not None:
                self.since[path] = grads[path]
                if leaf.requires_grad and path not in self._ever:
                    self.never[path] = None


def outermost(models: Models, loss: Tensor, one: Tensor, inputs: Inputs, number: int, last: bool) -> Leaves:
    """Gradients of an outermost objective.

    Args:
        models: whose parameters they are.
        loss: a scalar.
        one: 0-d; the gradient of the loss by itself, which torch takes 4 microseconds to make anew.
        inputs: what to differentiate by.
        number: of the loss among those of the objective.
        last: whether the graph can be freed.
    """
    if not loss.requires_grad:
        if torch.is_inference_mode_enabled():
            raise GradientError(
                "nothing can be differentiated within torch.inference_mode(): leave it out around fit; validation and "
                "predict take no gradients anyway"
            )
        return filled(dict.fromkeys(inputs.paths), inputs.tensors, number)
    if inputs.complete is None:
        inputs.complete = False
        models.reentrant = models.reentrant or _is_reentrant(loss)
    try:
        if models.hooked or models.reentrant:
            found = _backward(models, loss, one, inputs.tensors, last)
        else:  # 5 microseconds faster, and nobody sees a .grad
            found = torch.autograd.grad((loss,), inputs.tensors, (one,), retain_graph=not last, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise GradientError(
                "a part of the model is checkpointed with use_reentrant=True, which gives gradients to a plain "
                "backward() alone: write torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            ) from error
        found = _by_open_ones(models, loss, one, inputs, last, error)
    by_path: Found = {}
    reached = True
    for path, grad in zip(inputs.paths, found, strict=True):
        by_path[path] = grad
        reached &= grad is not None
    if reached:
        inputs.complete = True
        if models.reach.since:
            models.reach.note(by_path, cast(Leaves, by_path), inputs, set())
        return cast(Leaves, by_path)
    grads = filled(by_path, inputs.tensors, number)
    complete = {path for other in models.inputs.values() if other.complete for path in other.paths}
    models.reach.note(by_path, grads, inputs, complete)
    return grads


def _by_open_ones(
    models: Models, loss: Tensor, one: Tensor, inputs: Inputs, last: bool, error: RuntimeError
) -> tuple[Tensor | None, ...]:
    """The gradients where some parameters were frozen since the epoch began; None for these."""
    still = tuple(leaf for leaf in inputs.tensors if leaf.requires_grad)
    if len(still) == len(inputs.tensors):
        raise error
    if not still:
        raise GradientError(
            "all parameters in wrt have requires_grad=False: set it to True, or take the gradient by others"
        ) from error
    found = iter(_backward(models, loss, one, still, last))
    return tuple(next(found) if leaf.requires_grad else None for leaf in inputs.tensors)


def _backward(
    models: Models, loss: Tensor, one: Tensor, inputs: Sequence[Tensor], last: bool
) -> tuple[Tensor | None, ...]:
    """By ``Tensor.backward``; whatever the user left in ``.grad`` is dropped."""
    everything = (*inputs, *models.params.values()) if models.reentrant else inputs
    try:
        for leaf in everything:
            leaf.grad = None
        loss.backward(one, inputs=None if models.reentrant else inputs, retain_graph=not last)  # type: ignore[no-untyped-call]
        return tuple(leaf.grad for leaf in inputs)
    finally:
        for leaf in everything:
            leaf.grad = None


def _is_reentrant(loss: Tensor) -> bool:
    """Whether its graph has a part checkpointed with ``use_reentrant=True``: only a plain ``backward()`` enters it."""
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False


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
