"""Array-API spellings of torch functions; only what differs from torch's own spelling is written here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Axis: TypeAlias = int | tuple[int, ...] | None
Number: TypeAlias = bool | int | float


def axes_of(x: Tensor, axis: Axis) -> tuple[int, ...]:
    """The axes as torch takes them; None is all."""
    if axis is None:
        return tuple(range(x.ndim))
    return (axis,) if isinstance(axis, int) else tuple(axis)


def _tensor_like(value: Tensor | Number, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.result_type(x, value), device=x.device)


def _pair(x1: Tensor | Number, x2: Tensor | Number) -> tuple[Tensor, Tensor]:
    if isinstance(x1, Tensor):
        return x1, _tensor_like(x2, x1)
    if isinstance(x2, Tensor):
        return _tensor_like(x1, x2), x2
    raise TypeError(f"one of the two must be an array, got {x1!r} and {x2!r}")


def maximum(x1: Tensor | Number, x2: Tensor | Number, /) -> Tensor:
    """Elementwise larger of two arrays, or of an array and a number."""
    return torch.maximum(*_pair(x1, x2))


def minimum(x1: Tensor | Number, x2: Tensor | Number, /) -> Tensor:
    """Elementwise smaller of two arrays, or of an array and a number."""
    return torch.minimum(*_pair(x1, x2))


def clip(x: Tensor, /, min: Tensor | Number | None = None, max: Tensor | Number | None = None) -> Tensor:
    """Limit to ``[min, max]``; None is no limit."""
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) or isinstance(max, Tensor):  # clamp takes two tensors or two numbers, never one of each
        low = None if min is None else _tensor_like(min, x)
        high = None if max is None else _tensor_like(max, x)
        return torch.clamp(x, low, high)
    return torch.clamp(x, min, max)


def sum(x: Tensor, /, *, axis: Axis = None, dtype: torch.dtype | None = None, keepdims: bool = False) -> Tensor:
    """Sum over axes, all of them by default."""
    return torch.sum(x, dim=axes_of(x, axis), keepdim=keepdims, dtype=dtype)


def mean(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over axes; of integers and bools in float32."""
    if x.dtype is torch.bool and axis is None and not keepdims:
        return torch.count_nonzero(x) / x.numel()  # in half the time
    dtype = None if x.is_floating_point() else torch.float32
    return torch.mean(x, dim=axes_of(x, axis), keepdim=keepdims, dtype=dtype)


def var(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """Variance over axes; ``correction=1`` divides by n - 1."""
    return torch.var(x, dim=axes_of(x, axis), correction=correction, keepdim=keepdims)


def max(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest value; ties share the gradient."""
    return torch.amax(x, dim=axes_of(x, axis), keepdim=keepdims)


def min(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Smallest value; ties share the gradient."""
    return torch.amin(x, dim=axes_of(x, axis), keepdim=keepdims)


def any(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element is true (not zero)."""
    return torch.any(x.to(torch.bool), dim=axes_of(x, axis), keepdim=keepdims)


def all(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element is true (not zero)."""
    return torch.all(x.to(torch.bool), dim=axes_of(x, axis), keepdim=keepdims)


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the largest value; of the flat array without ``axis``."""
    return torch.argmax(x, dim=axis, keepdim=keepdims)


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Index of the smallest value; of the flat array without ``axis``."""
    return torch.argmin(x, dim=axis, keepdim=keepdims)


def einsum(subscripts: str, /, *operands: Tensor) -> Tensor:
    """Sum of products over named axes; lengths of one name agree.

    Args:
        subscripts: as ``"ij,jk->ik"``, a letter for each axis; ``...`` stands for further ones.
        operands: an array for each term.
    """
    return torch.einsum(subscripts, *operands)


def concat(arrays: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """Join arrays along an axis; None flattens them first."""
    if axis is None:
        return torch.cat([x.reshape(-1) for x in arrays])
    return torch.cat(tuple(arrays), dim=axis)


def stack(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
    """Join arrays of one shape along a new axis."""
    return torch.stack(tuple(arrays), dim=axis)


def reshape(x: Tensor, /, shape: int | Sequence[int]) -> Tensor:
    """The same elements in another shape; one length may be -1."""
    return torch.reshape(x, (shape,) if isinstance(shape, int) else tuple(shape))


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """Reorder the axes."""
    return torch.permute(x, tuple(axes))


def expand_dims(x: Tensor, /, *, axis: int = 0) -> Tensor:
    """Insert an axis of length 1."""
    return torch.unsqueeze(x, axis)


def squeeze(x: Tensor, /, axis: int | tuple[int, ...]) -> Tensor:
    """Remove axes, which must have length 1."""
    for dim in axes_of(x, axis):
        if x.shape[dim] != 1:
            raise ValueError(f"squeeze: axis {dim} of shape {tuple(x.shape)} has not length 1")
    return torch.squeeze(x, axes_of(x, axis))


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """Repeat along axes of length 1 and new leading ones."""
    return torch.broadcast_to(x, tuple(shape))


def flip(x: Tensor, /, *, axis: Axis = None) -> Tensor:
    """Reverse along axes, all of them by default."""
    return torch.flip(x, axes_of(x, axis))


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """Pick slices along an axis; ``indices`` (integers, any shape) stand in its place."""
    if axis is None and x.ndim != 1:
        raise ValueError(f"take from an array of shape {tuple(x.shape)} needs axis=")
    # index_select takes a vector of indices; their own shape is put back afterwards.
    at = (axis or 0) % x.ndim
    picked = torch.index_select(x, at, indices.reshape(-1))
    return picked.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """Pick elements along an axis, one index each."""
    return torch.take_along_dim(x, indices.to(torch.int64), dim=axis)


def astype(x: Tensor, dtype: torch.dtype, /) -> Tensor:
    """Convert to another dtype."""
    return x.to(dtype)


def zeros_like(x: Tensor, /, *, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of the same shape, and dtype unless given."""
    return torch.zeros_like(x, dtype=dtype)


def ones_like(x: Tensor, /, *, dtype: torch.dtype | None = None) -> Tensor:
    """Ones of the same shape, and dtype unless given."""
    return torch.ones_like(x, dtype=dtype)


def full_like(x: Tensor, /, fill_value: Tensor | Number, *, dtype: torch.dtype | None = None) -> Tensor:
    """One value in the same shape, and dtype unless given."""
    # torch.full_like would cut a tensor out of its graph.
    if isinstance(fill_value, Tensor):
        return torch.broadcast_to(fill_value.to(dtype or x.dtype), x.shape).clone()
    return torch.full_like(x, fill_value, dtype=dtype)


def softplus(x: Tensor, /) -> Tensor:
    """``log(1 + exp(x))``."""
    return functional.softplus(x, threshold=40.0)  # torch's default of 20 is off by 2e-9 in float64


def softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """Exponentials that sum to 1 along an axis."""
    return torch.softmax(x, dim=axis)


def log_softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    """Logarithm of `softmax`, without overflow."""
    return torch.log_softmax(x, dim=axis)


def logsumexp(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` without overflow."""
    return torch.logsumexp(x, dim=axes_of(x, axis), keepdim=keepdims)


def vector_norm(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """Norm of vectors along axes. Its first and second gradients are 0 at the zero vector."""
    if ord != 2 or x.is_complex():
        other: Tensor = torch.linalg.vector_norm(x, ord=ord, dim=axes_of(x, axis), keepdim=keepdims)
        return other
    squares = sum(x * x, axis=axis, keepdims=keepdims)
    zero = squares == 0  # torch's own norm has a second gradient of NaN here
    roots = torch.sqrt(torch.where(zero, torch.ones_like(squares), squares))
    norm: Tensor = torch.where(zero, torch.zeros_like(squares), roots)
    return norm
