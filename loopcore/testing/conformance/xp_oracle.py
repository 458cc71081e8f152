"""What NumPy has no function for, one window or row at a time; padding is ``(before, after)`` per axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import erfc, pi, sqrt
from typing import Any

import numpy as np

from loopcore.testing.conformance.problems import Array

Pairs = Sequence[tuple[int, int]]


def conv(x: Array, kernel: Array, strides: Sequence[int], pads: Pairs, dilation: Sequence[int], groups: int) -> Array:
    """``(batch, *space, in)`` and ``(*window, in // groups, out)`` -> ``(batch, *space, out)``."""
    *window, inputs, outputs = kernel.shape
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    per_group = outputs // groups
    y = np.zeros((len(x), *_lengths(padded, window, strides, dilation), outputs))
    for place, part in _parts(padded, window, strides, dilation):
        axes = (tuple(range(1, part.ndim)), tuple(range(part.ndim - 1)))
        for group in range(groups):
            consumed, produced = (
                slice(group * inputs, (group + 1) * inputs),
                slice(group * per_group, (group + 1) * per_group),
            )
            at: tuple[Any, ...] = (slice(None), *place, produced)
            y[at] = np.tensordot(part[..., consumed], kernel[..., produced], axes)
    return y


def pool(
    reduce: Callable[..., Any], x: Array, window: Sequence[int], strides: Sequence[int], pads: Pairs | None = None
) -> Array:
    """Reduce each window by a function of NumPy that passes over NaN, which is what pads hold."""
    dilation = (1,) * len(window)
    padded = np.pad(x, [(0, 0), *(pads or ((0, 0),) * len(window)), (0, 0)], constant_values=np.nan)
    y = np.zeros((len(x), *_lengths(padded, window, strides, dilation), x.shape[-1]))
    for place, part in _parts(padded, window, strides, dilation):
        at: tuple[Any, ...] = (slice(None), *place)
        y[at] = reduce(part, axis=tuple(range(1, part.ndim - 1)))
    return y


def _lengths(x: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[int]:
    free = zip(x.shape[1:-1], window, strides, dilation, strict=True)
    return [len(range(0, n - (size - 1) * gap, step)) for n, size, step, gap in free]


def _parts(
    x: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    for place in np.ndindex(*_lengths(x, window, strides, dilation)):
        spans = zip(place, window, strides, dilation, strict=True)
        parts = [slice(n * step, n * step + size * gap, gap) for n, size, step, gap in spans]
        yield place, x[:, *parts]


def gelu(x: Array) -> Array:
    """``x`` times the normal distribution function, which is computed by `math.erfc`."""
    return np.asarray(x * 0.5 * np.vectorize(erfc)(-x / sqrt(2)))


def gelu_by_tanh(x: Array) -> Array:
    """Its approximation by tanh: Hendrycks and Gimpel 2016, section 2."""
    return np.asarray(0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))))


def layer_norm(x: Array, axis: Any, epsilon: float = 1e-5) -> Array:
    """``x`` shifted and scaled to mean 0 and variance 1 over axes."""
    return np.asarray((x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon))


def segment_sum(x: Array, ids: Array, count: int) -> Array:
    """Sums of the rows of ``x`` that have the same id."""
    return np.stack([x[ids == number].sum(0) for number in range(count)])


def rnn(x: Array, weights: Array) -> Array:
    """States, the last one, and the sum of all numbers from 0 to that of the rows."""
    states = [x[0] * 0.5]
    for row in x:
        states.append(np.tanh(states[-1] @ weights + row))
    return np.stack([*states[1:], states[-1], np.full_like(x[0], sum(range(len(x) + 1)))])
