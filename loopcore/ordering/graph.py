"""The graph below an order: nodes are ranks from 0, and an edge is a pair of them, the first before the second."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TypeAlias

Edges: TypeAlias = dict[tuple[int, int], str]  # (rank of the first, rank of the second) -> the reason in words


def closure(edges: Edges, count: int) -> list[set[int]]:
    """Find for each rank the ranks that run after it directly or not."""
    later: list[set[int]] = [set() for _ in range(count)]
    for first, second in edges:
        later[first].add(second)
    # Warshall's algorithm: after its pass over a middle node, all ways through the nodes so far are known. A circle
    # does no harm here, and is named later.
    for middle in range(count):
        for followers in later:
            if middle in followers:
                followers |= later[middle]
    return later


def successors(edges: Edges, count: int) -> list[list[int]]:
    """List for each rank the ranks that an edge leads to."""
    after: list[list[int]] = [[] for _ in range(count)]
    for first, second in edges:
        after[first].append(second)
    return after


def topological(edges: Edges, count: int) -> list[int]:
    """Put ranks in order, always the smallest that may come next; fewer than ``count`` if there is a cycle."""
    after = successors(edges, count)
    waiting = [0] * count
    for _, second in edges:
        waiting[second] += 1
    ready = [rank for rank in range(count) if not waiting[rank]]  # an ascending list is a heap already
    order: list[int] = []
    # Kahn's algorithm with a heap: of all that may come next the lowest rank does, which makes the order the only one.
    while ready:
        order.append(heappop(ready))
        for rank in after[order[-1]]:
            waiting[rank] -= 1
            if not waiting[rank]:
                heappush(ready, rank)
    return order


def distances(after: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    """Count the edges of a shortest way from ``start``, by where it ends."""
    far = {start: 0}
    queue = [start]
    # Breadth first, and the list grows while it is walked.
    for rank in queue:
        for following in after[rank]:
            if following not in far:
                far[following] = far[rank] + 1
                queue.append(following)
    return far
