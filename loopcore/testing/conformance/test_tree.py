"""Arithmetic on trees of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject

(A, B), (C, D) = batches(2)
W, V = mlp_weights(), mlp_weights(1)
ALL_W = np.concatenate([value.ravel() for value in W.values()])
ALL_V = np.concatenate([value.ravel() for value in V.values()])


def computed(backend: Subject, fn: Any) -> dict[str, Any]:
    """A function of two trees in the structure of the parameters -> NumPy, under the names of the suite."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = fn(learner, learner.params.value, state.other)

    learner, other = make_learner(backend.mlp(W)), make_learner(backend.mlp(V))
    state = run(learner, body, other=other.params.value)
    return backend.leaves(learner, state.found)


def scalar(backend: Subject, fn: Any) -> Any:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = fn(learner, learner.params.value, state.other)

    learner, other = make_learner(backend.mlp(W)), make_learner(backend.mlp(V))
    value = learner.to_host(run(learner, body, other=other.params.value).found)
    assert value.shape == ()
    return value


def test_every_function_is_tested_here(backend: Subject) -> None:
    tree = make_learner(backend.mlp(W)).tree
    assert {name for name in dir(tree) if not name.startswith("_")} == {
        *("map", "map_with_path", "add", "sub", "scale", "lerp", "dot", "global_norm", "all_finite", "is_bounded"),
        "zeros_like",
    }


@pytest.mark.parametrize(("value", "bounded"), [(1.0, True), (np.nan, False), (-np.inf, False), (1e200, False)])
def test_is_bounded(backend: Subject, value: float, bounded: bool) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.bounded = learner.xp.asarray(learner.tree.is_bounded({"a": state.xs, "b": [state.xs[0]]}))

    learner = make_learner(backend.mlp(W))
    xs = np.array([[0.5, value, 0.0]])
    with np.errstate(over="ignore"):
        state = run(learner, body, xs=xs)
    assert bool(learner.to_host(state.bounded)) is bounded


def test_map(backend: Subject) -> None:
    result = computed(backend, lambda learner, w, v: learner.tree.map(lambda a, b: a * b, w, v))
    backend.close(result, {name: W[name] * V[name] for name in W})


def test_map_with_path(backend: Subject) -> None:
    """The paths are those of the exported weights."""
    paths: list[str] = []

    def noted(path: str, a: Any, b: Any) -> Any:
        paths.append(path)
        return a * (0.0 if path.endswith("bias") else 2.0) + b

    result = computed(backend, lambda learner, w, v: learner.tree.map_with_path(noted, w, v))
    backend.close(result, {name: W[name] * (0.0 if name.endswith("bias") else 2.0) + V[name] for name in W})
    assert set(paths) == set(make_learner(backend.mlp(W)).export_weights())


def test_paths_of_containers(backend: Subject) -> None:
    tree = make_learner(backend.mlp(W)).tree
    paths = tree.map_with_path(lambda path, x: path, {"a": {"b": A}, "c": [B, (C, D)]})
    assert paths == {"a": {"b": "a.b"}, "c": ["c.0", ("c.1.0", "c.1.1")]}


def test_sub(backend: Subject) -> None:
    result = computed(backend, lambda learner, w, v: learner.tree.sub(w, v))
    backend.close(result, {name: W[name] - V[name] for name in W})


def test_scale_leaves_integers_integers(backend: Subject) -> None:
    """A product of integers is rounded to integers, and is exact where the factor is whole."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        xp, tree = learner.xp, {"x": state.x, "n": state.n}
        state.mean = learner.tree.scale(tree, 1 / 3)
        state.by_array = learner.tree.scale(tree, xp.full((), 0.5))
        state.double = learner.tree.scale(state.n, 2)

    learner = make_learner(backend.mlp(W))
    state = learner.to_host(dict(vars(run(learner, body, x=A, n=np.array([21, 5, -8, 2**24 + 1], np.int32)))))
    backend.close(state["mean"]["x"], A / 3)
    np.testing.assert_array_equal(state["mean"]["n"][:3], [7, 2, -3])
    np.testing.assert_array_equal(state["by_array"]["n"][:3], [11, 3, -4])
    np.testing.assert_array_equal(state["double"], [42, 10, -16, 2**25 + 2])
    assert {state[name]["n"].dtype.name for name in ("mean", "by_array")} == {"int32"} == {state["double"].dtype.name}


def test_lerp_leaves_integers_integers(backend: Subject) -> None:
    """Buffers hold counters too, and an average over time writes them back."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.tree.lerp({"x": state.x, "n": state.n}, {"x": 3 * state.x, "n": 3 * state.n}, 0.25)

    learner = make_learner(backend.mlp(W))
    result = learner.to_host(run(learner, body, x=A, n=np.array([4, 7], np.int32)).found)
    backend.close(result["x"], 1.5 * A)
    np.testing.assert_array_equal(result["n"], np.array([6, 10]))
    assert result["n"].dtype == np.int32


def test_add(backend: Subject) -> None:
    result = computed(backend, lambda learner, w, v: learner.tree.add(w, v))
    backend.close(result, {name: W[name] + V[name] for name in W})


@pytest.mark.parametrize("array", [False, True], ids=["number", "array"])
def test_scale(backend: Subject, array: bool) -> None:
    result = computed(backend, lambda learner, w, v: learner.tree.scale(w, learner.xp.full((), 2.5) if array else 2.5))
    backend.close(result, {name: 2.5 * W[name] for name in W})


def test_lerp_of_large_arrays(backend: Subject) -> None:
    """Arrays so large that an adapter may have a kernel for them: values, and gradients by all three arguments."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 300, 256))

    def body(learner: Any, handle: Any, state: Any) -> None:
        def squares(a: Any, b: Any, t: Any) -> Any:
            return learner.xp.sum(learner.tree.lerp({"x": a}, {"x": b}, t)["x"] ** 2)

        state.found = learner.tree.lerp({"x": state.x}, {"x": state.y}, 0.25)["x"]
        state.by = learner.grad(squares)(state.x, state.y, state.t)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, x=x, y=y, t=np.array(0.25))
    expected = x + 0.25 * (y - x)
    backend.close(learner.to_host(state.found), expected)
    gradients = 0.75 * 2 * expected, 0.25 * 2 * expected, np.sum(2 * expected * (y - x))
    for actual, desired in zip(learner.to_host(state.by), gradients, strict=True):
        backend.close(actual, desired, rtol=1e-5)


def test_lerp(backend: Subject) -> None:
    result = computed(backend, lambda learner, w, v: learner.tree.lerp(w, v, 0.25))
    backend.close(result, {name: 0.75 * W[name] + 0.25 * V[name] for name in W})


def test_zeros_like(backend: Subject) -> None:
    for name, value in computed(backend, lambda learner, w, v: learner.tree.zeros_like(w)).items():
        np.testing.assert_array_equal(value, np.zeros_like(W[name]))
        assert value.dtype == backend.dtype


def test_dot(backend: Subject) -> None:
    backend.close(scalar(backend, lambda learner, w, v: learner.tree.dot(w, v)), ALL_W @ ALL_V)


def test_global_norm(backend: Subject) -> None:
    backend.close(scalar(backend, lambda learner, w, v: learner.tree.global_norm(w)), np.linalg.norm(ALL_W))


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_all_finite(backend: Subject, bad: float | None) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.tree.all_finite(state.tree)

    tree: dict[str, Any] = {"a": A.copy(), "b": [B.copy()]}
    if bad is not None:
        tree["b"][0][1, 1] = bad
    learner = make_learner(backend.mlp(W))
    result = learner.to_host(run(learner, body, tree=tree).found)
    assert (result.shape, result.dtype) == ((), np.bool_)
    assert bool(result) is (bad is None)


def test_trees_of_batches(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.sum = learner.tree.add(state.one, state.two)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, one={"a": A, "b": (B, [A])}, two={"a": C, "b": (D, [C])})
    total = learner.to_host(state.sum)
    backend.close(total["a"], A + C)
    backend.close(total["b"][0], B + D)
    backend.close(total["b"][1][0], A + C)


def test_gradients_flow_through_trees(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            tree = learner.tree.lerp(learner.params.value, state.other, 0.5)
            return learner.tree.global_norm(learner.tree.scale(tree, 3.0))

        state.found = learner.gradient(objective)

    def norm(w: oracle.Params) -> float:
        return float(np.linalg.norm([np.linalg.norm(1.5 * (w[name] + V[name])) for name in w]))

    learner, other = make_learner(backend.mlp(W)), make_learner(backend.mlp(V))
    state = run(learner, body, other=other.params.value)
    backend.close(backend.leaves(learner, state.found), oracle.difference_of_weights(norm, W), rtol=1e-7)
