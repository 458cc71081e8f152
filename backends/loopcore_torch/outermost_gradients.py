"""The gradients of an outermost objective, which every step takes: by the fastest way that the models allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from loopcore.backend import Leaves
from loopcore.errors import GradientError
from loopcore_torch.models import Models
from loopcore_torch.objectives import Inputs, PartialGrads, filled


def outermost(models: Models, loss: Tensor, unit: Tensor, inputs: Inputs, number: int, last: bool) -> Leaves:
    """Return the gradients of a loss of an outermost objective, by path.

    Args:
        models: whose parameters they are.
        loss: a scalar.
        unit: the 0-d 1, the gradient of the loss by itself, which torch takes 4 microseconds to make anew.
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
    # Once for these inputs: it walks through the graph, which is much the same in each step.
    if inputs.complete is None:
        inputs.complete = False
        models.reentrant = models.reentrant or _is_reentrant(loss)
    try:
        # DistributedDataParallel averages, and FSDP shards, what arrives in .grad: they see nothing of
        # torch.autograd.grad.
        if models.hooked or models.reentrant:
            tensor_grads = _backward(models, loss, unit, inputs.tensors, last)
        else:  # 5 microseconds faster, and nobody sees a .grad
            tensor_grads = torch.autograd.grad(
                (loss,), inputs.tensors, (unit,), retain_graph=not last, allow_unused=True
            )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise GradientError(
                "a part of the model is checkpointed with use_reentrant=True, which gives gradients to a plain "
                "backward() alone: write torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            ) from error
        tensor_grads = _by_open_ones(models, loss, unit, inputs, last, error)
    by_path: PartialGrads = {}
    is_complete = True
    for path, grad in zip(inputs.paths, tensor_grads, strict=True):
        by_path[path] = grad
        is_complete &= grad is not None
    # The usual case, in which there is nothing to fill in and, as a rule, nothing to note.
    if is_complete:
        inputs.complete = True
        if models.reach.since:
            models.reach.note(by_path, cast(Leaves, by_path), inputs, set())
        return cast(Leaves, by_path)
    grads = filled(by_path, inputs.tensors, number)
    complete = {path for other in models.inputs.values() if other.complete for path in other.paths}
    models.reach.note(by_path, grads, inputs, complete)
    return grads


def _by_open_ones(
    models: Models, loss: Tensor, unit: Tensor, inputs: Inputs, last: bool, error: RuntimeError
) -> tuple[Tensor | None, ...]:
    """Return the gradients where some parameters were frozen since the epoch began; None for these."""
    # Looked at only after an error: the usual step does not ask each parameter.
    still = tuple(leaf for leaf in inputs.tensors if leaf.requires_grad)
    if len(still) == len(inputs.tensors):
        raise error
    if not still:
        raise GradientError(
            "all parameters in wrt have requires_grad=False: set it to True, or take the gradient by others"
        ) from error
    open_grads = iter(_backward(models, loss, unit, still, last))
    return tuple(next(open_grads) if leaf.requires_grad else None for leaf in inputs.tensors)


def _backward(
    models: Models, loss: Tensor, unit: Tensor, inputs: Sequence[Tensor], last: bool
) -> tuple[Tensor | None, ...]:
    """Take gradients by ``Tensor.backward``; whatever the user left in ``.grad`` is dropped."""
    # A reentrant checkpoint refuses inputs=, and without that every parameter gets a gradient.
    leaves = (*inputs, *models.params.values()) if models.reentrant else inputs
    try:
        for leaf in leaves:
            leaf.grad = None
        loss.backward(unit, inputs=None if models.reentrant else inputs, retain_graph=not last)  # type: ignore[no-untyped-call]
        return tuple(leaf.grad for leaf in inputs)
    finally:
        for leaf in leaves:
            leaf.grad = None


def _is_reentrant(loss: Tensor) -> bool:
    """Whether its graph has a part checkpointed with ``use_reentrant=True``: only a plain ``backward()`` enters it."""
    nodes, visited = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        visited.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False
