"""Convolution, pools, activations and normalisation of ``learner.xp``, by those of ``tf.nn``."""

from __future__ import annotations

from functools import partial
from math import inf, pi, sqrt
from typing import Literal, TypeAlias

import tensorflow as tf

from loopcore.backend import Array
from loopcore.backend.windows import Padding, PerAxis, Windows, conv_windows, pool_windows
from loopcore_tensorflow.functions import Axis

_LAYOUTS: dict[int, Literal["NWC", "NHWC"]] = {1: "NWC", 2: "NHWC"}
_Word: TypeAlias = Literal["VALID", "SAME"]  # what TensorFlow calls a padding


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
    windows = conv_windows(tuple(x.shape), tuple(kernel.shape), strides, padding, dilation, groups)
    depthwise = groups > 1 and kernel.shape[-2] == 1
    # TensorFlow has no strides with dilation, nor different strides by depth: every window is computed, some are kept
    dilated, uneven = max(windows.dilation) > 1, depthwise and len(set(windows.strides)) > 1
    thinned = max(windows.strides) > 1 and (dilated or uneven)
    x, word = _padded(x, windows, 0.0, spelled_out=thinned)
    steps = (1,) * len(windows.strides) if thinned else windows.strides
    if depthwise:
        channel_kernels = tf.reshape(kernel, (*windows.window, groups, kernel.shape[-1] // groups))
        y = _depthwise(x, channel_kernels, steps, word, windows.dilation)
    else:
        layout = _LAYOUTS[len(windows.window)]
        convolve = partial(
            tf.nn.convolution, strides=steps, padding=word, data_format=layout, dilations=windows.dilation
        )
        # each group by itself, since on a CPU TensorFlow has no gradients of groups
        pairs = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
        y = convolve(x, kernel) if groups == 1 else tf.concat([convolve(*pair) for pair in pairs], -1)
    return y[(slice(None), *(slice(None, None, step) for step in windows.strides))] if thinned else y


def _depthwise(x: Array, kernel: Array, steps: tuple[int, ...], word: _Word, dilation: tuple[int, ...]) -> Array:
    """Convolve each channel by itself, with a kernel ``(*window, in, n)``."""
    # TensorFlow has it for two space axes only: one axis is an image of one row.
    flat = len(steps) == 1
    if flat:
        x, kernel = tf.expand_dims(x, 1), tf.expand_dims(kernel, 0)
        steps, dilation = steps * 2, (1, *dilation)
    y = tf.nn.depthwise_conv2d(x, kernel, (1, *steps, 1), word, dilations=dilation)
    return tf.squeeze(y, 1) if flat else y


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
    windows = pool_windows("avg_pool", tuple(x.shape), window, strides, padding)
    padded, word = _padded(x, windows, 0.0)
    y = tf.nn.avg_pool(padded, windows.window, windows.strides, word)
    if padded is x:
        return y
    # TensorFlow divides by the size of the window: the share of real elements in each corrects that.
    real, _ = _padded(tf.ones_like(x[:1, ..., :1]), windows, 0.0)
    return y / tf.nn.avg_pool(real, windows.window, windows.strides, word)


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
    windows = pool_windows("max_pool", tuple(x.shape), window, strides, padding)
    padded, word = _padded(x, windows, -inf)
    return tf.nn.max_pool(padded, windows.window, windows.strides, word)


def _padded(x: Array, windows: Windows, fill: float, spelled_out: bool = False) -> tuple[Array, _Word]:
    """Pad an array where TensorFlow has no word for the padding.

    Args:
        x: ``(batch, *space, channels)``.
        windows: what is to be padded, and how.
        fill: the value of the padding.
        spelled_out: pad also where there is a word, since the strides are not those that TensorFlow will see.

    Returns:
        The array and TensorFlow's word for the padding that is left to do.
    """
    if windows.padding == "valid":
        return x, "VALID"
    if windows.padding == "same" and not spelled_out:
        return x, "SAME"
    return tf.pad(x, ((0, 0), *windows.pairs, (0, 0)), constant_values=fill), "VALID"


def gelu(x: Array, /, *, approximate: bool = False) -> Array:
    """``x`` times the normal distribution function of ``x``; that by ``tanh`` if it may be approximate."""
    # tf.nn.gelu takes its constants through float32, and is off by 1e-8 in float64
    if approximate:
        return 0.5 * x * (1.0 + tf.tanh(sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + tf.math.erf(x * sqrt(0.5)))


def silu(x: Array, /) -> Array:
    """``x * sigmoid(x)``."""
    return tf.nn.silu(x)


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
    deviation = x - tf.reduce_mean(x, axis, keepdims=True)
    variance = tf.reduce_mean(tf.square(deviation), axis, keepdims=True)
    normal = deviation * tf.math.rsqrt(variance + epsilon)  # tf.nn.batch_normalization subtracts products, and cancels
    normal = normal if scale is None else normal * scale
    return normal if offset is None else normal + offset
