"""Order along axes, running sums and sums of segments, in array-API spelling where there is one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loopcore.backend.array_namespace import only_axis


def matrix_transpose(x: Tensor, /) -> Tensor:
    """Swap the last two axes."""
    return x.mT


def logaddexp(x1: Tensor, x2: Tensor, /) -> Tensor:
    """``log(exp(x1) + exp(x2))`` without overflow."""
    return torch.logaddexp(x1, x2)


def cumulative_sum(x: Tensor, /, *, axis: int | None = None, include_initial: bool = False) -> Tensor:
    """Sums of the elements so far along an axis; of bools their number.

    Args:
        x: any shape.
        axis: may be left out for an array of one axis.
        include_initial: begin with a zero, and be longer by one.
    """
    at = only_axis("cumulative_sum", x.ndim, axis)
    total = torch.cumsum(x, at)
    if not include_initial:
        return total
    before = (0, 0) * (x.ndim - 1 - at) + (1, 0)  # torch names the last axis first
    return functional.pad(total, before)


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False) -> Tensor:
    """Order along an axis; the gradient goes where the elements came from."""
    return torch.sort(x, dim=axis, descending=descending, stable=True).values


def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False) -> Tensor:
    """Indices that order along an axis; equal elements stay in their order."""
    return torch.argsort(x, dim=axis, descending=descending, stable=True)


def top_k(x: Tensor, k: int, /, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The largest elements along an axis and their indices, the largest first.

    Args:
        x: any shape; which of equal elements comes first depends on the framework.
        k: how many.
        axis: along which.
    """
    values, indices = torch.topk(x, k, dim=axis)
    return values, indices


def segment_sum(x: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    """Sum the rows of each segment, ``(n, ...)`` -> ``(num_segments, ...)``; of an empty one zeros.

    Args:
        x: an array or more axes, the first along the rows.
        segment_ids: ``(n,)`` integers from 0, below ``num_segments``, in any order: where each row is added.
        num_segments: length of the result.
    """
    return x.new_zeros((num_segments, *x.shape[1:])).index_add(0, segment_ids, x)
