"""The NumPy adapter: the functions of arrays, against finite differences."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from autograd.tracer import isbox

import loopcore as lc
import loopcore_numpy.namespace
import loopcore_numpy.random
from loopcore_numpy import Backend
from tests.numpy_adapter.calls import array, bound, close, diff, dot, gradient, linear, numeric, same, xp

DATA = np.random.default_rng(0)
A, B = DATA.normal(size=(2, 3)), DATA.normal(size=(2, 3))
POSITIVE = np.abs(A) + 0.5
ROWS = np.array([[2, 0, 1, 1], [0, 0, 2, 1]])
CUBE = DATA.normal(size=(2, 3, 4))


def slices(x: Any) -> Any:
    return x[:, 1:] * x[..., :2] + x[0, None, :2]


def operators(x: Any, y: Any) -> Any:
    return (1 - x) / y + x**2 @ y.T @ x - abs(-x)


# fmt: off
COMPARED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    # name: ours, NumPy's, arguments; every argument is differentiated
    "abs": (xp.abs, np.abs, (A,)),
    "exp": (xp.exp, np.exp, (A,)),
    "log": (xp.log, np.log, (POSITIVE,)),
    "log1p": (xp.log1p, np.log1p, (POSITIVE,)),
    "expm1": (xp.expm1, np.expm1, (A,)),
    "sqrt": (xp.sqrt, np.sqrt, (POSITIVE,)),
    "square": (xp.square, np.square, (A,)),
    "sign": (xp.sign, np.sign, (A,)),
    "tanh": (xp.tanh, np.tanh, (A,)),
    "sin": (xp.sin, np.sin, (A,)),
    "cos": (xp.cos, np.cos, (A,)),
    "maximum": (xp.maximum, np.maximum, (A, B)),
    "maximum broadcast": (xp.maximum, np.maximum, (A, B[:1])),
    "maximum number": (lambda x: xp.maximum(x, 0.1), lambda x: np.maximum(x, 0.1), (A,)),
    "minimum": (xp.minimum, np.minimum, (A, B)),
    "minimum broadcast": (xp.minimum, np.minimum, (A[:, :1], B)),
    "clip": (lambda x: xp.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), (A,)),
    "clip below": (lambda x: xp.clip(x, min=0.1), lambda x: np.clip(x, 0.1, None), (A,)),
    "clip arrays": (xp.clip, np.clip, (3 * A, -np.abs(B[:1]), np.abs(B))),
    "where": (lambda x, y: xp.where(x > y, x, y), lambda x, y: np.where(x > y, x, y), (A, B)),
    "where broadcast": (partial(xp.where, A > 0), partial(np.where, A > 0), (B[0], np.ones(()))),
    "sum": (xp.sum, np.sum, (A,)),
    "sum axis": (lambda x: xp.sum(x, axis=0), lambda x: np.sum(x, 0), (A,)),
    "sum keep": (lambda x: xp.sum(x, axis=(0, -1), keepdims=True), lambda x: np.sum(x, keepdims=True), (A,)),
    "mean": (xp.mean, np.mean, (A,)),
    "mean axis": (lambda x: xp.mean(x, axis=-1, keepdims=True), lambda x: np.mean(x, -1, keepdims=True), (A,)),
    "var": (xp.var, np.var, (A,)),
    "var axis": (lambda x: xp.var(x, axis=1, correction=1), lambda x: np.var(x, 1, ddof=1), (A,)),
    "max": (xp.max, np.max, (A,)),
    "max axis": (lambda x: xp.max(x, axis=1), lambda x: np.max(x, 1), (A,)),
    "max axes": (lambda x: xp.max(x, axis=(0, 1), keepdims=True), lambda x: np.max(x, keepdims=True), (A,)),
    "min": (xp.min, np.min, (A,)),
    "min axis": (lambda x: xp.min(x, axis=0, keepdims=True), lambda x: np.min(x, 0, keepdims=True), (A,)),
    "concat": (lambda x, y: xp.concat([x, y], axis=1), lambda x, y: np.concatenate([x, y], 1), (A, B)),
    "concat last": (lambda x, y: xp.concat([x, y], axis=-1), lambda x, y: np.concatenate([x, y], -1), (A, B)),
    "concat flat": (lambda x, y: xp.concat([x, y], axis=None), lambda x, y: np.concatenate([x, y], None), (A, B[0])),
    "stack": (lambda x, y: xp.stack([x, y]), lambda x, y: np.stack([x, y]), (A, B)),
    "stack last": (lambda x, y: xp.stack([x, y], axis=-1), lambda x, y: np.stack([x, y], -1), (A, B)),
    "reshape": (lambda x: xp.reshape(x, (3, -1)), lambda x: np.reshape(x, (3, -1)), (A,)),
    "permute_dims": (lambda x: xp.permute_dims(x, (2, 0, 1)), lambda x: np.transpose(x, (2, 0, 1)), (CUBE,)),
    "expand_dims": (lambda x: xp.expand_dims(x, axis=1), lambda x: np.expand_dims(x, 1), (A,)),
    "squeeze": (lambda x: xp.squeeze(x, axis=0), lambda x: np.squeeze(x, 0), (A[:1],)),
    "broadcast_to": (lambda x: xp.broadcast_to(x, (4, 2, 3)), lambda x: np.broadcast_to(x, (4, 2, 3)), (A[:1],)),
    "flip": (xp.flip, np.flip, (A,)),
    "flip axis": (lambda x: xp.flip(x, axis=1), lambda x: np.flip(x, 1), (A,)),
    "take": (lambda x: xp.take(x, ROWS[0]), lambda x: np.take(x, ROWS[0]), (A[0],)),
    "take axis": (lambda x: xp.take(x, ROWS, axis=1), lambda x: np.take(x, ROWS, 1), (A,)),
    "take last": (lambda x: xp.take(x, ROWS, axis=-1), lambda x: np.take(x, ROWS, -1), (A,)),
    "take one": (lambda x: xp.take(x, np.array(1), axis=-1), lambda x: np.take(x, 1, -1), (A,)),
    "take_along_axis": (partial(xp.take_along_axis, indices=ROWS), lambda x: np.take_along_axis(x, ROWS, 1), (A,)),
    "take_along_axis broadcast": (
        partial(xp.take_along_axis, indices=ROWS[:, :1] % 2, axis=0),
        lambda x: np.take_along_axis(x, ROWS[:, :1] % 2, 0), (A,),
    ),
    "matmul": (xp.matmul, np.matmul, (A, B.T.copy())),
    "matmul vector": (xp.matmul, np.matmul, (A, B[0])),
    "matmul vectors": (xp.matmul, np.matmul, (A[0], B[0])),
    "matmul batch": (xp.matmul, np.matmul, (CUBE, DATA.normal(size=(4, 2)))),
    "astype": (lambda x: xp.astype(x, np.float64) * x, lambda x: x * x, (A,)),
    "full": (lambda x: xp.full((2, 2), x), lambda x: np.full((2, 2), x), (np.ones(()),)),
    "norm": (xp.linalg.vector_norm, np.linalg.norm, (A,)),
    "norm axis": (
        lambda x: xp.linalg.vector_norm(x, axis=1, keepdims=True), partial(np.linalg.norm, axis=1, keepdims=True), (A,),
    ),
    "norm 1": (lambda x: xp.linalg.vector_norm(x, axis=0, ord=1), partial(np.linalg.norm, ord=1, axis=0), (A,)),
    "norm inf": (lambda x: xp.linalg.vector_norm(x, axis=1, ord=inf), partial(np.linalg.norm, ord=inf, axis=1), (A,)),
    "relu": (xp.relu, lambda x: np.maximum(x, 0), (A,)),
    "sigmoid": (xp.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (A,)),
    "softplus": (xp.softplus, lambda x: np.log(1 + np.exp(x)), (A,)),
    "softmax": (xp.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), (A,)),
    "softmax axis": (lambda x: xp.softmax(x, axis=0), lambda x: np.exp(x) / np.exp(x).sum(0), (A,)),
    "log_softmax": (xp.log_softmax, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), (A,)),
    "logsumexp": (xp.logsumexp, lambda x: np.log(np.exp(x).sum()), (A,)),
    "logsumexp axis": (
        lambda x: xp.logsumexp(x, axis=1, keepdims=True), lambda x: np.log(np.exp(x).sum(1, keepdims=True)), (A,),
    ),
    "slices": (slices, slices, (A,)),
    "operators": (operators, operators, (A, B)),
}
# fmt: on


@pytest.mark.parametrize("name", COMPARED)
def test_values_of_array_functions(name: str) -> None:
    ours, numpys, args = COMPARED[name]
    close(ours(*args), numpys(*args))
    assert np.shape(ours(*args)) == np.shape(numpys(*args))


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_of_array_functions(name: str) -> None:
    ours, numpys, args = COMPARED[name]
    weights = np.random.default_rng(1).normal(size=np.shape(numpys(*args)))
    found = linear().grad(lambda *xs: xp.sum(weights * ours(*xs)), [])(*args)
    for position, slope in enumerate(found if len(args) > 1 else (found,)):

        def one(x: Any, position: int = position) -> Any:
            return np.sum(weights * numpys(*args[:position], x, *args[position + 1 :]))

        np.testing.assert_allclose(slope, numeric(one, args[position]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", COMPARED)
def test_second_derivatives_of_array_functions(name: str) -> None:
    """Differentiate ``g . v`` where g is the gradient: the squared output keeps linear functions interesting."""
    ours, _, args = COMPARED[name]
    backend = linear()
    slope = backend.grad(lambda x: xp.sum(ours(x, *args[1:]) ** 2), [])
    along = np.random.default_rng(2).normal(size=args[0].shape)
    if name == "sign":
        return same(slope(args[0]), np.zeros((2, 3)))
    found = backend.grad(lambda x: xp.sum(along * slope(x)), [])(args[0])
    expected = numeric(lambda x: np.sum(along * slope(x)), args[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", COMPARED)
def test_array_functions_keep_float32(name: str) -> None:
    ours, _, args = COMPARED[name]
    small = [arg.astype(np.float32) for arg in args]
    found = linear().grad(lambda *xs: xp.sum(ours(*xs)), [])(*small)
    assert {g.dtype for g in (found if len(args) > 1 else (found,))} == {np.dtype(np.float32)}
    if name not in ("astype", "full", "operators"):  # two ask for float64; ** of autograd widens its derivative
        assert ours(*small).dtype == np.float32
        assert diff.elementwise_grad(lambda x: ours(x, *small[1:]))(small[0]).dtype == np.float32
    assert diff.elementwise_grad(lambda x: xp.astype(x, np.float64))(small[0]).dtype == np.float32


@pytest.mark.parametrize(
    ("fn", "x", "expected"),
    [
        (lambda x: xp.sum(xp.relu(x)), array(-1, 0, 2), array(0, 0, 1)),
        (lambda x: xp.sum(xp.abs(x)), array(-1, 0, 2), array(-1, 0, 1)),
        (lambda x: xp.sum(xp.maximum(x, 0.0)), array(-1, 0, 2), array(0, 0.5, 1)),
        (lambda x: xp.max(x), array(3, 1, 3), array(0.5, 0, 0.5)),
        (lambda x: xp.min(x), array(1, 1, 3), array(0.5, 0.5, 0)),
        (lambda x: xp.sum(xp.clip(x, -1, 1)), array(-2, -1, 0, 1, 2), array(0, 1, 1, 1, 0)),
        (lambda x: xp.linalg.vector_norm(x), array(0, 0), array(0, 0)),
        (
            lambda x: xp.sum(xp.linalg.vector_norm(xp.reshape(x, (2, 2)), axis=1)),
            array(0, 0, 3, 4),
            array(0, 0, 0.6, 0.8),
        ),
        (lambda x: xp.sum(xp.tanh(x)), array(-1e3, 0, 1e3), array(0, 1, 0)),
        (lambda x: xp.sum(xp.sigmoid(x)), array(-1e3, 0, 1e3), array(0, 0.25, 0)),
        (lambda x: xp.sum(xp.softplus(x)), array(-1e3, 0, 1e3), array(0, 0.5, 1)),
        (lambda x: xp.logsumexp(x), array(-inf, 0, 0), array(0, 0.5, 0.5)),
        (lambda x: xp.logsumexp(x), array(1e4, 1e4), array(0.5, 0.5)),
        (lambda x: xp.sum(xp.softmax(x)[0]), array(1e4, 1e4), array(0.25, -0.25)),
        (lambda x: xp.sum(xp.where(x > 0, x, 0.0)), array(-1, 2), array(0, 1)),
    ],
)
def test_gradients_at_corners(fn: Callable[[Any], Any], x: Any, expected: Any) -> None:
    close(linear().grad(fn, [])(x), expected)


def test_second_derivative_of_the_norm_at_zero_is_zero() -> None:
    backend = linear()
    slope = backend.grad(lambda x: xp.linalg.vector_norm(x), [])
    close(backend.grad(lambda x: xp.sum(slope(x)), [])(array(0, 0)), array(0, 0))


def test_values_at_corners() -> None:
    close(xp.sigmoid(array(-800, -40, 800)), array(0, np.exp(-40.0), 1))
    close(xp.softplus(array(-800, 800)), array(0, 800))
    close(xp.logsumexp(array(1e4, 1e4)), 1e4 + np.log(2))
    with np.errstate(divide="ignore"):
        assert xp.logsumexp(array(-inf, -inf)) == -inf
    same(xp.relu(array(nan, -1)), array(nan, 0))
    same(xp.clip(array(nan, 5), 0, 1), array(nan, 1))
    with pytest.raises(ValueError, match="orders 1, 2 and inf"):
        xp.linalg.vector_norm(array(1.0), ord=3)
    with pytest.raises(ValueError, match="needs an axis"):
        xp.take(A, np.array([0]))


def test_functions_without_a_gradient_answer_plain_inside_an_objective() -> None:
    backend, seen = linear((2.0, -1.0)), dict[str, Any]()

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.update(
            argmax=xp.argmax(w), argmin=xp.argmin(w, axis=0), any=xp.any(w > 0), all=xp.all(w > 0),
            finite=xp.isfinite(w), int=xp.astype(w, xp.int32), zeros=xp.zeros_like(w), ones=xp.ones_like(w),
            full=xp.full_like(w, 3), hot=xp.one_hot(xp.argmax(w), 2),
        )  # fmt: skip
        return xp.sum(w)

    gradient(backend, objective)
    assert not any(map(isbox, seen.values()))
    assert (seen["argmax"], seen["argmin"], seen["any"], seen["all"]) == (0, 1, True, False)
    for name, expected in {"int": [2, -1], "zeros": [0, 0], "ones": [1, 1], "full": [3, 3], "hot": [1, 0]}.items():
        same(seen[name], expected)


def test_creation_is_in_the_parameters_dtype() -> None:
    backend = bound((dot, {"w": np.ones(2, np.float32)}))
    made = [
        backend.xp.zeros((2,)), backend.xp.ones(3), backend.xp.full((2,), 1.0), backend.xp.eye(2),
        backend.xp.arange(0.0, 1.0, 0.5), backend.xp.one_hot(np.array([1]), 2), backend.xp.mean(np.arange(2)),
        backend.xp.var(np.arange(3)), backend.xp.full((), 2.0),
    ]  # fmt: skip
    assert {array.dtype for array in made} == {np.dtype(np.float32)}
    assert made[6] == 0.5
    same(backend.xp.eye(2, 3, 1), np.eye(2, 3, 1))
    assert xp.zeros(1).dtype == np.float64
    assert xp.arange(3).dtype == np.int64 and list(xp.arange(1, 7, 2)) == [1, 3, 5]
    assert xp.zeros(2, dtype=xp.int32).dtype == np.int32 and xp.zeros_like(np.ones(1, np.float16)).dtype == np.float16
    assert xp.full((2,), 1, dtype=xp.bool).dtype == np.bool_ == xp.full((2,), True).dtype
    assert backend.xp.full((2,), 1).dtype == np.int64
    assert xp.full_like(np.arange(2), 3).dtype == np.int64
    same(xp.one_hot(np.array([[2, 0]], np.uint8), 3), [[[0, 0, 1], [1, 0, 0]]])
    assert xp.sum(np.ones(2), dtype=xp.float32).dtype == np.float32


def test_xp_is_exactly_the_portable_list() -> None:
    # fmt: off
    listed = {
        "abs", "exp", "log", "log1p", "expm1", "sqrt", "square", "sign", "tanh", "sin", "cos", "maximum", "minimum",
        "clip", "where", "sum", "mean", "var", "max", "min", "any", "all", "argmax", "argmin", "concat", "stack",
        "reshape", "permute_dims", "expand_dims", "squeeze", "broadcast_to", "flip", "take", "take_along_axis",
        "matmul", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange", "eye", "astype",
        "isfinite", "float32", "int32", "int64", "bool", "linalg", "relu", "sigmoid", "softplus", "softmax",
        "log_softmax", "logsumexp", "one_hot", "einsum", "conv", "avg_pool", "max_pool", "gelu", "silu", "layer_norm",
        "asarray", "matrix_transpose", "logaddexp", "cumulative_sum", "sort", "argsort", "top_k", "segment_sum", "scan",
        "vmap",
    }
    # fmt: on
    assert set(dir(xp)) == listed == set(dir(Backend().xp)) == set(dir(lc.xp))
    assert not hasattr(xp, "convolve")
    with pytest.raises(AttributeError, match=r"xp has no 'convolve'.*matmul"):
        _ = xp.convolve


def test_doctests() -> None:
    for module in (loopcore_numpy.namespace, loopcore_numpy.random):
        failed, tried = doctest.testmod(module)
        assert tried > 0 and failed == 0
