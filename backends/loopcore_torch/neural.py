"""Convolution, pools, activations and normalisation of ``learner.xp``, by those of ``torch.nn.functional``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loopcore.backend.windows import Padding, PerAxis, Windows, conv_windows, pool_windows
from loopcore_torch.functions import Axis, axes_of

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d}
_AVG: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d}
_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d}


def conv(
    x: Tensor,
    kernel: Tensor,
    /,
    *,
    strides: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate over one or two space axes, channels last.

    Args:
        x: ``(batch, *space, in)``.
        kernel: ``(*window, in // groups, out)``.
        strides: an int, or one for each space axis.
        padding: ``"valid"``, ``"same"`` (``ceil(n / stride)`` outputs, odd padding at the end), an int, or
            ``(before, after)`` for each space axis.
        dilation: an int, or one for each space axis.
        groups: the channels are in so many groups, each with its own outputs.

    Returns:
        ``(batch, *space, out)``.

    Raises:
        ValueError: shapes or arguments do not fit.
    """
    windows = conv_windows(x.shape, kernel.shape, strides, padding, dilation, groups)
    space = len(windows.window)
    channels_first = torch.movedim(x, -1, 1)
    amount = _symmetric(windows)
    if amount is None:
        channels_first, amount = _padded(channels_first, windows, 0.0), (0,) * space
    weight = torch.permute(kernel, (-1, -2, *range(space)))
    y = _CONV[space](channels_first, weight, None, windows.strides, amount, windows.dilation, groups)
    return torch.movedim(y, 1, -1)


def avg_pool(x: Tensor, window: PerAxis, /, *, strides: PerAxis | None = None, padding: Padding = "valid") -> Tensor:
    """Mean of each window, ``(batch, *space, channels)``; padding does not count.

    Args:
        x: ``(batch, *space, channels)`` with one or two space axes.
        window: an int, or one for each space axis.
        strides: the same; the window by default.
        padding: as in `conv`, less than the window.

    Raises:
        ValueError: shapes or arguments do not fit.
    """
    windows = pool_windows("avg_pool", x.shape, window, strides, padding)
    pool = _AVG[len(windows.window)]
    channels_first = torch.movedim(x, -1, 1)
    amount = _up_to_half(windows)
    if amount is not None:
        y = pool(channels_first, windows.window, windows.strides, amount, count_include_pad=False)
    else:
        # The mean over a whole window, zeros included, times its size over the count that lies in the array.
        share = torch.as_tensor(prod(windows.window) / windows.counts(), dtype=x.dtype, device=x.device)
        y = pool(_padded(channels_first, windows, 0.0), windows.window, windows.strides) * share
    return torch.movedim(y, 1, -1)


def max_pool(x: Tensor, window: PerAxis, /, *, strides: PerAxis | None = None, padding: Padding = "valid") -> Tensor:
    """Largest value of each window, ``(batch, *space, channels)``; of equal ones the first has the gradient.

    Args:
        x: ``(batch, *space, channels)`` with one or two space axes.
        window: an int, or one for each space axis.
        strides: the same; the window by default.
        padding: as in `conv`, less than the window; of minus infinity.

    Raises:
        ValueError: shapes or arguments do not fit.
    """
    windows = pool_windows("max_pool", x.shape, window, strides, padding)
    channels_first = torch.movedim(x, -1, 1)
    amount = _up_to_half(windows)
    if amount is None:
        channels_first, amount = _padded(channels_first, windows, -inf), (0,) * len(windows.window)
    y: Tensor = _MAX[len(windows.window)](channels_first, windows.window, windows.strides, amount)
    return torch.movedim(y, 1, -1)


def _symmetric(windows: Windows) -> tuple[int, ...] | None:
    """Padding on both sides, if it is the same on both, as torch's functions take it."""
    pairs = windows.pairs
    return tuple(before for before, _ in pairs) if all(before == after for before, after in pairs) else None


def _up_to_half(windows: Windows) -> tuple[int, ...] | None:
    """The same for pools, which take no more than half of the window."""
    amount = _symmetric(windows)
    if amount is None or any(2 * pad > size for pad, size in zip(amount, windows.window, strict=True)):
        return None
    return amount


def _padded(channels_first: Tensor, windows: Windows, fill: float) -> Tensor:
    """``(batch, channels, *space)``, padded; torch names the last axis first."""
    return functional.pad(channels_first, tuple(chain(*reversed(windows.pairs))), value=fill)


def gelu(x: Tensor, /, *, approximate: bool = False) -> Tensor:
    """``x`` times the normal distribution function of ``x``; that by ``tanh`` if it may be approximate."""
    return functional.gelu(x, approximate="tanh" if approximate else "none")


def silu(x: Tensor, /) -> Tensor:
    """``x * sigmoid(x)``."""
    return functional.silu(x)


def layer_norm(
    x: Tensor, scale: Tensor | None = None, offset: Tensor | None = None, /, *, axis: Axis = -1, epsilon: float = 1e-5
) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the axes, then multiply by ``scale`` and add ``offset``.

    Args:
        x: any shape.
        scale: broadcasts against ``x``; usually the shape of the normalised axes.
        offset: the same.
        axis: an axis or several.
        epsilon: added to the variance, which divides by the number of elements.
    """
    axes = sorted(dim % x.ndim for dim in axes_of(x, axis))
    first = x.ndim - len(axes)
    if axes == list(range(first, x.ndim)):  # torch normalises the last axes
        normal = functional.layer_norm(x, x.shape[first:], eps=epsilon)
    else:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        normal = (x - mean) * torch.rsqrt(variance + epsilon)
    normal = normal if scale is None else normal * scale
    return normal if offset is None else normal + offset
