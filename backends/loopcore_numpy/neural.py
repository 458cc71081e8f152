"""Convolution, pools, activations and normalisation of `xp`, of functions that autograd differentiates at any order."""

from __future__ import annotations

from math import pi, prod, sqrt
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval
from numpy.lib.stride_tricks import sliding_window_view

from loopcore.backend import Array
from loopcore.backend.windows import Padding, PerAxis, Windows, conv_windows, pool_windows
from loopcore_numpy import derivatives as d
from loopcore_numpy import functions as f
from loopcore_numpy.derivatives import Axis, anp


def conv(
    x: Array,
    kernel: Array,
    /,
    *,
    strides: PerAxis = 1,
    padding: Padding = "valid",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Array:
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
    windows = conv_windows(anp.shape(x), anp.shape(kernel), strides, padding, dilation, groups)
    *window, inputs, channels = anp.shape(kernel)
    # A convolution is a product of matrices: a row for each position of the window, a column for each output channel.
    size, per_group = prod(window) * inputs, channels // groups
    cut = _cut(x, windows, 0.0)  # (batch, *outputs, *window, in)
    positions = anp.shape(cut)[: 1 + len(window)]
    # groups first: (groups, positions, size) @ (groups, size, per_group)
    rows = anp.reshape(cut, (prod(positions), prod(window), groups, inputs))
    rows = anp.reshape(anp.transpose(rows, (2, 0, 1, 3)), (groups, prod(positions), size))
    columns = anp.transpose(anp.reshape(kernel, (size, groups, per_group)), (1, 0, 2))
    return anp.reshape(anp.transpose(anp.matmul(rows, columns), (1, 0, 2)), (*positions, channels))


def avg_pool(x: Array, window: PerAxis, /, *, strides: PerAxis | None = None, padding: Padding = "valid") -> Array:
    """Mean of each window, ``(batch, *space, channels)``; padding does not count.

    Args:
        x: ``(batch, *space, channels)`` with one or two space axes.
        window: an int, or one for each space axis.
        strides: the same; the window by default.
        padding: as in `conv`, less than the window.

    Raises:
        ValueError: shapes or arguments do not fit.
    """
    windows = pool_windows("avg_pool", anp.shape(x), window, strides, padding)
    # How many elements of each window lie in the array.
    counts = np.asarray(windows.counts()[..., None], np.result_type(getval(x)))
    axes = tuple(range(1 + len(counts.shape[:-1]), 2 * len(counts.shape) - 1))
    return d.total(_cut(x, windows, 0.0), axes, False) / counts


def max_pool(x: Array, window: PerAxis, /, *, strides: PerAxis | None = None, padding: Padding = "valid") -> Array:
    """Largest value of each window, ``(batch, *space, channels)``; of equal ones the first has the gradient.

    Args:
        x: ``(batch, *space, channels)`` with one or two space axes.
        window: an int, or one for each space axis.
        strides: the same; the window by default.
        padding: as in `conv`, less than the window; of minus infinity.

    Raises:
        ValueError: shapes or arguments do not fit.
    """
    windows = pool_windows("max_pool", anp.shape(x), window, strides, padding)
    cut = _cut(x, windows, -np.inf)
    batch, *outputs = anp.shape(cut)[: 1 + len(windows.window)]
    flat = anp.reshape(cut, (batch, *outputs, prod(windows.window), anp.shape(x)[-1]))
    # By the index and not by d.largest, which would share the gradient among equal elements.
    first = np.argmax(getval(flat), axis=-2, keepdims=True)
    return anp.squeeze(d.take_along_axis(flat, first, -2), -2)


def _slices(windows: Windows) -> tuple[slice, ...]:
    steps = zip(windows.strides, windows.dilation, strict=True)
    first, inner = zip(*((slice(None, None, step), slice(None, None, gap)) for step, gap in steps), strict=True)
    return (slice(None), *first, *inner)


def _views(padded: Any, windows: Windows, writeable: bool = False) -> Any:
    """Views of the windows, ``(batch, *outputs, *window, channels)``."""
    axes = tuple(range(1, padded.ndim - 1))
    views = np.moveaxis(sliding_window_view(padded, windows.extents, axes, writeable=writeable), len(axes) + 1, -1)
    return views[_slices(windows)]


def _cut_forward(x: Any, windows: Windows, fill: float) -> Any:
    return _views(np.pad(x, ((0, 0), *windows.pairs, (0, 0)), constant_values=fill), windows)


def _lay_forward(g: Any, windows: Windows) -> Any:
    lengths: Any = windows.lengths
    padded = [n + before + after for n, (before, after) in zip(lengths, windows.pairs, strict=True)]
    laid = np.zeros((g.shape[0], *padded, g.shape[-1]), g.dtype)
    views = _views(laid, windows, writeable=True)
    space = len(lengths)
    for place in np.ndindex(windows.window):  # elements of one place in all windows do not overlap
        at = (slice(None),) * (1 + space) + place
        views[at] += g[at]
    return laid[
        (slice(None), *(slice(before, before + n) for n, (before, _) in zip(lengths, windows.pairs, strict=True)))
    ]


# The windows of x side by side, and the sum of what lies over each element of x: each the adjoint of the other.
_cut: Any = primitive(_cut_forward)
_lay: Any = primitive(_lay_forward)
defvjp(_cut, lambda ans, x, windows, fill: lambda g: _lay(g, windows))
defvjp(_lay, lambda ans, g, windows: lambda h: _cut(h, windows, 0.0))


def gelu(x: Array, /, *, approximate: bool = False) -> Array:
    """``x`` times the normal distribution function of ``x``; that by ``tanh`` if it may be approximate."""
    if approximate:
        return 0.5 * x * (1.0 + d.tanh(sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + d.erf(x * sqrt(0.5)))


def silu(x: Array, /) -> Array:
    """``x * sigmoid(x)``."""
    return x * d.sigmoid(x)


def layer_norm(
    x: Array, scale: Array | None = None, offset: Array | None = None, /, *, axis: Axis = -1, epsilon: float = 1e-5
) -> Array:
    """Shift and scale to mean 0 and variance 1 over the axes, then multiply by ``scale`` and add ``offset``.

    Args:
        x: any shape.
        scale: broadcasts against ``x``; usually the shape of the normalised axes.
        offset: the same.
        axis: an axis or several.
        epsilon: added to the variance, which divides by the number of elements.
    """
    deviation = x - f.mean(x, axis, keepdims=True)
    normal = deviation / d.sqrt(f.mean(deviation * deviation, axis, keepdims=True) + epsilon)
    normal = normal if scale is None else normal * scale
    return normal if offset is None else normal + offset
