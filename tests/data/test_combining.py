"""Loaders side by side: their order, their states and their errors."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore import data
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError
from tests.data.loaders import Unsized, joined, make, plain, take


def test_combine_ends_with_the_shortest_and_starts_anew() -> None:
    loader = data.combine({"a": [1, 2, 3], "b": ["x", "y"]})
    assert len(loader) == 2
    assert take(loader, 2) == [[{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]] * 2


def test_len_of_combine_is_that_of_the_loaders_that_know() -> None:
    assert len(data.combine({"a": data.cycle([1]), "b": [1, 2, 3], "c": range(4)})) == 3
    with pytest.raises(TypeError, match="none of the combined loaders 'a', 'b' has a len"):
        len(data.combine({"a": data.cycle([1]), "b": (n for n in range(3))}))


def test_a_cycle_loses_no_batch_to_the_end_of_an_epoch() -> None:
    for names in (("endless", "short"), ("short", "endless")):
        parts: dict[str, Any] = {"endless": data.cycle(range(5)), "short": ["x", "y"]}
        loader = data.combine({name: parts[name] for name in names})
        assert [batch["endless"] for epoch in take(loader, 4) for batch in epoch] == [0, 1, 2, 3, 4, 0, 1, 2]


def combined() -> data.Combined:
    """Loaders of 4, 3 and endlessly many batches."""
    short: Any = make(samples=6, batch_size=2, shuffle=True, seed=1)
    longer: Any = make(samples=8, batch_size=2, shuffle=True, seed=2)
    return data.combine({"l": longer, "s": short, "c": data.cycle(make(samples=7, batch_size=2, shuffle=True))})


@pytest.mark.parametrize("wrap", [lambda loader: loader, data.cycle], ids=["combine", "cycle of combine"])
@given(cuts=st.lists(st.integers(0, 9), max_size=4).map(sorted))
def test_combine_resumes_at_any_position(wrap: Any, cuts: list[int]) -> None:
    undisturbed = joined(take(combined(), 3))
    state, resumed = wrap(combined()).state_dict(), list[Any]()
    for end in [*cuts, len(undisturbed)]:
        loader = wrap(combined())
        loader.load_state_dict(json.loads(json.dumps(state)))
        while len(resumed) < end:
            resumed += [plain(batch) for batch in islice(loader, end - len(resumed))]
        state = loader.state_dict()
    assert resumed == undisturbed


def test_taking_states_disturbs_nothing() -> None:
    loader, watched, batches = combined(), combined(), []
    for _ in range(3):
        watched.state_dict()
        for batch in watched:
            batches.append(plain(batch))
            assert watched.state_dict() == watched.state_dict()
    assert batches == joined(take(loader, 3))


def test_an_epoch_left_in_the_middle_starts_a_new_one_in_all_loaders() -> None:
    loader = combined()
    next(iter(loader))
    expected = take(make(samples=6, batch_size=2, shuffle=True, seed=1), 2)[1]
    assert [batch["s"] for batch in take(loader, 1)[0]] == expected


@pytest.mark.parametrize("drawn", [3, 4], ids=["last batch", "end found"])
@pytest.mark.parametrize(("lazy", "longer"), [(False, 9), (True, 4)], ids=["eager", "lazy"])
def test_resuming_after_the_end_of_loaders_without_a_len_gives_a_full_epoch(
    drawn: int, lazy: bool, longer: int
) -> None:
    first, second = (
        data.combine({"l": Unsized(range(longer), lazy), "s": Unsized("xyz", lazy), "c": data.cycle(Unsized("ab"))})
        for _ in range(2)
    )
    undisturbed = take(first, 2)[1]
    assert len(list(islice(first, drawn))) == 3
    second.load_state_dict(first.state_dict())
    assert [(batch["l"], batch["s"]) for batch in second] == [(batch["l"], batch["s"]) for batch in undisturbed]


@pytest.mark.parametrize("wrap", [lambda loader: loader, data.cycle, lambda loader: data.combine({"a": loader})])
def test_loading_into_a_loader_in_use(wrap: Any) -> None:
    loader = wrap(make(samples=8, batch_size=2, shuffle=True))
    walk = iter(loader)
    next(walk)
    state = loader.state_dict()
    expected = [plain(batch) for batch in islice(walk, 2)]
    loader.load_state_dict(state)
    assert [plain(batch) for batch in islice(loader, 2)] == expected


def test_combine_without_a_state_says_who_has_none() -> None:
    with pytest.raises(DataError, match="combine has no state since 'b' has none"):
        data.combine({"a": make(samples=2, batch_size=1), "b": [1, 2]}).state_dict()


def test_combine_refuses_the_state_of_other_loaders() -> None:
    state = combined().state_dict()
    with pytest.raises(DataError, match=r"no state of the combined loaders.*\['a'\]"):
        data.combine({"a": make(samples=2, batch_size=1)}).load_state_dict(state)
    with pytest.raises(DataError, match="no state of combine"):
        combined().load_state_dict(make(samples=2, batch_size=1).state_dict())


@pytest.mark.parametrize(
    ("loaders", "error", "text"),
    [
        ([1, 2], TypeError, "takes a dict of loaders"),
        ({}, ValueError, "at least one loader"),
        ({"a": 3}, TypeError, "the loader 'a' is a value of type int"),
    ],
)
def test_combine_checks_its_loaders_at_once(loaders: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        data.combine(loaders)


def test_a_loader_with_a_state_cannot_be_in_two_places() -> None:
    one = make(samples=2, batch_size=1)
    with pytest.raises(ValueError, match="'a' and 'c' are one loader"):
        data.combine({"a": one, "b": [1], "c": one})
    items = [1, 2]
    assert take(data.combine({"a": items, "b": items}), 1)[0][1] == {"a": 2, "b": 2}


def test_combine_names_the_loader_that_is_empty() -> None:
    with pytest.raises(EmptyDataError, match="'b', a value of type list, has no batch"):
        list(data.combine({"a": [1], "b": []}))
    with pytest.raises(EmptyDataError, match="'b', a value of type Unsized, has no batch"):
        list(data.combine({"a": data.cycle([1]), "b": Unsized([])}))


def test_combine_names_the_iterator_that_is_used_up() -> None:
    loader = data.combine({"a": [1, 2], "b": iter([1, 2])})
    assert len(list(loader)) == 2
    with pytest.raises(DataExhaustedError, match="'b' is a value of type list_iterator, which can be walked only once"):
        list(loader)
