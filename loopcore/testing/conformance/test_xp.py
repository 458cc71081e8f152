"""Every function of ``learner.xp``: values and dtypes as NumPy has them, gradients as finite differences say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject
from loopcore.testing.conformance.xp_cases import CASES, DTYPES, NAMES, Case

SMOOTH = [label for label, case in CASES.items() if case.smooth]


def learner_of(backend: Subject) -> Any:
    return make_learner(backend.mlp(mlp_weights()))


def parts(case: Case) -> dict[str, Array]:
    return {f"a{number}": array for number, array in enumerate(case.arrays)}


def test_every_function_has_a_case() -> None:
    assert {label.partition(" ")[0] for label in CASES} - {"operators"} == NAMES - DTYPES
    smooth = {label.partition(" ")[0] for label in SMOOTH}
    assert NAMES - DTYPES - smooth == {"isfinite", "any", "all", "argmax", "argmin", "one_hot"}


def test_every_function_is_there(backend: Subject) -> None:
    xp = learner_of(backend).xp
    assert [name for name in sorted(NAMES) if not hasattr(xp, name)] == []


@pytest.mark.parametrize("label", CASES)
def test_values_and_dtypes(backend: Subject, label: str) -> None:
    case = CASES[label]
    call, names = case.call, list(parts(case))

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = call(learner.xp, *(getattr(state, name) for name in names))

    learner = learner_of(backend)
    found = learner.to_host(run(learner, body, None, **parts(case)).found)
    expected = np.asarray(case.expected(*case.arrays))
    assert found.dtype.kind == expected.dtype.kind
    if expected.dtype.kind == "f":
        assert found.dtype == backend.dtype
        backend.close(found, expected)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("label", SMOOTH)
def test_gradients(backend: Subject, label: str) -> None:
    case = CASES[label]
    call, names = case.call, list(parts(case))
    floats = [n for n, array in enumerate(case.arrays) if array.dtype.kind == "f"]
    weights = np.cos(np.arange(np.size(case.expected(*case.arrays)), dtype=np.float64))

    def body(learner: Any, handle: Any, state: Any) -> None:
        given = [getattr(state, name) for name in names]

        def scalar(*values: Any) -> Any:
            arrays = list(given)
            for n, value in zip(floats, values, strict=True):
                arrays[n] = value
            return learner.xp.sum(learner.xp.reshape(call(learner.xp, *arrays), (-1,)) * state.weights)

        found = learner.grad(scalar)(*(given[n] for n in floats))
        state.found = found if len(floats) > 1 else (found,)

    learner = learner_of(backend)
    found = learner.to_host(run(learner, body, None, weights=weights, **parts(case)).found)
    for n, gradient in zip(floats, found, strict=True):
        backend.close(gradient, _differences(case, n, weights), rtol=1e-7)
        assert gradient.dtype == backend.dtype


def _differences(case: Case, n: int, weights: Array) -> Array:
    def scalar(value: Array) -> Any:
        arrays = [value if m == n else array for m, array in enumerate(case.arrays)]
        return np.sum(np.ravel(case.expected(*arrays)) * weights)

    return oracle.finite_difference(scalar, case.arrays[n])


def test_the_gradient_of_a_norm_is_zero_at_zero(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def norms(x: Any) -> Any:
            return learner.xp.sum(learner.xp.linalg.vector_norm(x, axis=-1))

        state.found = learner.grad(norms)(state.xs)
        state.second = learner.grad(lambda x: learner.xp.sum(learner.grad(norms)(x) * state.weights))(state.xs)

    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    learner = learner_of(backend)
    state = run(learner, body, xs=x, weights=np.ones((2, 2)))
    backend.close(learner.to_host(state.found), [[0, 0], [0.6, 0.8]])
    assert np.isfinite(learner.to_host(state.second)).all()


@pytest.mark.parametrize("label", ["relu", "sigmoid huge", "softplus huge", "softmax huge", "log_softmax huge"])
def test_gradients_stay_finite(backend: Subject, label: str) -> None:
    case = CASES[label]
    call = case.call

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.grad(lambda x: learner.xp.sum(call(learner.xp, x) ** 2))(state.xs)

    learner = learner_of(backend)
    found = learner.to_host(run(learner, body, xs=np.where(np.abs(case.arrays[0]) < 0.3, 0, case.arrays[0])).found)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["float32", "int32", "bool"])
def test_dtypes_on_request(backend: Subject, name: str) -> None:
    check_dtype(backend, name)


def test_int64_on_request(backend: Subject) -> None:
    check_dtype(backend, "int64")


def check_dtype(backend: Subject, name: str) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        dtype = getattr(xp, name)
        state.found = {
            "zeros": xp.zeros((2,), dtype=dtype),
            "ones": xp.ones((2,), dtype=dtype),
            "full": xp.full((2,), 1, dtype=dtype),
            "ones_like": xp.ones_like(state.xs, dtype=dtype),
            "eye": xp.eye(2, dtype=dtype),
            "astype": xp.astype(state.xs, dtype),
            "one_hot": xp.one_hot(xp.zeros((2,), dtype=xp.int32), 3, dtype=dtype),
        }

    learner = learner_of(backend)
    state = run(learner, body, xs=np.ones((2, 2)))
    for what, array in learner.to_host(state.found).items():
        assert array.dtype.name == name, what


def test_created_arrays_have_the_dtype_of_the_parameters(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        state.found = [xp.zeros((2, 3)), xp.ones((2,)), xp.full((), 0.5), xp.eye(2), xp.arange(0.0, 1.0, 0.25)]
        state.integers = xp.arange(2, 8, 3)

    for dtype in backend.native.dtypes:
        learner = learner_of(backend.within(dtype))
        state = run(learner, body)
        found = learner.to_host(state.found)
        assert {array.dtype.name for array in found} == {dtype}
        assert [array.shape for array in found] == [(2, 3), (2,), (), (2, 2), (4,)]
        np.testing.assert_array_equal(learner.to_host(state.integers), [2, 5])
        assert learner.to_host(state.integers).dtype.kind == "i"


def test_what_arrays_tell_without_being_fetched(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            y = learner.model(state.xs)
            assert tuple(y.shape) == (5, 2)
            assert y.ndim == 2
            assert y.dtype == state.xs.dtype
            return learner.xp.sum(y)

        learner.gradient(objective)

    run(learner_of(backend), body, xs=np.ones((5, 3)))


def test_operators_of_two_dtypes(backend: Subject) -> None:
    """An array of floats with one of integers."""
    integers = np.array([[3, -1, 4], [5, 9, -2]])

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = state.x * state.n + state.n

    x = np.array([[0.5, 1.5, -2.0], [0.0, 3.0, 0.25]])
    learner = learner_of(backend)
    found = learner.to_host(run(learner, body, x=x, n=integers).found)
    assert found.dtype == backend.dtype
    backend.close(found, x * integers + integers)
