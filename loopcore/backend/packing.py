"""Small values of a compiled step, packed into one vector of 32-bit words.

Every array that a program takes or returns costs a small step some microseconds, whatever its size. So the number of
the step, the carried scalars and the scalars that nobody looks at in each step travel together, as bits, and are taken
apart when somebody asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from loopcore.backend.protocol import Array, Backend, CompilingBackend, HostArray, HostDtype

WORDS = 32  # the length of every vector, so that a program's own result fits its next call
_LARGEST = 16  # words; a larger array travels alone
_DTYPES = frozenset({"float32", "int32", "uint32", "bool"})


class Slot(NamedTuple):
    """Where a value is in a vector."""

    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def stop(self) -> int:
        """The first word that no longer belongs to it."""
        return self.start + prod(self.shape)


Layout = dict[str, Slot]


def add_slot(layout: Layout, name: str, shape: tuple[int, ...], dtype: object) -> bool:
    """Make room for a value; False if it is of no dtype with 32 bits, or too large."""
    start = max((slot.stop for slot in layout.values()), default=0)
    size = prod(shape)
    if str(dtype) not in _DTYPES or size > _LARGEST or start + size > WORDS:
        return False
    layout[name] = Slot(start, shape, str(dtype))
    return True


def pack_on_host(values: Sequence[Array]) -> HostArray:
    """Pack NumPy arrays, one after another, into a vector of `WORDS` words; what is left is 0."""
    vector = np.zeros(WORDS, np.int32)
    start = 0
    for value in map(np.asarray, values):
        words = value.astype(np.int32) if value.dtype == np.bool_ else value
        vector[start : start + value.size] = words.reshape(-1).view(np.int32)
        start += value.size
    return vector


class Packed:
    """A vector that a program returned, and what is in it. A value becomes an array of its own when it is read."""

    __slots__ = ("_backend", "layout", "read", "vector")

    def __init__(self, backend: CompilingBackend, vector: Array, layout: Mapping[str, Slot]) -> None:
        self._backend = backend
        self.vector = vector
        self.layout = layout
        self.read: dict[str, Array] = {}

    def get(self, name: str) -> Array:
        """The value as an array of the framework; the same one each time."""
        if name not in self.read:
            self.read[name] = self._backend.from_words(self.vector, *self.layout[name])
        return self.read[name]


class Pending:
    """A value that was not fetched yet: ``numpy.asarray(pending)`` fetches it."""

    __slots__ = ("_array", "_backend", "_slot")

    def __init__(self, backend: Backend, array: Array, slot: Slot | None = None) -> None:
        self._backend = backend
        self._array = array
        self._slot = slot

    def is_ready(self) -> bool:
        """Whether fetching it would not wait."""
        return bool(self._backend.is_ready(self._array))

    def __array__(self, dtype: HostDtype | None = None, copy: bool | None = None) -> HostArray:
        host = self.of(self._backend.to_host(self._array))
        return host if dtype is None else host.astype(dtype)

    def of(self, host: HostArray) -> HostArray:
        """The value, where the array it is in has been fetched, or several of them have been, along the first axis."""
        slot = self._slot
        if slot is None:
            return host
        words = np.ascontiguousarray(host[..., slot.start : slot.stop])
        values = words != 0 if slot.dtype == "bool" else words.view(slot.dtype)
        return values.reshape((*host.shape[:-1], *slot.shape))  # for a 0-d value star arguments would be none


def fetched(values: Sequence[Array]) -> HostArray:
    """Many collected values of one shape, in one go, along the first axis; in float64."""
    first = values[0]
    if not isinstance(first, Pending):
        return np.array(values, np.float64)
    arrays = first._backend.to_host([value._array for value in values])  # pyright: ignore[reportPrivateUsage]  # of this file
    return first.of(np.stack(arrays)).astype(np.float64)


def collect(
    backend: Backend, values: Mapping[str, Array], packed: Packed | None, names: Sequence[str]
) -> tuple[Array, ...]:
    """Step values for later: packed as they are, pending on their own, or (numbers and tuples of them) themselves."""
    layout = {} if packed is None else packed.layout
    collected: list[Array] = []
    for name in names:
        slot = layout.get(f"step.{name}")
        if slot is not None and packed is not None:
            collected.append(Pending(backend, packed.vector, slot))
        else:
            value = values.get(name)
            plain = type(value) is tuple or not backend.is_array(value)  # a tuple of numbers, in eager steps
            collected.append(value if plain else Pending(backend, value))
    return tuple(collected)
