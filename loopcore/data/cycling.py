"""A loader without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from loopcore.data.arrays import Batch, Seeded, State, Stateful, check_iterable, check_state, type_of, walked
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError

_END: Batch = object()


def cycle(loader: Iterable[Batch]) -> Cycle:
    """Repeat a loader without end.

    It is one endless stream: every ``iter()`` goes on where the one before stopped, so that all batches have their
    turn even where an epoch takes only a few of them. It has no ``len()``. Iterating raises an `EmptyDataError` when a
    repetition has no batch, which is a `DataExhaustedError` when an iterator that can be walked once is used up.

    Args:
        loader: is iterated anew for each repetition; a shuffled one has a new order each time.

    Returns:
        A loader. It has a state where ``loader`` has ``state_dict`` and ``load_state_dict``.

    Raises:
        TypeError: ``loader`` cannot be iterated.

    Example:
        >>> from itertools import islice
        >>> import loopcore as lc
        >>> loader = lc.data.cycle(["a", "b", "c"])
        >>> list(islice(loader, 4)), list(islice(loader, 4))
        (['a', 'b', 'c', 'a'], ['b', 'c', 'a', 'b'])
    """
    return Cycle(loader)


class Cycle:
    """The loader that `cycle` returns.

    Args:
        loader: is iterated anew for each repetition.

    Raises:
        TypeError: ``loader`` cannot be iterated.

    Example:
        >>> import loopcore as lc
        >>> stream = iter(lc.data.cycle([1, 2]))
        >>> [next(stream) for _ in range(5)]
        [1, 2, 1, 2, 1]
    """

    def __init__(self, loader: Iterable[Batch]) -> None:
        check_iterable("the loader of cycle", loader)
        self._loader = loader
        self._iterator: Iterator[Batch] | None = None
        self._fruitful = False  # whether this repetition had a batch
        self._repeated = False

    def __iter__(self) -> Iterator[Batch]:
        """Continue the stream where the last ``iter()`` stopped."""
        while True:
            if self._iterator is None:
                self._iterator = walked(self._loader)
            batch = next(self._iterator, _END)
            if batch is _END:
                self._repeat()
            else:
                self._fruitful = True
                yield batch

    def _repeat(self) -> None:
        # A first pass without a batch is data without one; a later one is an iterator that had some, and is used up.
        if not self._fruitful and self._repeated and isinstance(self._loader, Iterator):
            raise DataExhaustedError(
                f"cycle repeats {type_of(self._loader)}, which can be walked only once: pass a list, or an object "
                "whose iter() starts anew"
            )
        if not self._fruitful:
            raise EmptyDataError(f"cycle has nothing to repeat: {type_of(self._loader)} had no batch")
        self._iterator = None
        self._fruitful = False
        self._repeated = True

    def follow_seed(self, seed: int) -> None:
        """Hand the seed of a learner to the loader, if it takes it.

        Args:
            seed: at least 0.
        """
        if hasattr(self._loader, "follow_seed"):
            cast(Seeded, self._loader).follow_seed(seed)

    def state_dict(self) -> State:
        """Say where the stream is: the state of the loader.

        Raises:
            DataError: the loader has none.
        """
        if not hasattr(self._loader, "state_dict"):
            raise DataError(
                f"cycle has no state since {type_of(self._loader)} has none. Use lc.data.batches, or another loader "
                "with state_dict and load_state_dict"
            )
        return {"loader": cast(Stateful, self._loader).state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter()`` go on where the state was taken.

        Args:
            state: what `state_dict` gave; the loader is handed its own.

        Raises:
            DataError: the state is of another loader.
        """
        check_state("cycle", state, {"loader"})
        cast(Stateful, self._loader).load_state_dict(state["loader"])
        self._iterator = None
        self._fruitful = True  # the loaded repetition may be at its end already

    def __repr__(self) -> str:
        return f"cycle({self._loader!r})"
