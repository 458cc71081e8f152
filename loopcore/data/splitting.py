"""Arrays in memory, dealt out into training, validation and other parts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from itertools import pairwise

import optree

from loopcore.data.arrays import Tree, flatten, integer, order_of
from loopcore.errors import EmptyDataError


def split(arrays: Tree, sizes: float | Iterable[float], seed: int = 0, shuffle: bool = True) -> tuple[Tree, ...]:
    """Split arrays into parts that share no sample and leave none out.

    Args:
        arrays: one array or a tree of arrays of one length, as in `batches`.
        sizes: the first of two parts, or all parts, which then add up to everything. A float is a share of the
            samples, ``0.8``, rounded to whole ones; an int is a number of samples.
        seed: of the order in which samples are dealt out, at least 0.
        shuffle: deal them out in random order. Without it the parts are consecutive, and are views of the arrays.

    Returns:
        The parts, each with the structure of ``arrays``.

    Raises:
        DataError: there is no array, a leaf is no array, or lengths differ.
        EmptyDataError: a part would have no sample.
        TypeError: a size is no number, or shares and numbers of samples are mixed.
        ValueError: a size is not positive, or the sizes do not add up.

    Example:
        >>> import numpy as np
        >>> import loopcore as lc
        >>> train, valid = lc.data.split((np.zeros((10, 2)), np.arange(10)), 0.8)
        >>> [xs.shape for xs, ys in (train, valid)]
        [(8, 2), (2, 2)]
        >>> [part.tolist() for part in lc.data.split(np.arange(6), (3, 2, 1), shuffle=False)]
        [[0, 1, 2], [3, 4], [5]]
    """
    leaves, spec = flatten(arrays)
    samples = len(leaves[0])
    order = order_of(samples, integer("seed", seed, least=0)) if shuffle else None
    bounds = _bounds(sizes, samples)
    parts = [
        [leaf[start:end] if order is None else leaf.take(order[start:end], axis=0) for leaf in leaves]
        for start, end in bounds
    ]
    return tuple(optree.tree_unflatten(spec, part) for part in parts)


def _bounds(sizes: float | Iterable[float], samples: int) -> list[tuple[int, int]]:
    """Return where each part starts and ends."""
    parts = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    total = 1.0 if _are_shares(parts) else samples
    if isinstance(sizes, Iterable):
        _check_all(parts, total)
    else:
        _check_first(sizes, total)
        parts.append(total - sizes)
    # Rounded sums, and not sums of rounded parts: nothing is left out, and no part is off by more than one.
    ends = [round(math.fsum(parts[: n + 1]) / total * samples) for n in range(len(parts))]
    bounds = list(pairwise([0, *ends]))
    empty = [n for n, (start, end) in enumerate(bounds) if start == end]
    if empty:
        raise EmptyDataError(f"part {empty[0]} of the split {sizes} would have none of the {samples} samples")
    return bounds


def _are_shares(sizes: Sequence[object]) -> bool:
    """Tell whether sizes are shares of the samples, or numbers of samples."""
    real = [size for size in sizes if not isinstance(size, bool) and isinstance(size, numbers.Real)]
    integers = [size for size in real if isinstance(size, numbers.Integral)]
    if not sizes or len(real) < len(sizes) or 0 < len(integers) < len(sizes):
        raise TypeError(
            f"sizes of a split are floats (shares of the samples) or ints (numbers of samples), not {sizes}"
        )
    return not integers


def _check_first(size: float, total: float) -> None:
    if not 0 < size < total:
        raise ValueError(f"the first part of a split is more than 0 and less than all, {total}; it was {size}")


def _check_all(parts: Sequence[float], total: float) -> None:
    if min(parts) <= 0:
        raise ValueError(f"each part of a split is more than 0; they were {parts}")
    added = math.fsum(parts)
    if not math.isclose(added, total, abs_tol=1e-9):
        raise ValueError(f"the parts of a split add up to all samples, {total}, but {parts} add up to {added:g}")
