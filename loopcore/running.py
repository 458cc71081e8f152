"""Which learner is running, for functions that no learner is handed to: ``lc.xp``, ``lc.tree`` and ``lc.random``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopcore.learner import Learner

_current: ContextVar[Learner | None] = ContextVar("loopcore_running", default=None)

current = _current.get


def enter(learner: Learner | None) -> Learner | None:
    """Make it the running one; returns the one before, for the next `enter`.

    A token would have to be reset in the context that made it; a scope may be closed in another one.
    """
    before = _current.get()
    _current.set(learner)
    return before


@contextmanager
def running(learner: Learner) -> Iterator[None]:
    """Within the block a learner is the running one."""
    before = enter(learner)
    try:
        yield
    finally:
        enter(before)
