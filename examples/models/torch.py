"""Models of the examples in PyTorch: subclasses of ``nn.Module``."""

from __future__ import annotations

import torch
from torch import nn


def regressor(inputs: int, seed: int = 0) -> nn.Module:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 1))
