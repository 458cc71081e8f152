"""The order of callbacks, derived from what they declare.

Explicit order (``run_after``, ``run_before``, ``requires``) comes first, with all that follows from it. A pair that it
leaves open is settled by paths: both write one, then `Callback.resolve_conflict` must say who is first; one writes what
the other reads, then the writer is. What is open still follows the names of the classes, never the list or a hash seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, Resolution, RunFirst
from loopcore.errors import CallbackError, ConflictError, CycleError
from loopcore.ordering.declarations import (
    KNOWN_WRITERS,
    ROOTS,
    Declaration,
    in_words,
    overlaps,
    raise_first,
    read_declarations,
)
from loopcore.ordering.graph import Edges, closure, distances, successors, topological

__all__ = ["COMBINED", "KNOWN_WRITERS", "ROOTS", "Edge", "Order", "order_callbacks", "overlaps"]

COMBINED = "step.apply"  # what is written there is combined by `and`: the order of its writers does not matter
_BEFORE = "run_before names"


@dataclass(frozen=True)
class Edge:
    """One constraint of an order: ``before`` runs before ``after``, and ``reason`` says why in words."""

    before: Callback
    after: Callback
    reason: str


@dataclass(frozen=True)
class Order:
    """Callbacks in the order they run in, and the edges it follows from, sorted by that order."""

    callbacks: tuple[Callback, ...]
    edges: tuple[Edge, ...]


def order_callbacks(callbacks: Sequence[Callback], available: Collection[str] = ()) -> Order:
    """Put callbacks in the one order that follows from their declarations.

    The result is the first topological order by (module, name) of the classes. It does not depend on the order of the
    list, except that unrelated callbacks of one class keep it. Errors do not depend on it either.

    Args:
        callbacks: each one once. A wrapper counts as what it wraps.
        available: ``shared`` paths that are there although no callback writes them.

    Returns:
        The callbacks in order, and the edges with their reasons.

    Raises:
        CallbackError: an entry is no callback or comes twice, or a declaration or an answer is malformed.
        MissingRequirementError: a required callback is absent.
        MissingWriterError: a ``shared`` path is read that nothing writes.
        ConflictError: two callbacks write one path and nothing orders them, or they disagree about it.
        CycleError: the order runs in a circle; the message has a shortest one, with the reason of each edge.

    Example:
        >>> from loopcore.callback import Callback
        >>> class Recorder(Callback):
        ...     writes = ("shared.history",)
        >>> class LossPrinter(Callback):
        ...     reads = ("shared.history",)
        >>> order = order_callbacks([LossPrinter(), Recorder()])
        >>> [type(callback).__name__ for callback in order.callbacks]
        ['Recorder', 'LossPrinter']
        >>> order.edges[0].reason
        'Recorder writes shared.history, LossPrinter reads it'
    """
    nodes = read_declarations(callbacks, available)
    edges = _explicit_edges(nodes)
    # With all that follows from explicit order, not with its edges alone: if A runs after B and B after C, then no
    # question of paths between A and C is open.
    edges.update(_derived_edges(nodes, closure(edges, len(nodes))))
    ranks = topological(edges, len(nodes))
    if len(ranks) < len(nodes):
        raise _cycle_error(nodes, edges)
    place = {rank: i for i, rank in enumerate(ranks)}
    pairs = sorted(edges, key=lambda pair: (place[pair[0]], place[pair[1]]))
    return Order(
        tuple(nodes[rank].callback for rank in ranks),
        tuple(Edge(nodes[i].callback, nodes[j].callback, edges[i, j]) for i, j in pairs),
    )


# ---- edges by class


def _explicit_edges(nodes: Sequence[Declaration]) -> Edges:
    reasons: dict[tuple[int, int], set[str]] = {}
    for node in nodes:
        for verb, cls in _wishes(node):
            for other in nodes:
                if not isinstance(other.inner, cls) or _same_wish(verb, cls, node, other):
                    continue
                pair = (node.rank, other.rank) if verb == _BEFORE else (other.rank, node.rank)
                reasons.setdefault(pair, set()).add(f"{node.name}.{verb} {cls.__name__}")
    return {pair: ", ".join(sorted(wishes)) for pair, wishes in reasons.items()}


def _wishes(node: Declaration) -> Iterator[tuple[str, type]]:
    yield from (("run_after names", cls) for cls in node.run_after)
    yield from (("requires", cls) for cls in node.requires)
    yield from ((_BEFORE, cls) for cls in node.run_before)


def _same_wish(verb: str, cls: type, node: Declaration, other: Declaration) -> bool:
    """Tell whether both are of a class and want to run after (or before) its members. So does each with itself."""
    says = other.run_before if verb == _BEFORE else other.run_after + other.requires
    return cls in says and isinstance(node.inner, cls)


# ---- edges by path


def _derived_edges(nodes: Sequence[Declaration], later: Sequence[set[int]]) -> Edges:
    """Derive the edges of all pairs that explicit order leaves open."""
    edges: Edges = {}
    problems: list[CallbackError] = []
    for a, b in combinations(nodes, 2):
        # Two that write nothing cannot disturb one another. They are most of the pairs.
        if not (a.writes or b.writes) or b.rank in later[a.rank] or a.rank in later[b.rank]:
            continue
        try:
            edges.update(_settle(a, b))
        # All pairs are asked before one is reported: which error comes must not depend on which pair was first.
        except CallbackError as problem:
            problems.append(problem)
    raise_first(problems)
    return edges


def _settle(a: Declaration, b: Declaration) -> Edges:
    # Both directions: where each reads what the other writes, the circle is named as one, unless they settle it.
    flows = {(x.rank, y.rank): reason for x, y in ((a, b), (b, a)) if (reason := _flow(x, y))}
    clash = _clash(a, b)
    if not (clash or flows):
        return {}
    overlap = clash or min(flows.values())
    # An answer goes before what the paths say, so that two callbacks that know each other can run against their reads.
    answer, by = _resolve(a, b, overlap)
    if isinstance(answer, Declaration):
        last = b if answer is a else a
        return {(answer.rank, last.rank): f"{by}.resolve_conflict: {answer.name} first"}
    if clash and answer is None:
        raise ConflictError(f"{overlap}, and nothing says which runs first: {_remedy(a, b)}")
    return {} if answer is NO_CONFLICT else flows


def _clash(a: Declaration, b: Declaration) -> str:
    """Say what both write; empty if nothing."""
    # The longer of two paths is what both touch: "step.loss", where one writes that and the other all of "step".
    paths = [max(x, y, key=len) for x in a.writes for y in b.writes if overlaps(x, y) and not x == y == COMBINED]
    return f"{' and '.join(sorted((a.name, b.name)))} both write {min(paths)}" if paths else ""


def _flow(writer: Declaration, reader: Declaration) -> str:
    """Say what one writes and the other reads; empty if nothing."""
    pairs = [(w, r) for w in writer.writes for r in reader.reads if overlaps(w, r)]
    if COMBINED in reader.writes:  # a callback that combines its value into this path does not read those of the others
        pairs = [(w, r) for w, r in pairs if w != COMBINED]
    if not pairs:
        return ""
    source, target = pairs[0]
    return f"{writer.name} writes {source}, {reader.name} reads {'it' if target == source else target}"


def _remedy(a: Declaration, b: Declaration) -> str:
    name, other_name = (type(node.inner).__name__ for node in (a, b))
    resolve = "let resolve_conflict of one return RunFirst(self), RunFirst(other) or NO_CONFLICT"
    return (
        f"keep one {name}, or {resolve}"
        if name == other_name
        else f"write run_after = ({name},) in {other_name}, or {resolve}"
    )


def _resolve(a: Declaration, b: Declaration, overlap: str) -> tuple[Declaration | Resolution | None, str]:
    """Ask both sides of a pair, once; return the answer, and the name of who gave it."""
    answers = [(node.name, _answer(node, other)) for node, other in ((a, b), (b, a))]
    opinions = [
        (name, answer) for name, answer in sorted(answers, key=lambda opinion: opinion[0]) if answer is not None
    ]
    for name, answer in opinions:
        if answer is UNRESOLVABLE:
            raise ConflictError(f"{overlap}, and {name}.resolve_conflict says UNRESOLVABLE: remove one of them")
    if not opinions:
        return None, ""
    # Two opinions at most, one from each side.
    if opinions[0][1] is not opinions[-1][1]:
        words = ((name, "NO_CONFLICT" if answer is NO_CONFLICT else in_words(answer)) for name, answer in opinions)
        says = " but ".join(sorted(f"{name}.resolve_conflict says {word}" for name, word in words))
        raise ConflictError(f"{overlap}, and {says}: let both give one answer, or one of them None")
    return opinions[0][1], opinions[0][0]


def _answer(node: Declaration, other: Declaration) -> Declaration | Resolution | None:
    """Ask ``node`` about ``other``; of RunFirst, return the one of the two that is first."""
    answer: Any = node.callback.resolve_conflict(other.inner)
    if answer is None or answer is NO_CONFLICT or answer is UNRESOLVABLE:
        return answer
    if isinstance(answer, RunFirst):
        for first in (node, other):
            if answer.callback is first.callback or answer.callback is first.inner:
                return first
    returned = "RunFirst of a third callback" if isinstance(answer, RunFirst) else in_words(answer)
    raise CallbackError(
        f"{node.name}.resolve_conflict({other.name}) returned {returned}: return RunFirst(self), RunFirst(other), "
        "NO_CONFLICT, UNRESOLVABLE or None"
    )


# ---- the order, or the circle that prevents it


def _cycle_error(nodes: Sequence[Declaration], edges: Edges) -> CycleError:
    """Make the error for a shortest cycle: of several the one whose text sorts first, in any order of the list."""
    after = successors(edges, len(nodes))
    far = [distances(after, rank) for rank in range(len(nodes))]
    # A circle is an edge and a shortest way back. All circles of that length are followed at once below, edge by edge,
    # each time by the edge whose text sorts first: the message is the same for every order of the list.
    length = min(far[second][first] + 1 for first, second in edges if first in far[second])
    paths = {(rank, rank): [rank] for rank in range(len(nodes))}  # ways along shortest cycles, by first and last rank
    lines: list[str] = []
    for remaining in reversed(range(length)):
        steps = [
            (f"{nodes[end].name} before {nodes[rank].name}: {edges[end, rank]}", [*path, rank])
            for (start, end), path in paths.items()
            for rank in after[end]
            if far[rank].get(start) == remaining
        ]
        lines.append(min(text for text, _ in steps))
        paths = {(path[0], path[-1]): path for text, path in steps if text == lines[-1]}
    listed = "\n  ".join(["these callbacks cannot be put in order:", *lines])
    return CycleError(
        f"{listed}\nremove one of these declarations, or settle a pair by run_after or resolve_conflict",
        tuple(nodes[rank].callback for rank in min(paths.values())[:-1]),
    )
