"""The ranking of values that are watched."""

from __future__ import annotations

import itertools
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest

import loopcore as lc
from loopcore.callbacks.monitor import worst
from tests.callbacks.test_checkpointer import Scripted


def epochs(keeper: lc.Checkpointer) -> list[str]:
    return [path.stem.partition("-epoch-")[2].lstrip("0") for path in keeper.paths()]


def scripted(keeper: lc.Checkpointer, losses: Any) -> lc.Learner:
    callbacks = [keeper, lc.Metrics(), lc.Recorder()]
    return lc.testing.toy_learner(callbacks, phases=[Scripted(losses)], steps=1, default_callbacks=False)


def oracle(values: Any, mode: str, keep: int) -> set[int]:
    """What is kept: numbers by value, then NaN and None; newer ones first; and the latest."""
    sign = 1 if mode == "min" else -1
    numbers = [place for place, value in enumerate(values) if value is not None and not isnan(value)]
    rest = [place for place in range(len(values)) if place not in numbers]
    order = sorted(reversed(numbers), key=lambda place: sign * values[place]) + rest[::-1]
    return {*order[:keep], len(values) - 1}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_ranking_is_that_of_a_sort(mode: Any, keep: int) -> None:
    values = (0.0, 1.0, nan, inf, -inf)
    for length in range(1, 5):
        for series in itertools.product(values, repeat=length):
            there: list[int] = []
            for place in range(length):  # as files come and go
                there.append(place)
                gone = worst([series[one] for one in there], mode, keep)
                there = [one for number, one in enumerate(there) if number not in gone]
            assert set(there) == oracle(series, mode, keep), series


@pytest.mark.parametrize(
    "losses", [(nan, 1.0, inf, -inf), (-inf, nan, nan, nan), (inf, nan, 0.0, 0.0), (nan, inf, nan, 2.0)]
)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_files_are_kept_by_that_ranking(losses: Any, mode: Any, tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "loss", mode=mode, keep_top_k=2)
    scripted(keeper, losses).fit(4)
    assert epochs(keeper) == [str(place + 1) for place in sorted(oracle(losses, mode, 2))]
    if len(others := oracle(losses, mode, 1) - {3}) == 1:  # else the last one is the best
        assert keeper.best.name.endswith(f"{others.pop() + 1:06d}.safetensors")
