"""Every function of ``learner.xp``: values and dtypes as NumPy has them, gradients as finite differences say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject
from loopcore.testing.conformance.xp_cases import CASES, DTYPES, NAMES, Case

SMOOTH = [label for label, case in CASES.items() if case.smooth]
# An array function does not know in which plan it runs: one of each sort, and those of functions, run in all of them.
IN_EVERY_PLAN = [
    *("exp", "where number", "where broadcast", "var correction", "linalg vector_norm axis", "linalg solve broadcast"),
    *("take columns", "take_along_axis", "asarray list", "conv 2d groups, dilation", "max_pool 2d same"),
    *("layer_norm scale and offset", "einsum ii->i", "sort axis", "segment_sum", "scan", "vmap in_axes"),
]


def learner_of(backend: Subject) -> Any:
    return make_learner(backend.mlp(mlp_weights()))


def parts(case: Case) -> dict[str, Array]:
    return {f"a{number}": array for number, array in enumerate(case.arrays)}


def test_every_function_has_a_case() -> None:
    assert {label.partition(" ")[0] for label in CASES} - {"operators"} == NAMES - DTYPES
    smooth = {label.partition(" ")[0] for label in SMOOTH}
    assert NAMES - DTYPES - smooth == {"isfinite", "any", "all", "argmax", "argmin", "one_hot", "argsort"}


def test_every_function_is_there(backend: Subject) -> None:
    xp = learner_of(backend).xp
    assert [name for name in sorted(NAMES) if not hasattr(xp, name)] == []
    assert set(dir(xp)) == NAMES


def test_an_unknown_name_says_what_there_is(any_plan: Subject) -> None:
    xp = learner_of(any_plan).xp
    assert {name for name in dir(xp.linalg) if not name.startswith("_")} == {"vector_norm", "solve", "slogdet", "inv"}
    with pytest.raises(AttributeError, match=r"xp\.linalg has no 'qr'\. It holds .*: inv, slogdet, solve, vector_norm"):
        _ = xp.linalg.qr
    assert not hasattr(xp, "convolve")
    with pytest.raises(
        AttributeError, match=r"xp has no 'convolve'\. It holds what works on every .*: abs, .*zeros_like"
    ):
        _ = xp.convolve


@pytest.mark.parametrize("label", CASES)
def test_values_and_dtypes(any_plan: Subject, label: str) -> None:
    check_values(any_plan, label)


@pytest.mark.parametrize("label", IN_EVERY_PLAN)
def test_values_in_every_plan(backend: Subject, label: str) -> None:
    check_values(backend, label)


def check_values(backend: Subject, label: str) -> None:
    case = CASES[label]
    call, names = case.call, list(parts(case))

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = call(learner.xp, *(getattr(state, name) for name in names))

    learner = learner_of(backend)
    result = learner.to_host(run(learner, body, None, **parts(case)).found)
    expected = np.asarray(case.expected(*case.arrays))
    assert result.dtype.kind == expected.dtype.kind
    if expected.dtype.kind == "f":
        assert result.dtype == backend.dtype
        backend.close(result, expected)
    else:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("label", SMOOTH)
def test_gradients(any_plan: Subject, label: str) -> None:
    check_gradients(any_plan, label)


@pytest.mark.parametrize("label", IN_EVERY_PLAN)
def test_gradients_in_every_plan(backend: Subject, label: str) -> None:
    check_gradients(backend, label)


def check_gradients(backend: Subject, label: str) -> None:
    case = CASES[label]
    call, names = case.call, list(parts(case))
    floats = [n for n, array in enumerate(case.arrays) if array.dtype.kind == "f"]
    weights = _weights(case)

    def body(learner: Any, handle: Any, state: Any) -> None:
        inputs = [getattr(state, name) for name in names]

        def scalar(*values: Any) -> Any:
            arrays = list(inputs)
            for n, value in zip(floats, values, strict=True):
                arrays[n] = value
            return learner.xp.sum(learner.xp.reshape(call(learner.xp, *arrays), (-1,)) * state.weights)

        gradient = learner.grad(scalar)(*(inputs[n] for n in floats))
        state.found = gradient if len(floats) > 1 else (gradient,)

    learner = learner_of(backend)
    gradients = learner.to_host(run(learner, body, None, weights=weights, **parts(case)).found)
    for n, gradient in zip(floats, gradients, strict=True):
        backend.close(gradient, _differences(case, n, weights), rtol=1e-7)
        assert gradient.dtype == backend.dtype


def _weights(case: Case) -> Array:
    """A number for each element of the result, so that none has the same part in a sum."""
    return np.cos(np.arange(np.size(case.expected(*case.arrays)), dtype=np.float64))


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
    gradients = learner.to_host(run(learner, body, xs=np.where(np.abs(case.arrays[0]) < 0.3, 0, case.arrays[0])).found)
    assert np.isfinite(gradients).all()


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
    for function, array in learner.to_host(state.found).items():
        assert array.dtype.name == name, function


def test_created_arrays_have_the_dtype_of_the_parameters(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        state.found = [xp.zeros((2, 3)), xp.ones((2,)), xp.full((), 0.5), xp.eye(2), xp.arange(0.0, 1.0, 0.25)]
        state.integers = xp.arange(2, 8, 3)

    for dtype in backend.native.dtypes:
        learner = learner_of(backend.within(dtype))
        state = run(learner, body)
        arrays = learner.to_host(state.found)
        assert {array.dtype.name for array in arrays} == {dtype}
        assert [array.shape for array in arrays] == [(2, 3), (2,), (), (2, 2), (4,)]
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
    result = learner.to_host(run(learner, body, x=x, n=integers).found)
    assert result.dtype == backend.dtype
    backend.close(result, x * integers + integers)


# -- second derivatives --------------------------------------------------------------------------------------------

TWICE = [
    *("einsum ij,jk->ik", "einsum ii->i", "conv 1d groups, dilation, strides", "conv 1d depthwise"),
    *("conv 2d strides, same", "conv 2d dilation, strides", "conv 2d pairs", "conv 2d groups"),
    *("conv 2d depthwise, uneven strides", "avg_pool 1d padding above half", "avg_pool 2d same", "avg_pool 2d pairs"),
    *("max_pool 1d pairs", "max_pool 2d same", "max_pool 2d padding", "gelu", "gelu approximate", "silu"),
    *("layer_norm scale and offset", "layer_norm inner axis", "layer_norm outer axes"),
    *("logaddexp", "cumulative_sum from zero", "sort descending", "top_k", "segment_sum constant segments", "scan"),
    *("vmap in_axes", "linalg solve broadcast", "linalg slogdet", "linalg inv"),
]


@pytest.mark.parametrize("label", TWICE)
def test_second_gradients(any_plan: Subject, label: str) -> None:
    """The gradient of ``sum(direction * gradient)`` of weighted squares of what a function returns."""
    case = CASES[label]
    call, names = case.call, list(parts(case))
    directions = [
        np.cos(np.arange(array.size) + number).reshape(array.shape) for number, array in enumerate(case.arrays)
    ]
    values = {f"direction{number}": direction for number, direction in enumerate(directions)}
    direction_names = list(values)

    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        arrays = [getattr(state, name) for name in names]
        ways = [getattr(state, name) for name in direction_names]

        def squares(*values: Any) -> Any:
            return xp.sum(xp.reshape(call(xp, *values), (-1,)) ** 2 * state.weights)

        def slope(*values: Any) -> Any:
            gradients = learner.grad(squares)(*values)
            gradients = gradients if len(values) > 1 else (gradients,)
            return sum(xp.sum(direction * gradient) for direction, gradient in zip(ways, gradients, strict=True))

        second = learner.grad(slope)(*arrays)
        state.result = second if len(arrays) > 1 else (second,)

    learner = learner_of(any_plan)
    gradients = learner.to_host(run(learner, body, None, weights=_weights(case), **parts(case), **values).result)
    for number, gradient in enumerate(gradients):
        any_plan.close(gradient, _second_differences(case, number, directions), rtol=3e-5)


def _second_differences(case: Case, number: int, directions: list[Array], step: float = 3e-4) -> Array:
    weights = _weights(case)

    def slope(value: Array) -> Any:
        arrays = [value if other == number else array for other, array in enumerate(case.arrays)]
        ahead, behind = (
            np.sum(
                np.ravel(case.expected(*(x + move * way for x, way in zip(arrays, directions, strict=True)))) ** 2
                * weights
            )
            for move in (step, -step)
        )
        return (ahead - behind) / (2 * step)

    return oracle.finite_difference(slope, case.arrays[number], step)


# -- pools ---------------------------------------------------------------------------------------------------------

# window, strides, padding -> where the first of the equal values of each window are
TIES: dict[str, tuple[tuple[int, ...], Any, Any, Any, list[tuple[int, ...]]]] = {
    "1d": ((6,), 2, None, "valid", [(0,), (2,), (4,)]),
    "1d overlapping, padding": ((5,), 3, 2, 1, [(0,), (1,), (3,)]),
    "2d": ((4, 4), 2, None, "valid", [(0, 0), (0, 2), (2, 0), (2, 2)]),
    "2d same": ((4, 3), 3, 2, "same", [(0, 0), (0, 1), (2, 0), (2, 1)]),
    "2d pairs": ((3, 3), 2, 2, [(0, 1), (1, 0)], [(0, 0), (0, 1), (2, 0), (2, 1)]),
}


@pytest.mark.parametrize("label", TIES)
def test_of_equal_values_in_a_window_the_first_has_the_gradient(any_plan: Subject, label: str) -> None:
    space, window, strides, padding, firsts = TIES[label]

    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp

        def pooled(x: Any, weights: Any) -> Any:
            y = xp.max_pool(x, window, strides=strides, padding=padding)
            return xp.sum(xp.reshape(y, (-1,)) * weights)

        def picked(weights: Any) -> Any:
            return xp.sum(learner.grad(lambda x: pooled(x, weights))(state.xs) * state.numbers)

        state.first = learner.grad(lambda x: pooled(x, state.weights))(state.xs)
        state.second = learner.grad(picked)(state.weights)

    weights = np.arange(1.0, 1 + len(firsts))
    numbers = np.arange(float(np.prod(space))).reshape(1, *space, 1)
    expected = np.zeros((1, *space, 1))
    for place, weight in zip(firsts, weights, strict=True):
        expected[(0, *place, 0)] += weight
    learner = learner_of(any_plan)
    state = run(learner, body, None, xs=np.full((1, *space, 1), -0.5), weights=weights, numbers=numbers)
    np.testing.assert_array_equal(learner.to_host(state.first), expected)
    np.testing.assert_array_equal(learner.to_host(state.second), [numbers[(0, *place, 0)] for place in firsts])


# -- what does not fit ---------------------------------------------------------------------------------------------

LINE_OF_4, PLANE_OF_4 = (2, 7, 4), (2, 7, 6, 4)
UNFIT: dict[str, tuple[Callable[..., Any], str]] = {
    "rank": (
        lambda xp, zeros: xp.conv(zeros(7, 4), zeros(3, 4, 5)),
        r"conv takes an x \(batch, \*space, channels\) .* not one of shape \(7, 4\): xp\.expand_dims",
    ),
    "rank of a pool": (
        lambda xp, zeros: xp.max_pool(zeros(1, 2, 3, 4, 5), 2),
        r"max_pool takes an x .* not one of shape \(1, 2, 3, 4, 5\)",
    ),
    "rank of the kernel": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 3, 4, 5)),
        r"conv of an x of shape \(2, 7, 4\) takes a kernel .* with 3 axes, not one of shape \(3, 3, 4, 5\)",
    ),
    "channels": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 3, 5)),
        r"conv: x has 4 channels, but a kernel of shape \(3, 3, 5\) with groups=1 takes 3: kernel\.shape\[-2\]",
    ),
    "channels of groups": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 4, 6), groups=2),
        r"conv: x has 4 channels, but .* with groups=2 takes 8: ",
    ),
    "groups": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 2, 5), groups=2),
        r"conv: groups=2 is no number that divides the 5 output channels",
    ),
    "no groups": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 4, 5), groups=0),
        r"conv: groups=0 is no number",
    ),
    "padding word": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 4, 5), padding="full"),
        r"padding='full': write \"valid\", \"same\", an int from 0, or a list of 1 \(before, after\) pairs",
    ),
    "a pair alone": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 4, 5), padding=(1, 2)),
        r"padding=\(1, 2\): write .* a list of 1 \(before, after\)",
    ),
    "negative padding": (lambda xp, zeros: xp.avg_pool(zeros(*PLANE_OF_4), 2, padding=-1), r"padding=-1: write"),
    "strides": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(3, 4, 5), strides=(1, 1)),
        r"strides=\(1, 1\): write an int from 1, or a tuple of 1, one for each space axis",
    ),
    "dilation": (
        lambda xp, zeros: xp.conv(zeros(*PLANE_OF_4), zeros(3, 3, 4, 5), dilation=0),
        r"dilation=0: write an int from 1, or a tuple of 2",
    ),
    "window": (
        lambda xp, zeros: xp.max_pool(zeros(*PLANE_OF_4), (2, 2, 2)),
        r"window=\(2, 2, 2\): write an int from 1, or a tuple of 2",
    ),
    "large window": (
        lambda xp, zeros: xp.conv(zeros(*LINE_OF_4), zeros(4, 4, 5), dilation=3, padding=[(1, 1)]),
        r"conv: a window of extent \(10,\) does not fit in the space axes \(7,\) .*padding=\[\(1, 1\)\]: pad more",
    ),
    "large pool": (
        lambda xp, zeros: xp.avg_pool(zeros(*PLANE_OF_4), 7),
        r"avg_pool: a window of extent \(7, 7\) does not fit in the space axes \(7, 6\)",
    ),
    "empty windows": (
        lambda xp, zeros: xp.max_pool(zeros(*PLANE_OF_4), (3, 2), padding=2),
        r"max_pool: padding \(2, 2\) is not less than the window, 2",
    ),
}


@pytest.mark.parametrize("label", UNFIT)
def test_what_does_not_fit_is_refused(any_plan: Subject, label: str) -> None:
    """The error has the same text on every backend."""
    call, message = UNFIT[label]
    xp = learner_of(any_plan).xp
    with pytest.raises(ValueError, match=message):
        call(xp, lambda *shape: xp.zeros(shape))


# -- arrays from elsewhere -----------------------------------------------------------------------------------------


FLOATS: list[Any] = [np.float64(2), np.ones((2, 3), np.float16), np.ones(2), 2.0, [1.5, 2], [np.ones(2)] * 2, []]
INTEGERS: list[Any] = [3, [1, 2], ((1, 2), (3, 4)), np.arange(3), np.arange(3, dtype=np.uint8), np.int64(4)]
BOOLS: list[Any] = [True, [True, False], np.array([[False]])]


def test_arrays_from_elsewhere_get_the_dtype_of_the_parameters(any_plan: Subject) -> None:
    for dtype in any_plan.native.dtypes:
        learner = learner_of(any_plan.within(dtype))
        for value in FLOATS + INTEGERS + BOOLS:
            array = learner.to_host(learner.xp.asarray(value))
            assert array.dtype.kind == np.asarray(value).dtype.kind
            assert array.dtype.kind != "f" or array.dtype.name == dtype
            np.testing.assert_array_equal(array, value)


@pytest.mark.parametrize("name", ["float32", "int32", "bool"])
def test_arrays_from_elsewhere_in_a_dtype(any_plan: Subject, name: str) -> None:
    learner = learner_of(any_plan)
    xp = learner.xp
    for value in (1, 1.0, [1, 0], [1.0, 0.0], np.ones((2, 1)), np.arange(2), xp.ones((2, 2)), xp.arange(2)):
        array = learner.to_host(xp.asarray(value, dtype=getattr(xp, name)))
        assert array.dtype.name == name
        np.testing.assert_array_equal(array, learner.to_host(value))


def test_a_native_array_comes_back_as_it_is(any_plan: Subject) -> None:
    xp = learner_of(any_plan).xp
    for array in (xp.ones((2, 2)), xp.arange(3), xp.full((2,), True)):
        assert xp.asarray(array) is array


def test_arrays_of_another_framework(any_plan: Subject) -> None:
    class Foreign:
        def __array__(self, dtype: Any = None) -> Array:  # as torch has it, without copy
            return np.arange(3.0)

    learner = learner_of(any_plan)
    array = learner.to_host(learner.xp.asarray(Foreign()))
    assert array.dtype == any_plan.dtype
    np.testing.assert_array_equal(array, [0, 1, 2])


def test_a_list_of_native_arrays_is_refused(any_plan: Subject) -> None:
    """NumPy would take their values, and lose their gradients."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def total(x: Any) -> Any:
            with pytest.raises(TypeError, match=r"list that holds arrays of the backend: xp\.stack"):
                learner.xp.asarray([[x[0]], [x[1]]])
            return learner.xp.sum(x)

        learner.grad(total)(state.xs)

    run(learner_of(any_plan), body, xs=np.ones(2))


@pytest.mark.parametrize("value", ["text", None, ["a", "b"], {1: 2}, np.array([object()])])
def test_what_is_no_number_is_no_array(any_plan: Subject, value: Any) -> None:
    with pytest.raises(TypeError, match=r"asarray takes numbers, lists of numbers and arrays of them, not \w+ "):
        learner_of(any_plan).xp.asarray(value)


def test_a_large_integer_stays_what_it_is_or_is_refused(any_plan: Subject) -> None:
    learner = learner_of(any_plan)
    try:
        array = learner.xp.asarray([2**40, -1])
    except OverflowError:
        return
    np.testing.assert_array_equal(learner.to_host(array), [2**40, -1])


# -- functions of functions ----------------------------------------------------------------------------------------


def test_scan_and_vmap_without_a_learner(any_plan: Subject) -> None:
    """``lc.xp`` goes by the arrays in the trees."""
    learner = learner_of(any_plan)
    xs, start = learner.xp.asarray(np.arange(6.0).reshape(3, 2)), learner.xp.ones((2,))
    carry, ys = lc.xp.scan(lambda c, x: ({"sum": c["sum"] + x["x"]}, c["sum"]), {"sum": start}, {"x": xs})
    any_plan.close(learner.to_host(carry["sum"]), [7, 10])
    any_plan.close(learner.to_host(ys), [[1, 1], [1, 2], [3, 5]])
    mapped = lc.xp.vmap(lambda tree, y: tree["x"] * y, in_axes=(0, None))({"x": xs}, start)
    any_plan.close(learner.to_host(mapped), np.arange(6.0).reshape(3, 2))


def test_scan_takes_the_gradient_of_parameters(backend: Subject) -> None:
    """A model is called at each place, and its parameters have the gradients of all of them."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp

        def at_once() -> Any:
            return xp.sum(learner.model(xp.reshape(state.xs, (-1, 3))) ** 2)

        def along() -> Any:
            return xp.scan(lambda c, x: (c + xp.sum(learner.model(x) ** 2), ()), 0.0, state.xs)[0]

        state.pair = learner.gradient(at_once), learner.gradient(along)

    learner = learner_of(backend)
    expected, result = run(learner, body, xs=np.cos(np.arange(24.0)).reshape(4, 2, 3)).pair
    backend.close(backend.leaves(learner, result), backend.leaves(learner, expected))


def test_gradients_of_single_examples(backend: Subject) -> None:
    """``vmap`` of a gradient, inside an objective and outside."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        slopes = xp.vmap(learner.grad(lambda x: xp.sum(x**3)))

        def steep(x: Any) -> Any:
            return xp.sum(slopes(x) * state.weights)

        state.first, state.second = slopes(state.xs), learner.grad(steep)(state.xs)

    xs, weights = np.arange(6.0).reshape(3, 2) - 2, np.cos(np.arange(6.0)).reshape(3, 2)
    learner = learner_of(backend)
    state = run(learner, body, xs=xs, weights=weights)
    backend.close(learner.to_host(state.first), 3 * xs**2)
    backend.close(learner.to_host(state.second), 6 * xs * weights)


@pytest.mark.parametrize("name", ["scan", "vmap"])
def test_a_draw_within_is_refused(backend: Subject, name: str) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def noisy(x: Any) -> Any:
            return x + learner.random.normal(x.shape)

        if name == "vmap":
            learner.xp.vmap(noisy)(state.xs)
        else:
            learner.xp.scan(lambda c, x: (c, noisy(x)), 0.0, state.xs)

    with pytest.raises(lc.errors.TraceError, match=r"random was used inside .* one more axis"):
        run(learner_of(backend), body, xs=np.ones((2, 3)))


BAD: dict[str, tuple[Callable[..., Any], str]] = {
    "result": (
        lambda xp, x: xp.scan(lambda c, row: c, 0.0, x),
        r"scan: the function returned a \w+: return \(carry, y\)",
    ),
    "lengths": (
        lambda xp, x: xp.scan(lambda c, rows: (c, c), 0.0, (x, x[:1])),
        r"scan goes along one axis of arrays .* \(2, 3\), \(1, 3\)",
    ),
    "no arrays": (lambda xp, x: xp.scan(lambda c, rows: (c, c), 0.0, ()), r"at least 1, not no arrays"),
    "no axis": (lambda xp, x: xp.vmap(lambda row: row, None)(x), r"vmap: in_axes=None for 1 arguments: .*at least one"),
    "axes": (lambda xp, x: xp.vmap(lambda a, b: a, (0,))(x, x), r"vmap: in_axes=\(0,\) for 2 arguments"),
    "sum axis": (lambda xp, x: xp.cumulative_sum(x), r"cumulative_sum of an array with 2 axes needs axis="),
}


@pytest.mark.parametrize("label", BAD)
def test_what_cannot_be_gone_along(any_plan: Subject, label: str) -> None:
    call, message = BAD[label]
    xp = learner_of(any_plan).xp
    with pytest.raises(ValueError, match=message):
        call(xp, xp.ones((2, 3)))


def test_a_carry_stays_what_it_is(any_plan: Subject) -> None:
    xp = learner_of(any_plan).xp
    with pytest.raises((ValueError, TypeError), match=r"carry"):
        xp.scan(lambda c, x: (xp.concat([c, c]), x), xp.ones((1,)), xp.ones((3, 1)))
