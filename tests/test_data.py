"""`loopcore.data`: coverage, order, resuming and the errors of batches, split, combine and cycle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopcore as lc
from loopcore import data
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError

SETTINGS = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 23),
        "batch_size": st.integers(1, 9),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**40),
        "drop_last": st.booleans(),
    }
).filter(lambda s: not s["drop_last"] or s["samples"] >= s["batch_size"])


def make(samples: int, **settings: Any) -> data.Batches:
    return data.batches({"x": np.arange(samples), "y": np.arange(samples) * 2.0}, **settings)


def take(loader: Any, epochs: int) -> list[list[Any]]:
    """What a loader hands out, as plain lists."""
    return [[plain(batch) for batch in loader] for _ in range(epochs)]


def joined(lists: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def plain(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: plain(part) for name, part in batch.items()}
    return batch.tolist() if isinstance(batch, np.ndarray) else batch


class Pair(NamedTuple):
    left: Any
    right: Any


class Unsized:
    """A loader with a state and without a length, as a stream of a framework has it."""

    def __init__(self, inner: Any, lazy: bool = False) -> None:
        self._inner, self._lazy, self._taken, self._resume_at = inner, lazy, 0, 0

    def __iter__(self) -> Iterator[Any]:
        return self._run() if self._lazy else self._run(self._start())

    def _start(self) -> int:
        self._taken, self._resume_at = self._resume_at, 0
        return self._taken

    def _run(self, start: int | None = None) -> Iterator[Any]:
        for item in islice(self._inner, self._start() if start is None else start, None):
            self._taken += 1
            yield item
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume_at = self._taken = state["taken"]


# -- batches ---------------------------------------------------------------------------------------------------------


@given(SETTINGS)
def test_each_epoch_hands_out_every_sample_once(settings: dict[str, Any]) -> None:
    loader = make(**settings)
    samples, size = settings["samples"], settings["batch_size"]
    for epoch in take(loader, 3):
        seen = Counter(x for batch in epoch for x in batch["x"])
        assert len(epoch) == len(loader)
        assert all(len(batch["x"]) == size for batch in epoch[:-1])
        assert seen == Counter(seen.keys())
        assert len(seen) == (samples // size * size if settings["drop_last"] else samples)
        assert all(batch["y"] == [2.0 * x for x in batch["x"]] for batch in epoch)


@given(SETTINGS, st.lists(st.integers(0, 12), max_size=4))
def test_the_order_of_an_epoch_does_not_depend_on_what_was_left_before(
    settings: dict[str, Any], interruptions: list[int]
) -> None:
    undisturbed = take(make(**settings), len(interruptions) + 1)
    loader = make(**settings)
    for count in interruptions:
        for _ in islice(loader, count):
            pass
    assert take(loader, 1)[0] == undisturbed[-1]


@given(SETTINGS, st.data())
def test_a_run_resumed_at_any_positions_equals_an_undisturbed_one(
    settings: dict[str, Any], draws: st.DataObject
) -> None:
    undisturbed = joined(take(make(**settings), 3))
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(undisturbed)), max_size=4)))
    state, resumed = make(**settings).state_dict(), list[Any]()
    for start, end in zip([0, *cuts], [*cuts, len(undisturbed)], strict=True):
        loader = make(**settings)
        loader.load_state_dict(json.loads(json.dumps(state)))
        while len(resumed) < end:
            resumed += [plain(batch) for batch in islice(loader, end - len(resumed))]
        state = loader.state_dict()
        assert len(resumed) == max(start, end)
    assert resumed == undisturbed


@pytest.mark.parametrize("position", range(8))
def test_resuming_at_each_position_of_two_epochs(position: int) -> None:
    settings = {"samples": 10, "batch_size": 3, "shuffle": True, "seed": 7}
    undisturbed = joined(take(make(**settings), 3))
    first, second = make(**settings), make(**settings)
    for _ in range(position // 4):
        list(first)
    stopped = iter(first)
    for _ in range(position % 4):
        next(stopped)
    second.load_state_dict(first.state_dict())
    end_of_next_epoch = (position // 4 + 2) * 4
    assert joined(take(second, 2)) == undisturbed[position:end_of_next_epoch]


def test_the_end_of_an_epoch_is_the_start_of_the_next_one() -> None:
    loader = make(samples=6, batch_size=3, shuffle=True)
    walk = iter(loader)
    assert len(list(islice(walk, 2))) == 2
    before = loader.state_dict()
    assert next(walk, None) is None
    assert loader.state_dict() == before
    assert (before["epoch"], before["position"]) == (1, 0)


def test_a_resumed_loader_is_shuffled_as_the_epoch_it_is_in() -> None:
    loader, other = (make(samples=40, batch_size=4, shuffle=True, seed=3) for _ in range(2))
    first, second = take(loader, 2)
    assert first != second
    next(iter(loader))
    other.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 0})
    assert take(other, 1)[0] == second


def test_an_abandoned_iterator_does_not_move_the_state() -> None:
    loader = make(samples=6, batch_size=2)
    old = iter(loader)
    next(iter(loader))
    assert len(list(islice(old, 2))) == 2
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 1)


def test_two_iterators_at_a_time_are_two_epochs() -> None:
    pairs = list(zip(*[make(samples=30, batch_size=30, shuffle=True)] * 2, strict=True))
    assert len(pairs) == 1
    assert plain(pairs[0][0]) != plain(pairs[0][1])


def test_seeds_give_different_orders_and_shuffle_gives_an_order() -> None:
    settings = ({"shuffle": True}, {"shuffle": True, "seed": 1}, {"shuffle": False})
    one, two, unshuffled = (take(make(samples=30, batch_size=30, **more), 1) for more in settings)
    assert one != two
    assert one != unshuffled
    assert unshuffled[0][0]["x"] == list(range(30))


def test_the_order_is_the_same_in_every_version() -> None:
    loader = data.batches(np.arange(8), 8, shuffle=True, seed=1)
    assert take(loader, 2) == [[[6, 2, 0, 3, 4, 5, 1, 7]], [[5, 6, 2, 7, 1, 0, 3, 4]]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_copies(shuffle: bool) -> None:
    x = np.arange(6)
    loader = data.batches(x, 3, shuffle)
    for batch in loader:
        batch[:] = -1
    assert x.tolist() == list(range(6))
    assert -1 not in joined(take(loader, 1)[0])


def test_a_batch_has_the_structure_of_the_arrays() -> None:
    x = np.arange(4)
    batch = next(iter(data.batches({"b": (x, None), "a": [Pair(x, x[:, None])]}, 2)))
    assert list(batch) == ["b", "a"]
    assert isinstance(batch["b"], tuple) and batch["b"][1] is None
    assert isinstance(batch["a"][0], Pair) and batch["a"][0].right.shape == (2, 1)
    assert next(iter(data.batches(x, 3))).tolist() == [0, 1, 2]


def test_dtypes_are_kept() -> None:
    arrays = tuple(np.zeros(3, dtype) for dtype in ("float16", "uint8", "bool", "S3"))
    assert [part.dtype.str for part in next(iter(data.batches(arrays, 2)))] == ["<f2", "|u1", "|b1", "|S3"]


def test_arrays_of_other_libraries_are_read_through_the_array_protocol() -> None:
    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            return np.arange(3)

    assert next(iter(data.batches((Foreign(), np.arange(3)), 3)))[0].tolist() == [0, 1, 2]


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(DataError, match=r"arrays\[0\] has 5, arrays\[1\]\['y'\] has 4"):
        data.batches((np.zeros(5), {"y": np.zeros(4)}), 2)
    with pytest.raises(DataError, match=r"arrays\[0\] has 0, arrays\[1\] has 4"):
        data.batches((np.zeros(0), np.zeros(4)), 2)


@pytest.mark.parametrize("nothing", [(), {}, None, (None,)])
def test_no_array_at_all(nothing: Any) -> None:
    with pytest.raises(DataError, match="no array"):
        data.batches(nothing, 2)


@pytest.mark.parametrize("leaf", [3, "text", [1, 2], np.float32(1.0), range(3), object()])
def test_a_leaf_that_is_no_array_is_named(leaf: Any) -> None:
    with pytest.raises(DataError, match=r"arrays\['x'\].* is a value of type \w+ and no array.*np\.asarray"):
        data.batches({"x": leaf}, 2)


def test_no_sample_and_no_full_batch() -> None:
    with pytest.raises(EmptyDataError, match=r"arrays has the shape \(0, 3\)"):
        data.batches(np.zeros((0, 3)), 2)
    with pytest.raises(EmptyDataError, match="3 samples make no full batch of 4"):
        data.batches(np.zeros(3), 4, drop_last=True)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        data.batches(np.zeros(3), size)


@pytest.mark.parametrize("size", [2.0, "2", True, None])
def test_a_batch_size_that_is_no_integer(size: Any) -> None:
    with pytest.raises(TypeError, match="batch_size must be an int"):
        data.batches(np.zeros(3), size)


def test_arrays_given_side_by_side_are_explained() -> None:
    with pytest.raises(TypeError, match=r"batches\(\(x, y\), 32\)"):
        data.batches(np.zeros(3), np.zeros(3))  # type: ignore[arg-type]


def test_a_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0"):
        data.batches(np.zeros(3), 1, seed=-1)


def test_numpy_integers_are_integers() -> None:
    loader = data.batches(np.zeros(3), np.int64(2), seed=np.uint8(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(loader.state_dict()))["batch_size"] == 2


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 9), ("batch_size", 2), ("shuffle", True), ("seed", 5), ("drop_last", True)]
)
def test_the_state_of_another_loader_is_refused(name: str, value: Any) -> None:
    mine: dict[str, Any] = {"samples": 8, "batch_size": 3, "shuffle": False, "seed": 1, "drop_last": False}
    loader = make(**mine)
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(DataError, match=f"{name} was {value}, is {mine[name]}"):
        loader.load_state_dict(make(**{**mine, name: value}).state_dict())
    assert loader.state_dict() == before


def test_what_is_no_state_is_refused() -> None:
    loader = make(samples=8, batch_size=3)
    state = loader.state_dict()
    for wrong in ({}, 3, {**state, "more": 1}, {"epoch": 0}):
        with pytest.raises(DataError, match="no state of batches"):
            loader.load_state_dict(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch 3 of an epoch, which has 3"):
        loader.load_state_dict({**state, "position": 3})
    with pytest.raises(ValueError, match="epoch of the state"):
        loader.load_state_dict({**state, "epoch": -1})


def test_repr_says_what_it_is() -> None:
    assert repr(make(samples=8, batch_size=3)) == (
        "batches(samples=8, batch_size=3, shuffle=False, seed=0, drop_last=False)"
    )


# -- split -----------------------------------------------------------------------------------------------------------


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


# -- combine ---------------------------------------------------------------------------------------------------------


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


# -- cycle -----------------------------------------------------------------------------------------------------------


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


# -- the seed of a learner ---------------------------------------------------------------------------------------------


def flat(batch: Any) -> list[int]:
    return [n for part in batch.values() for n in flat(part)] if isinstance(batch, dict) else batch.tolist()


def order_with(seed: int, loader: Any, epochs: int = 1) -> list[list[int]]:
    """The order in which a learner with this seed walks ``loader``."""
    learner = lc.testing.toy_learner(data=(loader, None), seed=seed, default_callbacks=False)
    seen: list[list[int]] = []

    class Walk(lc.AbstractTrainingPhase):
        data_key = "training"

        def unpack(self, batch: Any) -> dict[str, Any]:
            seen[-1] += flat(batch)
            return {"xs": 1.0}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = state.xs

    for _ in range(epochs):
        seen.append([])
        learner.run_epoch(Walk())
    return seen


def test_an_order_without_a_seed_follows_the_learner() -> None:
    def make(**more: Any) -> Any:
        return lc.data.batches(np.arange(20), 5, shuffle=True, **more)

    assert order_with(1, make(), 2) == order_with(1, make(), 2) != order_with(2, make(), 2)
    assert order_with(1, make(seed=4)) == order_with(2, make(seed=4)) == order_with(4, make())
    assert order_with(0, make()) == [np.concatenate(list(make())).tolist()]
    shared = make()
    orders = [order_with(seed, shared, 2) for seed in (1, 2)]
    assert orders == [order_with(1, make(), 2), order_with(2, make(), 4)[2:]]
    for wrap in (lc.data.cycle, lambda loader: lc.data.combine({"a": loader})):
        wrapped = [lc.data.combine({"x": wrap(make()), "y": make(seed=0)}) for _ in range(2)]
        assert order_with(1, wrapped[0]) != order_with(2, wrapped[1])


def test_an_order_that_follows_goes_on_from_a_state() -> None:
    loader = lc.data.batches(np.arange(20), 5, shuffle=True)
    loader.follow_seed(7)
    walk = iter(loader)
    next(walk)
    resumed = lc.data.batches(np.arange(20), 5, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in resumed] == [batch.tolist() for batch in walk]
