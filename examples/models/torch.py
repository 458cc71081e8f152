"""Models of the examples in PyTorch: subclasses of ``nn.Module``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OWN = {"scale": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}


class Mlp(nn.Module):
    """Two hidden layers, smooth so that a gradient of a gradient is as well."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs, width)
        self.hidden2 = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Any:
        x = F.silu(self.hidden1(x))
        return self.out(F.silu(self.hidden2(x)))


class Generator(Mlp):
    """An `Mlp` that ends in pixels between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class Encoder(Mlp):
    """An `Mlp` with two results: means and logarithms of variances."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(super().forward(x).chunk(2, dim=-1))


class Normalised(nn.Module):
    """Two hidden layers with BatchNorm; gives the last hidden layer and the output."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs, width)
        self.norm1 = nn.BatchNorm1d(width)
        self.hidden2 = nn.Linear(width, width)
        self.norm2 = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm1(self.hidden1(x)))
        x = F.relu(self.norm2(self.hidden2(x)))
        return x, self.out(x)


class Recurrent(nn.Module):
    """A character model: symbols and a hidden state -> logits of the next symbols and the hidden state after them."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        outputs, last = self.cell(self.embed(tokens), hidden[None])
        return self.out(outputs), last[0]


def regressor(inputs: int, seed: int = 0) -> nn.Module:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 1))


def generator(inputs: int, width: int, pixels: int, seed: int = 0) -> nn.Module:
    """``(batch, inputs)`` -> pixels ``(batch, pixels)`` in [0, 1]."""
    torch.manual_seed(seed)
    return Generator(inputs, width, pixels)


def critic(pixels: int, width: int, seed: int = 0) -> nn.Module:
    """``(batch, pixels)`` -> ``(batch, 1)``."""
    torch.manual_seed(seed)
    return Mlp(pixels, width, 1)


def encoder(pixels: int, width: int, latent: int, seed: int = 0) -> nn.Module:
    """``(batch, pixels)`` -> mean and logarithm of the variance, each ``(batch, latent)``."""
    torch.manual_seed(seed)
    return Encoder(pixels, width, 2 * latent)


def decoder(latent: int, width: int, pixels: int, seed: int = 0) -> nn.Module:
    """``(batch, latent)`` -> logits of pixels ``(batch, pixels)``."""
    torch.manual_seed(seed)
    return Mlp(latent, width, pixels)


def normalised(inputs: int, width: int, outputs: int, seed: int = 0) -> nn.Module:
    """``(batch, inputs)`` -> features ``(batch, width)`` and ``(batch, outputs)``; with BatchNorm."""
    torch.manual_seed(seed)
    return Normalised(inputs, width, outputs)


def recurrent(symbols: int, width: int, seed: int = 0) -> nn.Module:
    """``(batch, time)`` and ``(batch, width)`` -> logits ``(batch, time, symbols)`` and ``(batch, width)``."""
    torch.manual_seed(seed)
    return Recurrent(symbols, width)


def own(present: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names all backends share -> names and shapes of these models, completed by the present ones."""
    found = dict(present)
    for path, array in weights.items():
        head, _, name = path.rpartition(".")
        found[f"{head}.{_OWN.get(name, name)}"] = np.transpose(array) if name == "weight" else array
    return found
