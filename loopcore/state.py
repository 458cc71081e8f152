"""The state of one step, and the namespace that callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING

from loopcore._utils.value_keys import frozen
from loopcore.errors import DataError
from loopcore.events import Outcome

if TYPE_CHECKING:
    from loopcore.backend.packing import Packed
    from loopcore.backend.protocol import Array, Backend, Condition, Scalar, Tree

ABSENT = object()
RESERVED = frozenset({"outcome", "apply", "updated"})


class StepRecord:
    """What the loop keeps of a step besides its values, which may have any name.

    The defaults are the class's: an ``__init__`` that sets them would cost time at every step.

    Attributes:
        apply: whether the next update happens.
        batch: the parts of the batch, until the step has ended.
        differentiated: at a cut within an objective, values that a gradient goes through.
        draws: numbers of the last random draws, by owner.
        dropped: values that nobody declared to read, once the step has ended.
        fed: parts of a batch on the host that became native, since somebody looked.
        hidden: while the step is compiled, its values that are no arrays.
        noted: the hidden values that were read, which its program depends on.
        packed: after a compiled step, values that nobody has read yet.
        replaced: within an objective, value -> the callback that replaced it.
        size: samples of the batch, once somebody asked.
        updated: whether the last update happened.
    """

    apply: Condition = True
    batch: Mapping[str, Tree] | None = None
    differentiated: frozenset[str] | None = None
    draws: dict[str, int] | None = None
    dropped: Iterable[str] = ()
    fed: dict[str, Tree] | None = None
    hidden: Mapping[str, object] = MappingProxyType({})
    noted: dict[str, object]
    packed: Packed | None = None
    replaced: dict[str, str] | None = None
    size: int | None = None
    updated: Condition | None = None


class State:
    """What one step holds: the parts of the batch and whatever the body and the handlers write.

    It has no public methods, so that a value may have any name but three: ``outcome`` (how the step ended),
    ``apply`` (whether the next update happens; assignments are combined by *and*) and ``updated`` (what the last
    update did).
    """

    __slots__ = ("__dict__", "__weakref__", "_record", "outcome")

    if TYPE_CHECKING:
        _record: StepRecord
        outcome: Outcome | None

        def __setattr__(self, name: str, value: object) -> None: ...

    @property
    def apply(self) -> Condition:
        """Whether the next update happens: a bool or a 0-d boolean array."""
        record = self._record
        packed = record.packed
        return record.apply if packed is None or "apply" not in packed.layout else packed.get("apply")

    @apply.setter
    def apply(self, value: Condition) -> None:
        record = self._record
        record.apply = combine_conditions(record.apply, value)

    @property
    def updated(self) -> Condition | None:
        """Whether the last update happened: a bool or a 0-d boolean array; None before the first."""
        record = self._record
        packed = record.packed
        return record.updated if packed is None or "updated" not in packed.layout else packed.get("updated")

    @updated.setter
    def updated(self, value: Condition | None) -> None:
        self._record.updated = value

    def __getattr__(self, name: str) -> Tree:
        if name == "outcome":  # no __init__ sets it, nor the record: that would cost time at every step
            return None
        if name == "_record":
            self._record = record = StepRecord()
            return record
        record = self._record
        if name in record.hidden:
            # Only what is read becomes part of the program: file names in a batch that nobody looks at must not compile
            # it anew.
            record.noted[name] = frozen(record.hidden[name])
            return record.hidden[name]
        if record.packed is not None and f"step.{name}" in record.packed.layout:
            return record.packed.get(f"step.{name}")
        # It was there and is gone. "No value" would send the user to look for a bug in the step.
        if name in record.dropped:
            raise AttributeError(
                f"step.{name} was not kept when the step ended, since nobody declared to read it. Add "
                f'reads = ("step.{name}",) to the callback or the phase, or pass reads=("step.{name}",) to the '
                "Learner or run_step",
                name=name,
                obj=self,
            )
        names = ", ".join(sorted(map(str, self.__dict__))) or "nothing"
        raise AttributeError(f"the step has no value {name!r} (yet); it has {names}", name=name, obj=self)

    def __copy__(self) -> State:
        twin = State()
        twin.__dict__.update(self.__dict__)
        # With a record of its own: an ``apply`` of the copy would decide on the updates of this step otherwise.
        twin._record, twin.outcome = copy(self._record), self.outcome
        return twin

    def __repr__(self) -> str:
        return f"State({', '.join(self.__dict__)})"


def record_of(state: State) -> StepRecord:
    """What the loop keeps of a step besides its values."""
    return state._record  # pyright: ignore[reportPrivateUsage]  # a public name could be that of a value


def seen(backend: Backend, state: State, name: str, value: Tree) -> Tree:
    """Return a value of a step as one looks at it: what its batch left on the host becomes native, once."""
    record = record_of(state)
    placed, batch = record.fed, record.batch
    if placed is None or batch is None or batch.get(name) is not value:
        return value
    if name not in placed:
        placed[name] = backend.place(value)  # type: ignore[attr-defined]  # who feeds a batch can place it
    return placed[name]


def place(backend: Backend, state: State) -> None:
    """Make all values of a step native."""
    values = state.__dict__
    for name, value in values.items():
        values[name] = seen(backend, state, name, value)


def _condition(value: Scalar) -> Condition:
    """What decides on an update, as a bool or a 0-d boolean array: numbers hold unless they are 0.

    Raises:
        TypeError: it is neither a number nor a 0-d array.
    """
    if value is True or value is False:
        return value
    if isinstance(value, (int, float)):
        return bool(value)
    # An array with axes would be broadcast against the weights by ``where``, silently.
    if not hasattr(value, "dtype") or len(value.shape):
        description = f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise TypeError(
            f"what decides on an update is a bool or a 0-d array, not {description}: take learner.xp.all(...) of it"
        )
    return value if "bool" in str(value.dtype) else value != 0


def combine_conditions(first: Condition, second: Scalar) -> Condition:
    """Whether both hold; a False that is no array stays one and spares a program work.

    Args:
        first: a bool or a 0-d boolean array.
        second: a number or a 0-d array; holds unless it is 0.
    """
    second = _condition(second)
    # Nobody withholds an update in most steps: then no operation enters the program.
    if first is True or second is False:
        return second
    return first if second is True or first is False else first & second


def batch_length(values: Tree, leaves: Callable[[Tree], list[Array]], alike: dict[str, list[int | None]]) -> int:
    """Samples of a batch: the length of ``xs``, else the one that all of its arrays have; 1 for numbers alone.

    Where lengths differ, as the nodes and edges of a graph, batches that all have the same ones weigh the same.

    Args:
        values: the parts of the batch.
        leaves: the leaves of a tree of the backend.
        alike: the lengths, by part, of the first batch of this phase whose lengths differ; filled here.

    Raises:
        DataError: the lengths differ, and not as those of the first batch do; or it has an object that nobody can
            look into, and no array.
    """
    # The usual batch, without a walk over its tree: a mean by epochs asks at every step.
    if isinstance(values, dict):
        shape: Tree = getattr(values.get("xs"), "shape", ())
        if len(shape):
            return int(shape[0])
    parts = values if isinstance(values, Mapping) else {"": values}
    lengths = {name: _lengths(part, leaves) for name, part in parts.items()}
    # ``xs`` may be a tree: the first of its arrays speaks for the batch.
    if lengths.get("xs") and lengths["xs"][0] is not None:
        return lengths["xs"][0]
    if not any(lengths.values()):
        return 1
    length = _common_length(lengths, alike)
    if length is not None:
        return length
    listed = ", ".join(f"{name} {_in_words(part)}" for name, part in lengths.items() if part)
    raise DataError(
        f"the mean of an epoch counts samples, and it is not known how many this batch has: {listed}{_before(alike)}. "
        'Write state.weight = their number in the step, or let unpack return it as "weight"'
    )


def _common_length(lengths: dict[str, list[int | None]], alike: dict[str, list[int | None]]) -> int | None:
    """Return the length that all arrays have, or the first of a batch with the lengths of ``alike``; else None."""
    all_lengths = [length for part in lengths.values() for length in part]
    known_lengths = [length for length in all_lengths if length is not None]
    if known_lengths and len(set(known_lengths)) == 1:
        return known_lengths[0]
    if not known_lengths or None in all_lengths:
        return None
    # The first such batch is taken as it is: there is nothing to compare it with. A mean that weighs all batches the
    # same is right as long as the others are like it.
    if not alike:
        alike.update(lengths)
    return known_lengths[0] if alike == lengths else None


def _lengths(value: Tree, leaves: Callable[[Tree], list[Array]]) -> list[int | None]:
    """List the lengths of the arrays in a part of a batch, in order; None for an object that nobody can look into."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return [int(shape[0])] if len(shape) else []
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return []
    if isinstance(value, (Mapping, list, tuple)):
        parts = list(value.values() if isinstance(value, Mapping) else value)
    else:
        parts = [part for part in leaves(value) if part is not value]
        if not parts:
            return [None]
    return [length for part in parts for length in _lengths(part, leaves)]


def _before(alike: Mapping[str, list[int | None]]) -> str:
    """Describe the first batch whose lengths differed."""
    listed = ", ".join(f"{name} {_in_words(part)}" for name, part in alike.items() if part)
    return f" (a batch before it: {listed})" if listed else ""


def _in_words(lengths: list[int | None]) -> str:
    return " and ".join(dict.fromkeys("?" if length is None else str(length) for length in lengths))


class Shared:
    """State between callbacks and phases, ``learner.shared``. Holds anything; has no public methods.

    While a step is compiled, what is no input of the program is hidden: whoever reads it is heard of, since the program
    depends on it. Carried scalars may still be packed in what a compiled step returned.
    """

    __slots__ = ("__dict__", "__weakref__", "_hear", "_hidden", "_packed")
    _hidden: dict[str, object]
    _packed: dict[str, Packed]

    def __init__(self) -> None:
        object.__setattr__(self, "_packed", {})
        show(self)

    def __getattr__(self, name: str) -> Tree:
        if self._hear is not None:
            # A name that nobody wrote is told too: the body went another way because of it.
            value = self._hidden.get(name, self._packed.get(name, ABSENT))
            self._hear(name, value)
            if name in self._hidden:
                return value
        # Written into the dict, so that the next read is an ordinary one, and gives the same array.
        elif name in self._packed:
            value = self.__dict__[name] = self._packed[name].get(f"shared.{name}")
            return value
        names = ", ".join(sorted({*self.__dict__, *self._packed})) or "nothing"
        raise AttributeError(f"nothing wrote shared.{name} yet; shared holds {names}", name=name, obj=self)

    def __delattr__(self, name: str) -> None:
        if self._hidden.pop(name, self) is not self and name not in self.__dict__:
            return
        self._packed.pop(name, None)
        object.__delattr__(self, name)

    def __repr__(self) -> str:
        return f"Shared({', '.join(dict.fromkeys((*self.__dict__, *self._packed)))})"


def hide(shared: Shared, values: Mapping[str, object], hear: Callable[[str, object], None]) -> None:
    """Hide values until `show`; ``hear`` gets the name and value of each that is read, `ABSENT` where none is."""
    object.__setattr__(shared, "_hidden", dict(values))
    object.__setattr__(shared, "_hear", hear)
    for name in values:
        del shared.__dict__[name]


def show(shared: Shared) -> None:
    """Hide nothing any more."""
    object.__setattr__(shared, "_hidden", {})
    object.__setattr__(shared, "_hear", None)


def packed_in(shared: Shared) -> dict[str, Packed]:
    """The carried values that nobody has read since a compiled step, by name: always the same dict."""
    return shared._packed  # pyright: ignore[reportPrivateUsage]  # a public name could be that of a value


def settle(shared: Shared) -> None:
    """Make an attribute of every value that is still packed."""
    packed = packed_in(shared)
    for name in packed:
        getattr(shared, name)
    packed.clear()
