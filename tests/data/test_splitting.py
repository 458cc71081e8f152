"""Splits are disjoint and complete, whatever their sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore import data
from loopcore.errors import EmptyDataError


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 99), st.booleans())
def test_a_split_is_disjoint_and_complete(samples: int, share: float, seed: int, shuffle: bool) -> None:
    size = min(max(round(share * samples), 1), samples - 1)
    first, second = data.split((np.arange(samples), -np.arange(samples)), size, seed=seed, shuffle=shuffle)
    assert len(first[0]) == size
    assert sorted([*first[0], *second[0]]) == list(range(samples))
    assert all((part[0] == -part[1]).all() for part in (first, second))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_ints_and_the_same_shares_agree(sizes: list[int]) -> None:
    samples = sum(sizes)
    by_count = data.split(np.arange(samples), sizes)
    by_share = data.split(np.arange(samples), [size / samples for size in sizes])
    assert [part.tolist() for part in by_count] == [part.tolist() for part in by_share]
    assert [len(part) for part in by_count] == sizes


def test_a_split_depends_on_its_seed() -> None:
    x = np.arange(50)
    parts = [data.split(x, 0.5, seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_without_shuffle_the_parts_are_consecutive_views() -> None:
    x = np.arange(5)
    first, second = data.split(x, 0.6, shuffle=False)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [3, 4])
    assert np.shares_memory(first, x)
    assert not np.shares_memory(data.split(x, 0.6)[0], x)


@pytest.mark.parametrize("sizes", [0.0, 1.0, -0.5, 1.5, 0, 10, 11])
def test_a_first_part_of_nothing_or_everything(sizes: float) -> None:
    with pytest.raises(ValueError, match="first part of a split"):
        data.split(np.arange(10), sizes)


@pytest.mark.parametrize("sizes", [(0.5, 0.4), (0.5, 0.6), (5, 4), (5, 6)])
def test_parts_that_do_not_add_up(sizes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="add up to all samples"):
        data.split(np.arange(10), sizes)


def test_parts_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        data.split(np.arange(10), (11, -1))


@pytest.mark.parametrize("sizes", [(0.5, 5), (), "ab", (True, 9), True, (None,)])
def test_sizes_of_a_wrong_kind(sizes: Any) -> None:
    with pytest.raises(TypeError, match="sizes of a split"):
        data.split(np.arange(10), sizes)


def test_a_part_rounded_to_nothing() -> None:
    with pytest.raises(EmptyDataError, match=r"part 1 of the split 0\.9 would have none of the 3 samples"):
        data.split(np.arange(3), 0.9)
