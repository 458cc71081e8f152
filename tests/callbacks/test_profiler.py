"""A profile is of the steps it says."""

from __future__ import annotations

import pstats
from pathlib import Path
from typing import Any

import loopcore as lc


def test_a_profile_is_of_the_steps_it_says(tmp_path: Path) -> None:
    calls: list[int] = []

    def watched(y_pred: Any, ys: Any) -> Any:
        calls.append(1)
        return lc.losses.mse(y_pred, ys)

    profiler = lc.Profiler(tmp_path, skip=1, steps=2)
    learner = lc.testing.toy_learner([profiler], loss_fn=watched, steps=5)
    learner.fit(1)
    learner.fit(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-1", "fit-2"], "nothing is written over"
    stats = pstats.Stats(str(tmp_path / "fit-1" / "profile.pstats")).stats  # type: ignore[attr-defined]
    found = [row[1] for (_, _, name), row in stats.items() if name == "watched"]
    assert found == [2] and len(calls) == 10


def test_a_profile_ends_with_its_fit(tmp_path: Path) -> None:
    learner = lc.testing.toy_learner([lc.Profiler(tmp_path, skip=1, steps=100)], steps=2)
    learner.fit(1)
    assert (tmp_path / "fit-1" / "profile.pstats").exists()
    learner.fit(1)
