"""Which learner is running, for functions that no learner is handed to: ``lc.xp``, ``lc.tree`` and ``lc.random``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol


class Running(Protocol):
    """What is used of the learner that is running."""

    backend: Any
    runs: Any
    seed: int
    all_params: Any
    xp: Any
    tree: Any
    random: Any


_current: ContextVar[Running | None] = ContextVar("loopcore_running", default=None)

current = _current.get


def enter(learner: Running | None) -> Running | None:
    """Make a learner the running one; return the one before, for the next `enter`.

    A token would have to be reset in the context that made it; a scope may be closed in another one.
    """
    before = _current.get()
    _current.set(learner)
    return before


@contextmanager
def running(learner: Running) -> Iterator[None]:
    """Make a learner the running one while a ``with`` block runs, and the one before it afterwards."""
    before = enter(learner)
    try:
        yield
    finally:
        enter(before)
