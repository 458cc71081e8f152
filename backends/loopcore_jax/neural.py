"""Convolution, pools, activations and normalisation of ``learner.xp``, by those of ``jax.lax`` and ``jax.nn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from loopcore.backend import Array
from loopcore.backend.windows import Padding, PerAxis, Windows, conv_windows, pool_windows
from loopcore_jax.functions import Axis

# What JAX calls the axes of input, kernel and output, by the number of space axes.
_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


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
    windows = conv_windows(x.shape, kernel.shape, strides, padding, dilation, groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        windows.strides,
        windows.pairs,
        rhs_dilation=windows.dilation,
        dimension_numbers=_LAYOUTS[len(windows.window)],
        feature_group_count=groups,
    )


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
    windows = pool_windows("avg_pool", x.shape, window, strides, padding)
    # How many real elements each window has is known without the data, and computed by NumPy.
    return _reduce(x, windows, lax.add, 0.0) / np.asarray(windows.counts()[..., None], x.dtype)


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
    return _reduce(x, pool_windows("max_pool", x.shape, window, strides, padding), lax.max, -np.inf)


def _reduce(x: Array, windows: Windows, combine: Callable[[Any, Any], Any], start: float) -> Array:
    """Combine the elements of each window of the space axes, beginning with ``start``."""
    # Windows reach over no other example and no other channel.
    window, strides, padding = (1, *windows.window, 1), (1, *windows.strides, 1), ((0, 0), *windows.pairs, (0, 0))
    return lax.reduce_window(x, np.array(start, x.dtype), combine, window, strides, padding)


def gelu(x: Array, /, *, approximate: bool = False) -> Array:
    """``x`` times the normal distribution function of ``x``; that by ``tanh`` if it may be approximate."""
    return jax.nn.gelu(x, approximate=approximate)


def silu(x: Array, /) -> Array:
    """``x * sigmoid(x)``."""
    return jax.nn.silu(x)


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
    mean = jnp.mean(x, axis, keepdims=True)
    variance = jnp.var(x, axis, keepdims=True)  # that of `standardize` itself is E[x^2] - E[x]^2, which cancels
    normal = jax.nn.standardize(x, axis, mean, variance, epsilon)
    normal = normal if scale is None else normal * scale
    return normal if offset is None else normal + offset
