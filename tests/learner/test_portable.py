"""``lc.xp``, ``lc.tree`` and ``lc.random`` on NumPy, within a step and without a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import BackendError
from loopcore.learner.portable import CREATION, DTYPES, FUNCTIONS, LINALG

A = np.array([[1.0, -2.0], [3.0, 4.0]])


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is chosen, and the draws begin anew."""
    monkeypatch.delenv("LOOPCORE_BACKEND", raising=False)
    lc.random.seed(0)
    yield
    lc.random.seed(0)


def in_step(ask: Callable[[Any], Any], *callbacks: lc.Callback, **options: Any) -> Any:
    """What a function says within a training step."""
    answers: list[Any] = []

    class Asking(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            answers.append(ask(learner))
            super().step(learner, handle, state)

    lc.testing.toy_learner(callbacks, phases=[Asking()], steps=1, **options).fit(1)
    return answers[0]


# -- xp


def test_the_names_are_those_of_a_learner() -> None:
    learner = lc.testing.toy_learner()
    assert {*FUNCTIONS, *CREATION, *DTYPES, "linalg"} == {name for name in dir(learner.xp) if not name.startswith("_")}
    assert set(dir(lc.xp)) == {*FUNCTIONS, *CREATION, *DTYPES, "linalg"}
    assert dir(lc.xp.linalg) == sorted(LINALG)


def test_it_says_what_it_is() -> None:
    assert repr(lc.xp) == f"<loopcore.xp: {len(FUNCTIONS + CREATION)} array functions>"
    assert repr(lc.xp.linalg) == f"<loopcore.xp.linalg: {len(LINALG)} array functions>"
    assert repr(lc.tree).startswith("<loopcore.tree") and repr(lc.random).startswith("<loopcore.random")
    assert lc.xp.relu.__name__ == "relu" and "learner.xp.relu" in lc.xp.relu.__doc__
    assert lc.xp.relu is lc.xp.relu


@pytest.mark.parametrize("name", ["tan", "numpy", "float64", "vector_norm", "Relu"])
def test_a_name_that_it_does_not_have(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"xp has no '{name}'. It holds what works on every backend: abs, all"):
        getattr(lc.xp, name)


def test_nothing_is_found_under_a_private_name() -> None:
    for name in ("__array_namespace__", "_owner"):
        assert not hasattr(lc.xp, name) and not hasattr(lc.xp.linalg, name)
    with pytest.raises(AttributeError, match=r"xp\.linalg has no 'float32'"):
        _ = lc.xp.linalg.float32


def test_functions_take_arrays_lists_of_arrays_and_numbers() -> None:
    np.testing.assert_array_equal(lc.xp.relu(A), [[1, 0], [3, 4]])
    np.testing.assert_array_equal(lc.xp.concat([A, A], axis=1).shape, (2, 4))
    np.testing.assert_array_equal(lc.xp.where(A > 0, A, 0.0), [[1, 0], [3, 4]])
    np.testing.assert_array_equal(lc.xp.linalg.vector_norm(np.array([3.0, 4.0])), 5)
    assert float(lc.xp.exp(0.0)) == 1 and float(lc.xp.maximum(2, 3.0)) == 3
    assert lc.xp.sum(A, axis=0).tolist() == [4, 2]


def test_what_makes_arrays_makes_float32() -> None:
    for array in (lc.xp.zeros((2,)), lc.xp.ones((2,)), lc.xp.full((2,), 3.0), lc.xp.eye(2), lc.xp.asarray([1.0])):
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert lc.xp.arange(3).tolist() == [0, 1, 2]
    assert lc.xp.zeros_like(A).dtype == A.dtype


def test_within_a_step_arrays_are_the_learners() -> None:
    made = in_step(lambda learner: (lc.xp.zeros((2,)), learner.xp.zeros((2,))))
    assert made[0].dtype == made[1].dtype == np.float64
    with lc.using("torch"):  # the learner's goes before what was chosen
        assert isinstance(in_step(lambda learner: lc.xp.zeros((2,)), backend="numpy"), np.ndarray)


@pytest.mark.parametrize("dtype", ["int32", "float32", "int64", "bool"])
def test_dtypes_are_words_or_names(dtype: str) -> None:
    for given in (dtype, getattr(lc.xp, dtype), np.dtype(dtype), getattr(np, dtype)):
        assert lc.xp.zeros((2,), dtype=given).dtype == lc.xp.astype(A, given).dtype == np.dtype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "flot32", "float", ""])
def test_a_word_that_is_no_dtype_everywhere(dtype: str) -> None:
    with pytest.raises(BackendError, match=f"dtype='{dtype}' is none that every backend knows, which are float32, "):
        lc.xp.zeros((2,), dtype=dtype)
    with pytest.raises(BackendError, match="is none that every backend knows"):
        lc.xp.astype(A, dtype)


# -- trees


def test_trees_go_by_their_arrays() -> None:
    tree = {"a": np.ones(2), "b": [np.full(3, 2.0)]}
    assert lc.tree.scale(tree, 2.0)["b"][0].tolist() == [4, 4, 4]
    assert float(lc.tree.global_norm(tree)) == pytest.approx(14**0.5)
    np.testing.assert_array_equal(lc.tree.lerp(tree, lc.tree.scale(tree, 3.0), 0.5)["a"], [2, 2])


def test_a_tree_without_arrays() -> None:
    assert lc.tree.scale({}, 2.0) == {}


# -- random numbers


def test_a_seed_begins_the_draws_anew() -> None:
    first = [lc.random.normal((3,)) for _ in range(2)]
    assert (first[0] != first[1]).all() and first[0].dtype == np.float32
    lc.random.seed(0)
    np.testing.assert_array_equal(lc.random.normal((3,)), first[0])
    lc.random.seed(1)
    assert (lc.random.normal((3,)) != first[0]).all()


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed is a whole number, at least 0, not"):
        lc.random.seed(seed)


def test_every_kind_of_draw() -> None:
    assert 1 <= float(lc.random.uniform((), 1.0, 2.0)) < 2
    assert set(np.unique(lc.random.bernoulli(0.5, (50,)))) == {0, 1}
    assert sorted(lc.random.permutation(5).tolist()) == list(range(5))
    integers = lc.random.integers(2, 4, (50,))
    assert set(integers.tolist()) == {2, 3}
    assert (lc.random.beta(2.0, 2.0, (4,)) > 0).all()
    assert lc.random.categorical(np.array([[0.0, 100.0], [100.0, 0.0]])).tolist() == [1, 0]


def test_the_body_and_the_model_share_draws_and_a_callback_has_its_own() -> None:
    class Drawing(lc.Callback):
        reads = writes = ("step.xs",)
        drawn: Any = None

        @lc.on(lc.StepBegin, lc.AbstractTrainingPhase)
        def draw(self, learner: Any, phase: Any) -> None:
            self.drawn = lc.random.normal((2,))

    alone = in_step(lambda learner: (lc.random.normal((2,)), learner.random.normal((2,))), seed=5)
    again = in_step(lambda learner: (learner.random.normal((2,)), lc.random.normal((2,))), seed=5)
    np.testing.assert_array_equal(alone, again)  # by whichever name: they are numbered together
    drawing = Drawing()
    beside = in_step(lambda learner: (lc.random.normal((2,)), lc.random.normal((2,))), drawing, seed=5)
    np.testing.assert_array_equal(beside, alone)  # one more callback changes no other draws
    assert drawing.drawn is not None and not np.isin(drawing.drawn, alone).any()


def test_draws_within_a_step_leave_those_outside_alone() -> None:
    expected = [lc.random.normal((2,)) for _ in range(2)]
    lc.random.seed(0)
    first = lc.random.normal((2,))
    in_step(lambda learner: lc.random.normal((2,)))
    np.testing.assert_array_equal([first, lc.random.normal((2,))], expected)
