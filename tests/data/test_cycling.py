"""A loader without end: its order, its state and its errors."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore import data
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError
from tests.data.loaders import SETTINGS, Unsized, joined, make, plain, take


def test_cycle_repeats_without_end_and_goes_on() -> None:
    loader = data.cycle([1, 2, 3])
    assert list(islice(loader, 7)) == [1, 2, 3, 1, 2, 3, 1]
    assert list(islice(loader, 2)) == [2, 3]
    with pytest.raises(TypeError):
        len(loader)  # type: ignore[arg-type]


def test_cycle_gives_a_shuffled_loader_a_new_order_each_time() -> None:
    settings = {"samples": 12, "batch_size": 4, "shuffle": True}
    assert [plain(b) for b in islice(data.cycle(make(**settings)), 9)] == joined(take(make(**settings), 3))


@given(SETTINGS, st.lists(st.integers(0, 20), max_size=4).map(sorted))
def test_cycle_resumes_at_any_position(settings: dict[str, Any], cuts: list[int]) -> None:
    undisturbed = [plain(batch) for batch in islice(data.cycle(make(**settings)), 30)]
    state, resumed = data.cycle(make(**settings)).state_dict(), list[Any]()
    for end in [*cuts, 30]:
        loader = data.cycle(make(**settings))
        loader.load_state_dict(json.loads(json.dumps(state)))
        resumed += [plain(batch) for batch in islice(loader, end - len(resumed))]
        state = loader.state_dict()
    assert resumed == undisturbed


def test_cycle_resumes_after_the_last_batch_of_a_loader_without_a_len() -> None:
    first, second = (data.cycle(Unsized([1, 2])) for _ in range(2))
    assert list(islice(first, 2)) == [1, 2]
    second.load_state_dict(first.state_dict())
    assert list(islice(second, 3)) == [1, 2, 1]


def test_cycle_of_nothing() -> None:
    with pytest.raises(EmptyDataError, match="nothing to repeat: a value of type list") as caught:
        next(iter(data.cycle([])))
    assert not isinstance(caught.value, DataExhaustedError)


def test_cycle_of_an_iterator_that_can_be_walked_once() -> None:
    loader = iter(data.cycle(n for n in range(2)))
    assert [next(loader), next(loader)] == [0, 1]
    with pytest.raises(DataExhaustedError, match="a value of type generator, which can be walked only once"):
        next(loader)


def test_cycle_checks_its_loader_at_once() -> None:
    with pytest.raises(TypeError, match="cannot be iterated"):
        data.cycle(3)  # type: ignore[arg-type]


def test_cycle_without_a_state_and_with_another_one() -> None:
    with pytest.raises(DataError, match="cycle has no state"):
        data.cycle([1]).state_dict()
    with pytest.raises(DataError, match="no state of cycle"):
        data.cycle(make(samples=2, batch_size=1)).load_state_dict({})


def test_reprs_show_what_is_inside() -> None:
    assert repr(data.combine({"a": data.cycle([1])})) == "combine({'a': cycle([1])})"
