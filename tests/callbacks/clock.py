"""A clock that a test sets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, tick: float) -> Iterator[list[float]]:
    """Time goes on by ``tick`` seconds whenever somebody looks."""
    now = [100.0]

    def look() -> float:
        now[0] += tick
        return now[0]

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", look)
        yield now
