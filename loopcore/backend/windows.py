"""Windows over the space axes of an array: the arguments of ``xp.conv`` and the pools, checked and spelled out.

Arrays are channels last, ``(batch, *space, channels)``, with one or two space axes. A length is None where a program
is traced without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from loopcore._utils.validation import is_whole
from loopcore.backend.protocol import HostArray

PerAxis: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int | Sequence[int]]
Pairs: TypeAlias = tuple[tuple[int, int], ...]
Lengths: TypeAlias = Sequence[int | None]


class Windows(NamedTuple):
    """Where windows lie. Each tuple has one entry for each space axis.

    Attributes:
        lengths: of the space axes.
        window: elements of a window.
        strides: from one window to the next.
        dilation: from one element of a window to the next.
        padding: ``"valid"``, ``"same"``, or elements before and after each axis.
    """

    lengths: tuple[int | None, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | Pairs

    @property
    def extents(self) -> tuple[int, ...]:
        """What a window spans, the gaps of its dilation included."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.window, self.dilation, strict=True))

    @property
    def pairs(self) -> Pairs:
        """Padding before and after each axis.

        Raises:
            ValueError: ``"same"`` of a length that is not known.
        """
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return ((0, 0),) * len(self.lengths)
        if None in self.lengths:
            raise ValueError(
                f'padding="same" is not known before the space axes {self.lengths} are: write (before, after) pairs'
            )
        lengths = cast("tuple[int, ...]", self.lengths)
        return tuple(map(_same, lengths, self.extents, self.strides))

    @property
    def outputs(self) -> tuple[int | None, ...]:
        """Number of windows along each axis."""
        if self.padding == "same":
            return tuple(n if n is None else -(-n // step) for n, step in zip(self.lengths, self.strides, strict=True))
        free = zip(self.lengths, self.pairs, self.extents, self.strides, strict=True)
        return tuple(n if n is None else (n + sum(pair) - extent) // step + 1 for n, pair, extent, step in free)

    def counts(self) -> HostArray:
        """Elements in each window that are no padding: integers of shape ``(*outputs)``, for known lengths."""
        total = np.ones((), np.int64)
        for n, (before, after), size, step in zip(self.lengths, self.pairs, self.window, self.strides, strict=True):
            real = np.pad(np.ones(cast(int, n), np.int64), (before, after))
            total = total[..., None] * np.lib.stride_tricks.sliding_window_view(real, size)[::step].sum(axis=-1)
        return total


def conv_windows(
    x: Lengths, kernel: Sequence[int], strides: PerAxis, padding: Padding, dilation: PerAxis, groups: int
) -> Windows:
    """The windows of ``xp.conv``.

    Args:
        x: shape of the array, ``(batch, *space, in)``.
        kernel: shape of the kernel, ``(*window, in // groups, out)``.
        strides: as `xp.conv` takes them, and so the others.
        padding: of the space axes.
        dilation: of the windows.
        groups: in which the channels are.

    Raises:
        ValueError: something does not fit.

    Example:
        >>> conv_windows((8, 6, 3), (3, 3, 16), 2, "same", 1, 1).pairs
        ((0, 1),)
    """
    axes = _space_axes("conv", x)
    if len(kernel) != len(x):
        raise ValueError(
            f"conv of an x of shape {tuple(x)} takes a kernel (*window, in // groups, out) with {len(x)} axes, "
            f"not one of shape {tuple(kernel)}"
        )
    channels, (inputs, outputs) = x[-1], kernel[-2:]
    if not is_whole(groups, 1) or outputs % groups:
        raise ValueError(f"conv: groups={groups!r} is no number that divides the {outputs} output channels of kernel")
    if channels is not None and channels != inputs * groups:
        raise ValueError(
            f"conv: x has {channels} channels, but a kernel of shape {tuple(kernel)} with groups={groups} takes "
            f"{inputs * groups}: kernel.shape[-2] is x.shape[-1] // groups"
        )
    window = tuple(kernel[:-2])
    return _windows("conv", x, window, _each("strides", strides, axes), padding, _each("dilation", dilation, axes))


def pool_windows(name: str, x: Lengths, window: PerAxis, strides: PerAxis | None, padding: Padding) -> Windows:
    """The windows of a pool.

    Args:
        name: of the function, for messages.
        x: shape of the array, ``(batch, *space, channels)``.
        window: as `xp.max_pool` takes it, and so the others.
        strides: None is the window.
        padding: less than the window, so that each window has an element.

    Raises:
        ValueError: something does not fit.

    Example:
        >>> pool_windows("max_pool", (8, 5, 5, 3), 2, None, "valid").outputs
        (2, 2)
    """
    axes = _space_axes(name, x)
    sizes = _each("window", window, axes)
    steps = sizes if strides is None else _each("strides", strides, axes)
    windows = _windows(name, x, sizes, steps, padding, (1,) * axes)
    if not isinstance(windows.padding, str):
        for pair, size in zip(windows.padding, sizes, strict=True):
            if max(pair) >= size:
                raise ValueError(f"{name}: padding {pair} is not less than the window, {size}: a window would be empty")
    return windows


def _space_axes(name: str, x: Lengths) -> int:
    if len(x) not in (3, 4):
        raise ValueError(
            f"{name} takes an x (batch, *space, channels) with one or two space axes, not one of shape {tuple(x)}: "
            "xp.expand_dims and xp.reshape add axes"
        )
    return len(x) - 2


def _windows(
    name: str,
    x: Lengths,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Padding,
    dilation: tuple[int, ...],
) -> Windows:
    windows = Windows(tuple(x[1:-1]), window, strides, dilation, _padding(padding, len(window)))
    if any(count is not None and count < 1 for count in windows.outputs):
        raise ValueError(
            f"{name}: a window of extent {windows.extents} does not fit in the space axes {windows.lengths} of x with "
            f"padding={padding!r}: pad more, or use a smaller window"
        )
    return windows


def _each(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """Repeat an integer for each axis, or check that there is one for each."""
    if is_whole(value, 1):
        return (int(value),) * axes
    if isinstance(value, (tuple, list)) and len(value) == axes and all(is_whole(item, 1) for item in value):
        return tuple(map(int, value))
    raise ValueError(f"{name}={value!r}: write an int from 1, or a tuple of {axes}, one for each space axis of x")


def _padding(padding: Padding, axes: int) -> str | Pairs:
    if isinstance(padding, str) and padding.lower() in ("valid", "same"):
        return padding.lower()
    if is_whole(padding, 0):
        return ((int(padding), int(padding)),) * axes
    if isinstance(padding, (tuple, list)) and len(padding) == axes:
        pairs: list[Any] = [item if isinstance(item, (tuple, list)) else (item, item) for item in padding]
        if all(len(pair) == 2 and all(is_whole(amount, 0) for amount in pair) for pair in pairs):
            return tuple((int(before), int(after)) for before, after in pairs)
    raise ValueError(
        f'padding={padding!r}: write "valid", "same", an int from 0, or a list of {axes} (before, after) pairs, '
        "one for each space axis of x"
    )


def _same(length: int, extent: int, step: int) -> tuple[int, int]:
    """The rule of TensorFlow and XLA: ``ceil(length / step)`` windows, and what is odd goes to the end."""
    total = max((-(-length // step) - 1) * step + extent - length, 0)
    return total // 2, total - total // 2
