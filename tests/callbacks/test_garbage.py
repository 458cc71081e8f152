"""Garbage is collected when it is time."""

from __future__ import annotations

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_garbage_is_collected_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("gc.collect", lambda: calls.append(1))
    toy_learner([lc.GarbageCollect(every=2)], data=([BATCH] * 5, None)).fit(2)
    assert len(calls) == 5 + 2
