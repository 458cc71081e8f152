"""Models of this backend for the conformance suite: modules, as its users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Weights: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]

dtypes = ("float64", "float32")
batch_norm_correction = 1
# What the suite calls the arrays of a normalisation -> what torch calls them.
_TO_TORCH = {"scale": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
_FROM_TORCH = {name: suite_name for suite_name, name in _TO_TORCH.items()}


class Mlp(nn.Module):
    """``out(tanh(hidden(x)))``."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs)`` -> ``(batch, outputs)``."""
        result: Tensor = self.out(torch.tanh(self.hidden(x)))
        return result


class Structured(nn.Module):
    """Takes a keyword and returns a dict."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, *, scale: float) -> dict[str, Tensor]:
        """``(batch, inputs)`` -> two arrays ``(batch, outputs)``."""
        y = self.out(x)
        return {"plain": y, "scaled": scale * y}


def linear(weights: Weights, dtype: str) -> Any:
    """``x @ weight + bias``."""
    return _filled(nn.Linear(*weights["weight"].shape), weights, dtype)


def mlp(weights: Weights, dtype: str) -> Any:
    """``out(tanh(hidden(x)))``."""
    inputs, width = weights["hidden.weight"].shape
    return _filled(Mlp(inputs, width, weights["out.weight"].shape[1]), weights, dtype)


def batch_norm(weights: Weights, dtype: str) -> Any:
    """``out(norm(x))``."""
    inputs, outputs = weights["out.weight"].shape
    model = nn.Sequential()
    model.add_module("norm", nn.BatchNorm1d(inputs, eps=1e-5, momentum=0.1))
    model.add_module("out", nn.Linear(inputs, outputs))
    return _filled(model, weights, dtype)


def dropout(weights: Weights, p: float, dtype: str) -> Any:
    """``out(drop(x))``."""
    model = nn.Sequential()
    model.add_module("drop", nn.Dropout(p))
    model.add_module("out", nn.Linear(*weights["out.weight"].shape))
    return _filled(model, weights, dtype)


def structured(weights: Weights, dtype: str) -> Any:
    """A dense layer that takes a keyword and returns a dict."""
    return _filled(Structured(*weights["out.weight"].shape), weights, dtype)


def arrays(tree: Any, dtype: str) -> Any:
    """Return a dict of tensors in a dtype."""
    return {name: torch.tensor(value, dtype=_dtype(dtype)) for name, value in tree.items()}


def neutral(weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    """Return weights under the suite's names; torch has other ones, and keeps dense weights transposed."""
    renamed: dict[str, np.ndarray[Any, Any]] = {}
    for path, value in weights.items():
        head, _, name = path.rpartition(".")
        if name == "num_batches_tracked":
            continue
        if head.endswith("norm"):
            name = _FROM_TORCH[name]
        renamed[f"{head}.{name}" if head else name] = value.T if name == "weight" else value
    return renamed


def is_plain(array: Any) -> bool:
    """Whether it belongs to no graph."""
    return not array.requires_grad


def _dtype(name: str) -> torch.dtype:
    torch_dtype: torch.dtype = getattr(torch, name)
    return torch_dtype


def _filled(model: nn.Module, weights: Weights, dtype: str) -> nn.Module:
    """Copy weights of the suite into a module, and return the module."""
    model.to(_dtype(dtype))
    state = model.state_dict()
    for path, value in weights.items():
        head, _, name = path.rpartition(".")
        name = _TO_TORCH.get(name, name)
        # The suite has (inputs, outputs), torch (outputs, inputs).
        array = value.T if name == "weight" else value
        state[f"{head}.{name}" if head else name].copy_(torch.tensor(array))
    return model
