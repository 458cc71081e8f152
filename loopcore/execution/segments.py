"""What goes into a segment of a compiled step and what comes out of it, as records; and how a trace is left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from loopcore.backend.packing import Layout
from loopcore.backend.protocol import CutError, Tree
from loopcore.dispatch import Handler
from loopcore.events import Event

Chain = tuple[tuple[str, int], ...]


Draw = tuple[str, tuple[Any, ...]]  # a kind of random numbers, and its arguments


class RequestedOutputs(NamedTuple):
    """Names of step values that a program hands back, as they are or (what is looked at later) packed."""

    kept: frozenset[str]
    deferred: frozenset[str]


class StepInputs(NamedTuple):
    """What a step begins with. Dynamic values are inputs of its programs, the others part of their key."""

    state: dict[str, Tree]
    shared: dict[str, Tree]
    hyper: dict[str, Any]
    optimizers: dict[str, Any]
    words: Any  # the number of the step, and carried scalars
    phase: dict[str, Tree]
    apply: Any  # a 0-d array, or () where it is a bool
    draws: dict[str, Any] = {}  # noqa: RUF012 - what the host drew, by stream; nobody changes it


class CutRecord(NamedTuple):
    """What is known of a cut when the next segment is traced.

    Attributes:
        inside: whether it is within an objective.
        apply: what the handlers left in ``state.apply`` if that is a bool.
        replaced: state values that handlers replaced: for each leaf the number of the leaf it was before, -1 if none.
        by: which callback replaced a value that a gradient goes through.
        static: state values that are no arrays.
        differs: which parameters, buffers and optimizer states are others than when the step began.
        moved: which of them the handlers replaced.
        chain: step values that the gradient goes on through, by name and number of the leaf; None where the gradient
            has to run the objective from its begin.
    """

    inside: bool
    apply: bool | None
    replaced: tuple[tuple[str, tuple[int, ...]], ...]
    by: tuple[tuple[str, str], ...]
    static: tuple[tuple[str, Any], ...]
    differs: tuple[int, ...]
    moved: tuple[int, ...]
    chain: Chain | None


class HostChanges(NamedTuple):
    """What the host left at a cut: inputs of all later segments."""

    carried: list[Any]  # the leaves that differ from those at the begin of the step
    state: dict[str, Tree]
    shared: dict[str, Tree]
    hyper: dict[str, Any]
    optimizers: dict[str, Any]
    gradients: list[Any]
    apply: Any
    chain: list[Any]
    pullback: Any


class SegmentEnd(NamedTuple):
    """Why a segment ended: at a cut, or (without handlers) at the end of the body."""

    event: Event | None
    handlers: tuple[Handler, ...]
    inside: bool
    state: dict[str, Any]
    shared: dict[str, Any]
    updated: Any
    draws: dict[str, int]
    left_out: tuple[str, ...]
    differentiated: frozenset[str]
    layout: Layout
    carried: tuple[int, ...] | None  # which parameters, buffers and optimizer states are handed back; None: all
    chain: Chain | None
    looks: tuple[SegmentEnd, ...] = ()  # earlier events that are only looked at
    mixed: tuple[tuple[str, Tree], ...] = ()  # state values that hold arrays and something else, with their places


# The three below, and `CutReached`, are BaseExceptions: a body that catches Exception must not swallow them.
class Unasked(BaseException):
    """Leaves a trace that reads a value of ``shared`` which is no input yet, though it could be.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Undrawn(BaseException):
    """Leaves a trace that draws what the host did not draw yet.

    Args:
        stream: names the draw.
        draw: its kind and arguments.
    """

    def __init__(self, stream: int, draw: Draw) -> None:
        super().__init__(stream, draw)
        self.stream, self.draw = stream, draw


class Undrawable(BaseException):
    """Leaves a trace in which an argument of a draw is a value of the step, which the host does not know before."""


class Place:
    """Stands for an array in a value that has something else in it too."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class CutReached(CutError):
    """Leaves the body at a cut, with what it had there."""

    def __init__(self, outputs: dict[str, Tree], end: SegmentEnd, leaves: list[Any]) -> None:
        super().__init__()
        self.outputs, self.end, self.leaves = outputs, end, leaves


def fill(backend: Any, outputs: dict[str, Tree], end: SegmentEnd) -> None:
    """Put the arrays back into the values that hold something else too."""
    for look, look_arrays in zip(end.looks, outputs["looks"], strict=True) if end.looks else ():
        fill(backend, look_arrays, look)
    arrays = outputs["mixed"]
    for name, value in end.mixed:
        outputs["state"][name] = backend.tree_map(
            lambda leaf: arrays[leaf.number] if isinstance(leaf, Place) else leaf, value
        )


def with_leaves(backend: Any, tree: Tree, places: Sequence[int], leaves: Sequence[Any]) -> Tree:
    """Return a tree with other leaves in some places."""
    # Most segments change nothing that the host keeps: no walk over the tree then.
    if not places:
        return tree
    new, number = dict(zip(places, leaves, strict=True)), count()
    return backend.tree_map(lambda leaf: new.get(next(number), leaf), tree)
