"""One loader of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

from loopcore.data.arrays import Batch, Seeded, State, Stateful, check_iterable, check_state, integer, type_of, walked
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError

_END: Batch = object()


def combine(loaders: Mapping[str, Iterable[Batch]]) -> Combined:
    """Make one loader of several, whose batches are dicts with a batch of each.

    An epoch ends with the shortest. Wrap a loader in `cycle` to make it last as long as the others.

    Args:
        loaders: name -> loader; the names become those of the batch's parts.

    Returns:
        A loader. Its ``len()`` is the smallest among the loaders that have one. It has a state where all of them have
        ``state_dict`` and ``load_state_dict``.

    Raises:
        TypeError: ``loaders`` is no mapping, or one of them cannot be iterated.
        ValueError: there is no loader, or one that has a state is given twice.

    Example:
        >>> import numpy as np
        >>> import loopcore as lc
        >>> few, many = lc.data.batches(np.arange(2), 1), lc.data.batches(np.arange(10, 14), 1)
        >>> loader = lc.data.combine({"many": many, "few": lc.data.cycle(few)})
        >>> [(batch["many"].item(), batch["few"].item()) for batch in loader]
        [(10, 0), (11, 1), (12, 0), (13, 1)]
    """
    return Combined(loaders)


@dataclass
class _Pass:
    """One epoch: where each loader is, and how many batches were handed out."""

    iterators: dict[str, Iterator[Batch]]
    position: int
    loaded: bool
    is_started: bool = False
    over: bool = False


class Combined:
    """The loader that `combine` returns.

    Args:
        loaders: name -> loader; the names become those of the batch's parts.

    Raises:
        TypeError, ValueError: as for `combine`.

    Example:
        >>> import loopcore as lc
        >>> loader = lc.data.combine({"a": [1, 2, 3], "b": lc.data.cycle([7, 8])})
        >>> len(loader), list(loader)[2]
        (3, {'a': 3, 'b': 7})
    """

    def __init__(self, loaders: Mapping[str, Iterable[Batch]]) -> None:
        if not isinstance(cast(object, loaders), Mapping):
            raise TypeError(f'combine takes a dict of loaders, combine({{"a": x, "b": y}}), not {type_of(loaders)}')
        if not loaders:
            raise ValueError('combine needs at least one loader: combine({"a": x, "b": y})')
        for name, loader in loaders.items():
            check_iterable(f"the loader {name!r}", loader)
        self._loaders = dict(loaders)
        _check_distinct(self._loaders)
        self._pass: _Pass | None = None
        self._resume_at: int | None = None

    def _size(self) -> int | None:
        """Return the number of batches of an epoch, where a loader tells it."""
        return min((size for size in map(_length, self._loaders.values()) if size is not None), default=None)

    def __len__(self) -> int:
        size = self._size()
        if size is None:
            raise TypeError(f"none of the combined loaders {', '.join(map(repr, self._loaders))} has a len()")
        return size

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """Start the next epoch of each loader, or go on in the one that was loaded."""
        # A pass that `state_dict` has opened is not begun yet: this is the epoch that it is for.
        if self._pass is None or self._pass.is_started:
            self._pass = self._open()
        self._pass.is_started = True
        return self._run(self._pass)

    def _open(self) -> _Pass:
        position, self._resume_at = self._resume_at, None
        iterators = {name: walked(loader) for name, loader in self._loaders.items()}
        return _Pass(iterators, position or 0, loaded=position is not None)

    def _run(self, walk: _Pass) -> Iterator[dict[str, Batch]]:
        count, size, ended = 0, self._size(), list[str]()
        while not ended and (not size or walk.position < size):
            # All are asked, also behind one that has ended, so that they stay at the same place.
            batch = {name: next(iterator, _END) for name, iterator in walk.iterators.items()}
            ended = [name for name, part in batch.items() if part is _END]
            if not ended:
                count += 1
                walk.position += 1
                yield batch
        walk.over = True
        if not count and walk.loaded:  # the state was taken at the end of an epoch, and no len told so
            yield from self
        elif not count:
            raise _nothing(ended[0], self._loaders[ended[0]])

    def follow_seed(self, seed: int) -> None:
        """Hand the seed of a learner to the loaders that take it.

        Args:
            seed: at least 0.
        """
        for loader in self._loaders.values():
            if hasattr(loader, "follow_seed"):
                cast(Seeded, loader).follow_seed(seed)

    def state_dict(self) -> State:
        """Say where the loader is: how many batches of the epoch were handed out, and the states of its loaders.

        After the last batch of an epoch that is the start of the next one, which is opened for it.

        Raises:
            DataError: a loader has no state; the message names it.
        """
        stateless = [name for name, loader in self._loaders.items() if not hasattr(loader, "state_dict")]
        if stateless:
            raise DataError(
                f"combine has no state since {', '.join(map(repr, stateless))} has none. Use lc.data.batches, or "
                "another loader with state_dict and load_state_dict"
            )
        # The loaders do not know that the shortest of them ended the epoch. To open the next one puts all of them at
        # its begin.
        if self._pass is not None and (self._pass.over or self._pass.position == self._size()):
            self._pass = self._open()
        position = (self._resume_at or 0) if self._pass is None else self._pass.position
        return {
            "position": position,
            "loaders": {name: cast(Stateful, loader).state_dict() for name, loader in self._loaders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter()`` go on where the state was taken.

        Args:
            state: what `state_dict` gave, of loaders of the same names; each is handed its own.

        Raises:
            DataError: the state is of other loaders.
            TypeError: the position in it is no integer.
            ValueError: the position is less than 0.
        """
        check_state("combine", state, {"position", "loaders"})
        check_state("the combined loaders", state["loaders"], self._loaders)
        position = integer("position of the state", state["position"], least=0)
        for name, loader in self._loaders.items():
            cast(Stateful, loader).load_state_dict(state["loaders"][name])
        self._pass, self._resume_at = None, position

    def __repr__(self) -> str:
        return f"combine({self._loaders!r})"


def _check_distinct(loaders: Mapping[str, Iterable[Batch]]) -> None:
    names: dict[int, str] = {}
    for name, loader in loaders.items():
        first = names.setdefault(id(loader), name)
        # A list may be there twice, since each walk over it is one of its own.
        if first != name and hasattr(loader, "state_dict"):
            raise ValueError(f"{first!r} and {name!r} are one loader, which cannot be at two places: make two of it")


def _length(loader: Iterable[Batch]) -> int | None:
    try:
        return len(cast(Sized, loader))
    except TypeError:
        return None


def _nothing(name: str, loader: Iterable[Batch]) -> EmptyDataError:
    if isinstance(loader, Iterator):
        return DataExhaustedError(
            f"the combined loader {name!r} is {type_of(loader)}, which can be walked only once, and it has nothing "
            "(left): pass a list, or an object whose iter() starts anew"
        )
    return EmptyDataError(
        f"the combined loader {name!r}, {type_of(loader)}, has no batch: leave it out or give it data"
    )
