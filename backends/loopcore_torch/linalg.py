"""``xp.linalg`` but for norms."""

from __future__ import annotations

import torch
from torch import Tensor


def solve(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The solution of ``x1 @ x = x2``; batches broadcast.

    Args:
        x1: ``(..., n, n)``.
        x2: ``(..., n, k)``, or a vector ``(n,)``.
    """
    if x2.ndim == 1:
        return torch.squeeze(solve(x1, x2.unsqueeze(-1)), -1)
    if x2.ndim == x1.ndim - 1:
        x2 = x2.unsqueeze(0)  # torch takes it for a batch of vectors
    solution: Tensor = torch.linalg.solve(x1, x2)
    return solution


def slogdet(x: Tensor, /) -> tuple[Tensor, Tensor]:
    """Sign of the determinant, and the logarithm of its absolute value: ``(..., n, n)`` -> two of ``(...)``."""
    sign, logarithm = torch.linalg.slogdet(x)
    return sign, logarithm


def inv(x: Tensor, /) -> Tensor:
    """The inverse of square matrices."""
    inverse: Tensor = torch.linalg.inv(x)
    return inverse
