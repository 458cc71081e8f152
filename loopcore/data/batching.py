"""Arrays in memory, cut into batches; and the state that says where an epoch is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optree

from loopcore.data.arrays import Array, Indices, State, Tree, check_state, flatten, integer, order_of
from loopcore.errors import DataError, EmptyDataError


def batches(
    arrays: Tree, batch_size: int, shuffle: bool = False, seed: int | None = None, drop_last: bool = False
) -> Batches:
    """Cut arrays into batches, one epoch after another.

    Every ``iter()`` starts the next epoch, also when the one before was left in the middle. The order of epoch ``k``
    depends on ``(seed, k)`` alone, so there is no random state to keep. Batches are copies; the arrays themselves are
    not copied.

    Args:
        arrays: one array, or tuples, lists and dicts of arrays, nested as you like. They are cut along their first
            axis, ``(samples, ...)``, which has one length everywhere. Arrays of other frameworks are read as NumPy's.
        batch_size: samples of a batch, at least 1. The last batch of an epoch may have fewer.
        shuffle: whether each epoch has a random order of its own.
        seed: of these orders, at least 0; None for that of the learner that runs on them, 0 without one.
        drop_last: leave out a last batch that is not full.

    Returns:
        A loader whose batches have the structure of ``arrays``; its ``len()`` is the batches of an epoch.
        ``state_dict()`` says where it is; after ``load_state_dict(state)`` the next ``iter()`` goes on there, be it in
        the middle of an epoch.

    Raises:
        DataError: there is no array, a leaf is no array, or lengths differ; the message names each.
        EmptyDataError: the arrays have no sample, or too few for one full batch under ``drop_last``.
        TypeError: ``batch_size`` or ``seed`` is no integer.
        ValueError: ``batch_size`` is less than 1, or ``seed`` less than 0.

    Example:
        >>> import numpy as np
        >>> import loopcore as lc
        >>> x, y = np.zeros((10, 3), np.float32), np.arange(10)
        >>> loader = lc.data.batches((x, y), 4)
        >>> len(loader)
        3
        >>> [(xs.shape, ys.tolist()) for xs, ys in loader]
        [((4, 3), [0, 1, 2, 3]), ((4, 3), [4, 5, 6, 7]), ((2, 3), [8, 9])]
    """
    return Batches(arrays, batch_size, shuffle, seed, drop_last)


@dataclass
class _Pass:
    """One epoch: its number, and how many of its batches were handed out."""

    epoch: int
    position: int = 0
    is_started: bool = False


class Batches:
    """The loader that `batches` returns.

    Args:
        arrays: an array or a tree of arrays, each ``(samples, ...)``.
        batch_size: samples of a batch, at least 1.
        shuffle: whether each epoch has a random order of its own.
        seed: of these orders, at least 0; None for that of the learner that runs on them, 0 without one.
        drop_last: leave out a last batch that is not full.

    Raises:
        DataError, EmptyDataError, TypeError, ValueError: as for `batches`.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> loader = lc.data.batches(np.arange(6), 2)
        >>> _ = next(iter(loader))
        >>> resumed = lc.data.batches(np.arange(6), 2)
        >>> resumed.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for batch in resumed]
        [[2, 3], [4, 5]]
    """

    def __init__(self, arrays: Tree, batch_size: int, shuffle: bool, seed: int | None, drop_last: bool) -> None:
        self._leaves, self._spec = flatten(arrays)
        self._samples = len(self._leaves[0])
        self._batch_size = integer("batch_size", batch_size, least=1)
        self._shuffle = bool(shuffle)
        self._follows = seed is None
        self._seed = 0 if seed is None else integer("seed", seed, least=0)
        self._drop_last = bool(drop_last)
        self._pass = _Pass(0)
        if len(self) == 0:
            raise EmptyDataError(
                f"{self._samples} samples make no full batch of {batch_size}: choose a smaller batch_size, or leave "
                "drop_last out"
            )

    def __len__(self) -> int:
        full, remainder = divmod(self._samples, self._batch_size)
        return full + bool(remainder and not self._drop_last)

    def __iter__(self) -> Iterator[Tree]:
        """Start the next epoch, or go on in the one that was loaded."""
        if self._pass.is_started:
            self._pass = _Pass(self._pass.epoch + 1)
        # Set here, not at the first batch: an iterator that is made and left alone is an epoch too.
        self._pass.is_started = True
        return self._run(self._pass)

    def _run(self, walk: _Pass) -> Iterator[Tree]:
        # Made when the first batch is asked for, and gone with the epoch: nothing of it has to be kept for a
        # checkpoint.
        order = order_of(self._samples, self._seed, walk.epoch) if self._shuffle else None
        while walk.position < len(self):
            start = walk.position * self._batch_size
            leaves = [_take(leaf, order, start, start + self._batch_size) for leaf in self._leaves]
            # Before the batch is handed out: a state that is taken while it is worked on goes on with the next one.
            walk.position += 1
            yield optree.tree_unflatten(self._spec, leaves)

    def follow_seed(self, seed: int) -> None:
        """Take the seed of a learner from the next epoch on, where none was given.

        Args:
            seed: at least 0.
        """
        if self._follows:
            self._seed = seed

    def state_dict(self) -> State:
        """Say where the loader is, in JSON values: the epoch, and how many of its batches were handed out.

        After the last batch of an epoch that is the start of the next one.
        """
        epoch, position = self._pass.epoch, self._pass.position
        # The end of an epoch and the begin of the next are one place, so that there is one state for it.
        if position == len(self):
            epoch, position = epoch + 1, 0
        return {"epoch": epoch, "position": position, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter()`` go on where the state was taken.

        Args:
            state: what `state_dict` gave, of a loader made with the same arguments.

        Raises:
            DataError: the state is of a loader of other data or settings; the message lists what differs.
            TypeError: the epoch or the position in it is no integer.
            ValueError: one of them is less than 0.
        """
        settings = self._settings()
        check_state("batches", state, {"epoch", "position", *settings})
        # The seed came from a learner, which has the same one after it has been loaded: no reason to refuse the state.
        if self._follows:
            settings["seed"] = integer("seed of the state", state["seed"], least=0)
        differing = [
            f"{name} was {state[name]!r}, is {value!r}" for name, value in settings.items() if state[name] != value
        ]
        if differing:
            raise DataError(f"the state is of other batches: {', '.join(differing)}. Make both with the same arguments")
        epoch = integer("epoch of the state", state["epoch"], least=0)
        position = integer("position of the state", state["position"], least=0)
        if position >= len(self):
            raise DataError(f"the state is at batch {position} of an epoch, which has {len(self)} batches")
        self._pass, self._seed = _Pass(epoch, position), settings["seed"]

    def _settings(self) -> State:
        return {
            "samples": self._samples,
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "drop_last": self._drop_last,
        }

    def __repr__(self) -> str:
        return f"batches({', '.join(f'{name}={value}' for name, value in self._settings().items())})"


def _take(leaf: Array, order: Indices | None, start: int, end: int) -> Array:
    # A copy, since a step may write into its batch, and a view would change the data.
    return leaf[start:end].copy() if order is None else leaf.take(order[start:end], axis=0)
