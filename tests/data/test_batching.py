"""Batches: coverage, order, resuming, the seed of a learner, and errors."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopcore as lc
from loopcore import data
from loopcore.errors import DataError, EmptyDataError
from tests.data.loaders import SETTINGS, Pair, joined, make, plain, take

# -- batches


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


# -- the seed of a learner


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
