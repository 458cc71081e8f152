"""Trees of arrays with one length, and the checks that the loaders share."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import optree
from numpy.typing import NDArray

from loopcore.backend.protocol import HostArray
from loopcore.errors import DataError, EmptyDataError

Tree: TypeAlias = Any
Batch: TypeAlias = Any
State: TypeAlias = dict[str, Any]  # where a loader is, as JSON values by name
Array: TypeAlias = HostArray
Indices: TypeAlias = NDArray[np.int64]
Item = TypeVar("Item")


class Stateful(Protocol):
    """A loader that says where it is, and goes on there."""

    def state_dict(self) -> State:
        """Say where it is."""
        ...

    def load_state_dict(self, state: Any) -> object:
        """Go on where a state was taken."""
        ...


class Seeded(Protocol):
    """A loader that can take the seed of the learner that runs on it."""

    def follow_seed(self, seed: int) -> object:
        """Take a seed for the epochs to come."""
        ...


def flatten(arrays: Tree) -> tuple[list[Array], optree.PyTreeSpec]:
    """The arrays of a tree, after checking that they have one length, at least 1.

    Args:
        arrays: an array or a tree of arrays, each ``(samples, ...)``.

    Returns:
        The arrays as NumPy's, and the structure to put them back into.

    Raises:
        DataError: there is no array, a leaf is no array, or lengths differ.
        EmptyDataError: the arrays have no sample.
    """
    # With accessors, so that an error names a leaf as the user would write it, ``arrays[0]['x']``.
    accessors, leaves, spec = optree.tree_flatten_with_accessor(arrays)
    names = [accessor.codify("arrays") for accessor in accessors]
    arrays_by_name = {name: _array(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    if not arrays_by_name:
        raise DataError(f"there is no array in {arrays!r}: pass arrays, as in batches((x, y), 32)")
    lengths = {name: len(array) for name, array in arrays_by_name.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"the arrays have different numbers of samples along their first axis: {sizes}")
    if not any(lengths.values()):
        shapes = ", ".join(f"{name} has the shape {array.shape}" for name, array in arrays_by_name.items())
        raise EmptyDataError(f"the arrays have no sample: {shapes}")
    return list(arrays_by_name.values()), spec


def _array(name: str, leaf: object) -> Array:
    # What is no array becomes one without axes, which is refused below.
    array: Array = np.asarray(leaf if hasattr(leaf, "__array__") else None)
    if array.ndim == 0:
        raise DataError(
            f"{name} is {type_of(leaf)} and no array with a first axis of samples. Wrap a list of "
            "numbers in np.asarray(...); take containers other than tuples, lists and dicts apart"
        )
    return array


def order_of(samples: int, seed: int, *epoch: int) -> Indices:
    """Make a random order of the samples that depends on these numbers alone.

    Args:
        samples: how many there are.
        seed: at least 0.
        *epoch: its number, where each epoch has an order of its own.

    Returns:
        The indices of all samples, ``(samples,)``.
    """
    # As a spawn key: if the epoch were added to the seed, seed 1 would begin with the second epoch of seed 0.
    sequence = np.random.SeedSequence(seed, spawn_key=epoch)
    return np.random.Generator(np.random.Philox(sequence)).permutation(samples)


def integer(name: str, value: object, *, least: int) -> int:
    """Return a value, after checking that it is an integer and not too small.

    Args:
        name: how messages call it.
        value: what was passed.
        least: the smallest value allowed.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        hint = ". Several arrays go in one tuple, as in batches((x, y), 32)" if hasattr(value, "shape") else ""
        raise TypeError(f"{name} must be an int, not {type_of(value)}{hint}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return int(value)


def check_state(owner: str, state: object, keys: Iterable[str]) -> None:
    """Refuse a state that is no mapping with exactly these keys.

    Args:
        owner: how messages call what the state belongs to.
        state: what was passed.
        keys: what it has to have.

    Raises:
        DataError: it is no mapping, or has other keys.
    """
    expected = sorted(keys)
    keys_of_state = sorted(map(str, state)) if isinstance(state, Mapping) else type_of(state)
    if keys_of_state != expected:
        raise DataError(f"this is no state of {owner}: it has to have {expected}, but it is or has {keys_of_state}")


def check_iterable(name: str, loader: object) -> None:
    """Refuse a loader that cannot be iterated.

    Args:
        name: how messages call it.
        loader: what was passed.

    Raises:
        TypeError: it cannot be iterated.
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TypeError(f"{name} is {type_of(loader)}, which cannot be iterated: pass an iterable of batches")


def walked(data: Iterable[Item]) -> Iterator[Item]:
    """One pass over data: what its ``iter()`` gives; of a sequence without one, as Keras has them, ``len()`` items.

    Example:
        >>> from loopcore.data.arrays import walked
        >>> class Squares:
        ...     def __len__(self):
        ...         return 3
        ...
        ...     def __getitem__(self, index):
        ...         return index**2
        >>> list(walked(Squares()))
        [0, 1, 4]
    """
    if hasattr(data, "__iter__") or not hasattr(data, "__len__"):
        return iter(data)
    try:
        length = len(cast(Sized, data))
    except (TypeError, NotImplementedError):  # it has no end that it knows of
        return iter(data)
    # Python ends such a sequence at an IndexError, which those of Keras need not raise.
    return islice(iter(data), length)


def type_of(value: object) -> str:
    """Describe the type of a value for messages."""
    return f"a value of type {type(value).__qualname__}"
