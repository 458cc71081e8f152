"""What a compiled step takes in, at the least cost a step: which values are arrays, scalars, and the packed words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopcore.backend.packing import Layout, Packed, Slot, add_slot, pack_on_host
from loopcore.backend.protocol import CompilingBackend, Tree
from loopcore.errors import CarryError
from loopcore.handles.trees import is_container
from loopcore.state import Shared, packed_in

_KNOWN = 256  # signatures that are kept


class NamespaceSignature:
    """What the names and types of a namespace tell: which values are arrays or floats, and which may hold some."""

    def __init__(self, values: Mapping[str, Any], backend: CompilingBackend) -> None:
        self.dynamic = tuple(n for n, v in values.items() if isinstance(v, float) or backend.is_array(v))
        self.containers = tuple(n for n, v in values.items() if is_container(backend, v))
        # The usual case, in which a step need not look at its values one by one.
        self.all_arrays = len(self.dynamic) == len(values)


class NamespaceClassifier:
    """Tells arrays from other values by their types, which seldom change from step to step.

    Args:
        backend: knows its arrays.
        carried: names that are left out.
        asked: the only names that matter; None: all.
    """

    def __init__(
        self,
        backend: CompilingBackend,
        carried: frozenset[str] = frozenset(),
        wanted_names: frozenset[str] | None = None,
    ) -> None:
        self._backend = backend
        self._carried = carried
        self._wanted_names = wanted_names
        self._signatures: dict[tuple[Any, ...], NamespaceSignature] = {}

    def ask(self, name: str) -> None:
        """Let one more name of the namespace be an input."""
        # The signatures tell which names matter, so that all of them are old now.
        self._wanted_names = (self._wanted_names or frozenset()) | {name}
        self._signatures.clear()

    def _matters(self, name: str) -> bool:
        return name not in self._carried and (self._wanted_names is None or name in self._wanted_names)

    def of(self, values: Mapping[str, Any]) -> NamespaceSignature:
        """Look up the signature of names and types: the same object for the same ones."""
        # Types stand for the values: to look at each one would cost every step what the key of a program costs. Equal
        # types give one and the same object, which is then compared by identity.
        key = (*values, *map(type, values.values()))
        signature = self._signatures.get(key)
        if signature is None:
            if len(self._signatures) > _KNOWN:  # names that come and go, which nobody reads
                self._signatures.clear()
            relevant = {name: value for name, value in values.items() if self._matters(name)}
            # By what matters alone: a carried value that is unpacked, or a note that nobody reads, changes nothing.
            kinds = (*relevant, *map(type, relevant.values()))
            signature = self._signatures[key] = self._signatures.setdefault(
                kinds, NamespaceSignature(relevant, self._backend)
            )
        return signature

    def dynamic(self, values: Mapping[str, Any], signature: NamespaceSignature) -> dict[str, Any]:
        """Select the values that are inputs."""
        inputs = {name: values[name] for name in signature.dynamic}
        # The type of a container does not tell what is in it.
        inputs |= {name: values[name] for name in signature.containers if is_dynamic(self._backend, values[name])}
        return inputs


class DeviceScalars:
    """Floats as inputs. One that stays the same for two steps is kept on the device, where it costs nothing."""

    def __init__(self, backend: CompilingBackend) -> None:
        self._backend = backend
        self._values: dict[str, float] = {}
        self._inputs: dict[str, Any] = {}
        self._placed = True

    def __call__(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Return what stands for these floats in a call of a program."""
        # A rate that is scheduled changes at every step, and to place it on the device each time would cost more than
        # to hand over a Python float. One that stays is placed at its second step.
        if values != self._values:
            self._values = dict(values)
            self._inputs, self._placed = self._values, False
        elif not self._placed:
            self._inputs = {name: self._backend.constant(value) for name, value in self._values.items()}
            self._placed = True
        return self._inputs


class PackedCarry:
    """The packed vector that goes from step to step: the number of the attempt, and the carried scalars."""

    def __init__(self, backend: CompilingBackend, shared: Shared, names: Sequence[str]) -> None:
        self._backend = backend
        self._shared = shared
        self._packed = packed_in(shared)
        self._order = tuple(names)
        self.layout: Layout = {}
        self._next = -1  # the attempt that the last vector is for
        self._last: Packed | None = None
        self._small: tuple[str, ...] = ()  # carried values that fit the vector
        self.large: tuple[str, ...] = ()

    def vector(self, attempt: int) -> Any:
        """Return the vector that a step takes: what the last one returned, if nobody changed anything since."""
        last, shared, packed = self._last, vars(self._shared), self._packed
        if last is not None and self._next == attempt:
            # What nobody read since is still packed in that vector; what somebody read and left alone is the array that
            # the vector gave. Anything else was written by the host, and the vector is old.
            for name in self._small:
                is_last = packed.get(name) is last
                if not is_last or (name in shared and shared[name] is not last.read.get(f"shared.{name}")):
                    break
            else:
                return last.vector
        return self._new(attempt)

    def _new(self, attempt: int) -> Any:
        layout: Layout = {"attempt": Slot(0, (), "int32")}
        values: list[Any] = [np.int32(attempt)]
        for name, value in self.present().items():
            if add_slot(layout, f"shared.{name}", *self._backend.signature(value)):
                values.append(value)
        # The same object as long as it says the same: it is compared by identity at every step.
        if layout != self.layout:
            self.layout = layout
        self._small = tuple(name for name in self._order if f"shared.{name}" in layout)
        self.large = tuple(name for name in self._order if f"shared.{name}" not in layout)
        # Before the first step, and after the host wrote numbers, no device needs to be asked for anything.
        if all(isinstance(value, (np.generic, np.ndarray)) for value in values):
            return pack_on_host(values)
        return self._backend.to_words(values)

    def present(self) -> dict[str, Any]:
        """Return all carried values that are arrays or scalars, as arrays."""
        arrays = {name: as_array(getattr(self._shared, name)) for name in self._order}
        return {name: value for name, value in arrays.items() if self._backend.is_array(value)}

    def land(self, packed: Packed, attempt: int) -> None:
        """Keep the vector that a step returned, for the next one and for those who read a value of it."""
        # An attribute hides the packed value, since Python asks `__getattr__` only for what is not there.
        shared = vars(self._shared)
        for name in self._small:
            shared.pop(name, None)
            self._packed[name] = packed
        self._last, self._next = packed, attempt + 1


def as_array(value: Any) -> Any:
    """Make a 0-d array of a carried Python scalar, so that a program never depends on its value."""
    # Before int, which a bool is one of.
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        try:
            return np.int32(value)
        except OverflowError:
            raise CarryError(
                f"a carried int is an int32, which {value} does not fit: carry a float or an array"
            ) from None
    return np.float32(value) if isinstance(value, float) else value


def parted(backend: Any, values: Mapping[str, Any], *, floats: bool = True) -> tuple[dict[str, Tree], dict[str, Any]]:
    """Part values: trees of arrays, and the others. As inputs floats count as arrays, as outputs they do not."""
    arrays = {
        name: value
        for name, value in values.items()
        if is_dynamic(backend, value) and (floats or not isinstance(value, float))
    }
    return arrays, {name: value for name, value in values.items() if name not in arrays}


def is_dynamic(backend: Any, value: Any) -> bool:
    """Tell whether a value is a tree with nothing but arrays and floats in it."""
    if isinstance(value, (bool, int, str, bytes)) or value is None:
        return False
    if isinstance(value, float) or backend.is_array(value):
        return True
    if not is_container(backend, value):
        return False
    leaves = backend.tree_leaves(value)
    # An empty container is no input: it has nothing to pass, and a body can tell it from one that is full.
    return bool(leaves) and all(backend.is_array(leaf) or isinstance(leaf, float) for leaf in leaves)
