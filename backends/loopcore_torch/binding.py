"""Which way a model is bound, by what it is; and models that have no weights before they see a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, nn

from loopcore.errors import UnknownModelError
from loopcore_torch.bound_module import Bound, BoundModule
from loopcore_torch.pairs import BoundPair


def bind_model(
    name: str, model: Any, dtype: torch.dtype | None, device: torch.device | None, compile: str | None
) -> Bound:
    """Bind one model in the way of its kind: a module, one of Keras, or a pair.

    Args:
        name: prefix of its paths; ``""`` for none.
        model: an ``nn.Module``, a pair or a tree of arrays.
        dtype: what NumPy arrays become; None keeps theirs.
        device: where it goes; None leaves it where it is.
        compile: name of a torch.compile backend, or None.

    Raises:
        UnknownModelError: it is none of these.
    """
    if isinstance(model, nn.Module):
        if is_keras(model):
            # This imports Keras, which need not be installed.
            from loopcore_torch.from_keras import BoundKeras

            return BoundKeras(name, model if device is None else model.to(device))
        return BoundModule(name, model if device is None else model.to(device), compile)
    if isinstance(model, (tuple, list, Mapping, Tensor, np.ndarray)):
        return BoundPair(name, model, dtype, device, compile)
    hint = f": write {model.__name__}(...)" if isinstance(model, type) else ""
    raise UnknownModelError(
        f"the model{_quoted(name)} is a {type(model).__name__}{hint}. The torch backend takes an nn.Module, "
        "(apply_fn, params[, state]), or a tree (dict, list, tuple) of floating arrays"
    )


def _quoted(name: str) -> str:
    return f" {name!r}" if name else ""


def is_keras(model: nn.Module) -> bool:
    """Whether it is a model or layer of Keras, which is not imported to find out."""
    return any(cls.__module__.split(".")[0] == "keras" for cls in type(model).__mro__)


def build(module: nn.Module, batch: Callable[[], Any]) -> None:
    """Call a module that has no weights yet on a batch: one of Keras, or one with lazy parameters."""
    if is_keras(module):
        from loopcore_keras.models import build as build_keras

        build_keras(module, batch)
    elif any(nn.parameter.is_lazy(tensor) for tensor in chain(module.parameters(), module.buffers())):
        xs, modes = batch(), {part: part.training for part in module.modules()}
        if xs is None:
            return
        module.eval()  # a batch that is only looked at is in no statistics
        with torch.no_grad():
            module(optree.tree_map(_floats, xs))
        for part in module.modules():  # one that was lazy is of another class now
            part.training = modes.get(part, True)


def _floats(leaf: Any) -> Any:
    tensor = torch.as_tensor(leaf)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
