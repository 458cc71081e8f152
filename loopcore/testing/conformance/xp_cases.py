"""One or more calls of every function of ``learner.xp``, with what NumPy makes of the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from loopcore.testing.conformance import xp_oracle
from loopcore.testing.conformance.problems import Array

_NAMES = (
    "abs exp log log1p expm1 sqrt square sign tanh sin cos maximum minimum clip where sum mean var max min any all "
    "argmax argmin concat stack reshape permute_dims expand_dims squeeze broadcast_to flip take take_along_axis matmul "
    "zeros zeros_like ones ones_like full full_like arange eye astype isfinite float32 int32 int64 bool linalg relu "
    "sigmoid softplus softmax log_softmax logsumexp one_hot einsum conv avg_pool max_pool gelu silu layer_norm asarray "
    "matrix_transpose logaddexp cumulative_sum sort argsort top_k segment_sum scan vmap"
)
NAMES = frozenset(_NAMES.split(" "))
DTYPES = frozenset({"float32", "int32", "int64", "bool"})

_draw = np.random.default_rng(7)
X, Y = _draw.normal(0, 1.5, (3, 4)), _draw.normal(0, 1.5, (3, 4))
POSITIVE = _draw.uniform(0.1, 3, (3, 4))
ROW, COLUMN = _draw.normal(size=4), _draw.normal(size=(3, 1))
CUBE = _draw.normal(size=(2, 3, 4))
MATRIX, BATCHED = _draw.normal(size=(4, 2)), _draw.normal(size=(2, 4, 3))
BITS = np.array([[True, False, True, True], [False] * 4, [True] * 4])
INTEGERS = np.array([[3, -1, 4, 1], [5, 9, -2, 6], [5, 3, 5, 8]])
INDICES, ALONG = np.array([2, 0, 2]), np.array([[1, 0, 1], [3, 3, 2], [0, 2, 0]])
LINE, LINE_KERNEL = _draw.normal(size=(2, 6, 4)), _draw.normal(size=(3, 4, 3))
LINE_GROUPS, LINE_DEEP = _draw.normal(size=(3, 2, 6)), _draw.normal(size=(2, 1, 8))
PLANE, PLANE_KERNEL = _draw.normal(size=(2, 5, 4, 2)), _draw.normal(size=(3, 2, 2, 3))
PLANE_DEEP, POINT_KERNEL = _draw.normal(size=(3, 2, 1, 4)), _draw.normal(size=(1, 1, 2, 3))
WIDE, WIDE_GROUPS = _draw.normal(size=(1, 4, 3, 4)), _draw.normal(size=(2, 2, 2, 6))
EQUALS = np.array([[2, 1, 2, 0], [1, 1, 3, 1], [0, 3, 0, 3]])
SEGMENTS = np.array([4, 0, 4])
SQUARE = _draw.normal(size=(3, 3)) + 3 * np.eye(3)
SQUARES = np.stack([SQUARE, SQUARE[::-1]])  # determinants of both signs
HUGE = np.array([[1e3, -1e3, 0.0], [80.0, -80.0, 700.0]])


class Case(NamedTuple):
    """A call and its oracle.

    Attributes:
        call: ``call(xp, *arrays)``.
        expected: the same of NumPy arrays.
        arrays: the arguments.
        smooth: whether its gradient is compared with finite differences.
    """

    call: Callable[..., Any]
    expected: Callable[..., Any]
    arrays: tuple[Array, ...]
    smooth: bool


CASES: dict[str, Case] = {}


def _case(label: str, call: Callable[..., Any], expected: Callable[..., Any], *arrays: Array) -> None:
    smooth = any(array.dtype.kind == "f" for array in arrays) and np.asarray(expected(*arrays)).dtype.kind == "f"
    CASES[label] = Case(call, expected, arrays, smooth)


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _logsumexp(x: Array, axis: Any, keepdims: bool = False) -> Array:
    top = x.max(axis=axis, keepdims=True)
    result = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return np.asarray(result if keepdims else np.squeeze(result, axis))


# -- elementwise

_case("abs", lambda xp, x: xp.abs(x), np.abs, X)
_case("abs integers", lambda xp, x: xp.abs(x), np.abs, INTEGERS)
_case("exp", lambda xp, x: xp.exp(x), np.exp, X)
_case("log", lambda xp, x: xp.log(x), np.log, POSITIVE)
_case("log1p", lambda xp, x: xp.log1p(x), np.log1p, POSITIVE)
_case("log1p small", lambda xp, x: xp.log1p(x * 1e-6), lambda x: np.log1p(x * 1e-6), POSITIVE)
_case("expm1", lambda xp, x: xp.expm1(x), np.expm1, X)
_case("sqrt", lambda xp, x: xp.sqrt(x), np.sqrt, POSITIVE)
_case("square", lambda xp, x: xp.square(x), np.square, X)
_case("sign", lambda xp, x: xp.sign(x), np.sign, X)
_case("tanh", lambda xp, x: xp.tanh(x), np.tanh, X)
_case("sin", lambda xp, x: xp.sin(x), np.sin, X)
_case("cos", lambda xp, x: xp.cos(x), np.cos, X)
_case("relu", lambda xp, x: xp.relu(x), lambda x: np.maximum(x, 0), X)
_case("sigmoid", lambda xp, x: xp.sigmoid(x), _sigmoid, X)
_case("sigmoid huge", lambda xp, x: xp.sigmoid(x), _sigmoid, HUGE)
_case("softplus", lambda xp, x: xp.softplus(x), lambda x: np.logaddexp(0, x), X)
_case("softplus huge", lambda xp, x: xp.softplus(x), lambda x: np.logaddexp(0, x), HUGE)
_case("maximum", lambda xp, x, y: xp.maximum(x, y), np.maximum, X, Y)
_case("maximum broadcast", lambda xp, x, y: xp.maximum(x, y), np.maximum, X, ROW)
_case("maximum number", lambda xp, x: xp.maximum(x, 0.5), lambda x: np.maximum(x, 0.5), X)
_case("minimum", lambda xp, x, y: xp.minimum(x, y), np.minimum, X, Y)
_case("minimum number", lambda xp, x: xp.minimum(x, 0.5), lambda x: np.minimum(x, 0.5), X)
_case("clip", lambda xp, x: xp.clip(x, -0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7), X)
_case("clip below", lambda xp, x: xp.clip(x, min=-0.5), lambda x: np.clip(x, -0.5, None), X)
_case("clip above", lambda xp, x: xp.clip(x, max=0.5), lambda x: np.clip(x, None, 0.5), X)
_case("where", lambda xp, c, x, y: xp.where(c, x, y), np.where, BITS, X, Y)
_case("where broadcast", lambda xp, c, x, y: xp.where(c, x, y), np.where, BITS, ROW, COLUMN)
_case("where number", lambda xp, x: xp.where(True, x, 0.0), lambda x: x, X)
_case("where numbers", lambda xp, x: xp.where(False, 5.0, 0.5) * x, lambda x: 0.5 * x, X)
_case("logaddexp", lambda xp, x, y: xp.logaddexp(x, y), np.logaddexp, X, Y)
_case("logaddexp equal, broadcast", lambda xp, x, y: xp.logaddexp(x, y), np.logaddexp, X[:1], X)
_case("logaddexp huge", lambda xp, x, y: xp.logaddexp(x, y), np.logaddexp, HUGE, -HUGE)
_case("isfinite", lambda xp, x: xp.isfinite(x), np.isfinite, np.array([1.0, np.nan, np.inf, -np.inf]))

# -- along axes

_case("sum", lambda xp, x: xp.sum(x), np.sum, CUBE)
_case("sum axis", lambda xp, x: xp.sum(x, axis=1), lambda x: x.sum(axis=1), CUBE)
_case("sum axes", lambda xp, x: xp.sum(x, axis=(0, -1)), lambda x: x.sum(axis=(0, -1)), CUBE)
_case("sum keepdims", lambda xp, x: xp.sum(x, axis=-1, keepdims=True), lambda x: x.sum(axis=-1, keepdims=True), CUBE)
_case("sum integers", lambda xp, x: xp.sum(x, axis=0), lambda x: x.sum(axis=0), INTEGERS)
_case("mean", lambda xp, x: xp.mean(x), np.mean, CUBE)
_case("mean axes", lambda xp, x: xp.mean(x, axis=(0, 2)), lambda x: x.mean(axis=(0, 2)), CUBE)
_case("mean keepdims", lambda xp, x: xp.mean(x, axis=1, keepdims=True), lambda x: x.mean(axis=1, keepdims=True), CUBE)
_case("var", lambda xp, x: xp.var(x), np.var, CUBE)
_case("var axis", lambda xp, x: xp.var(x, axis=0, keepdims=True), lambda x: x.var(axis=0, keepdims=True), CUBE)
_case("var correction", lambda xp, x: xp.var(x, axis=-1, correction=1), lambda x: x.var(axis=-1, ddof=1), CUBE)
_case("max", lambda xp, x: xp.max(x), np.max, CUBE)
_case("max axis", lambda xp, x: xp.max(x, axis=1), lambda x: x.max(axis=1), CUBE)
_case("max keepdims", lambda xp, x: xp.max(x, axis=-1, keepdims=True), lambda x: x.max(axis=-1, keepdims=True), CUBE)
_case("max axes", lambda xp, x: xp.max(x, axis=(0, 2)), lambda x: x.max(axis=(0, 2)), CUBE)
_case("min", lambda xp, x: xp.min(x), np.min, CUBE)
_case("min axis", lambda xp, x: xp.min(x, axis=0), lambda x: x.min(axis=0), CUBE)
_case("any", lambda xp, x: xp.any(x), np.any, BITS)
_case("any axis", lambda xp, x: xp.any(x, axis=1), lambda x: x.any(axis=1), BITS)
_case("all", lambda xp, x: xp.all(x), np.all, BITS)
_case("all keepdims", lambda xp, x: xp.all(x, axis=1, keepdims=True), lambda x: x.all(axis=1, keepdims=True), BITS)
_case("argmax", lambda xp, x: xp.argmax(x), np.argmax, X)
_case("argmax axis", lambda xp, x: xp.argmax(x, axis=-1), lambda x: x.argmax(axis=-1), CUBE)
_case("argmin axis", lambda xp, x: xp.argmin(x, axis=0), lambda x: x.argmin(axis=0), CUBE)
_case("softmax", lambda xp, x: xp.softmax(x), lambda x: np.exp(x - _logsumexp(x, -1, True)), X)
_case("softmax axis", lambda xp, x: xp.softmax(x, axis=0), lambda x: np.exp(x - _logsumexp(x, 0, True)), X)
_case("softmax huge", lambda xp, x: xp.softmax(x, axis=-1), lambda x: np.exp(x - _logsumexp(x, -1, True)), HUGE)
_case("log_softmax", lambda xp, x: xp.log_softmax(x, axis=-1), lambda x: x - _logsumexp(x, -1, True), X)
_case("log_softmax huge", lambda xp, x: xp.log_softmax(x, axis=-1), lambda x: x - _logsumexp(x, -1, True), HUGE)
_case("logsumexp", lambda xp, x: xp.logsumexp(x, axis=1), lambda x: _logsumexp(x, 1), CUBE)
_case("logsumexp all", lambda xp, x: xp.logsumexp(x), lambda x: _logsumexp(x, (0, 1, 2)), CUBE)
_case("logsumexp huge", lambda xp, x: xp.logsumexp(x, axis=-1), lambda x: _logsumexp(x, -1), HUGE)
_case("linalg vector_norm", lambda xp, x: xp.linalg.vector_norm(x), lambda x: np.sqrt((x**2).sum()), X)
_case(
    "linalg vector_norm axis",
    lambda xp, x: xp.linalg.vector_norm(x, axis=-1, keepdims=True),
    lambda x: np.sqrt((x**2).sum(axis=-1, keepdims=True)),
    X,
)
_case("matmul", lambda xp, x, y: xp.matmul(x, y), np.matmul, X, MATRIX)
_case("matmul batched", lambda xp, x, y: xp.matmul(x, y), np.matmul, CUBE, BATCHED)
_case("matmul vector", lambda xp, x, y: xp.matmul(x, y), np.matmul, X, ROW)
_case("matmul broadcast", lambda xp, x, y: xp.matmul(x, y), np.matmul, CUBE, MATRIX)

# -- shapes and indices

_case("concat", lambda xp, x, y: xp.concat([x, y]), lambda x, y: np.concatenate([x, y]), X, Y)
_case("concat axis", lambda xp, x, y: xp.concat((x, y), axis=-1), lambda x, y: np.concatenate([x, y], -1), X, COLUMN)
_case("stack", lambda xp, x, y: xp.stack([x, y]), lambda x, y: np.stack([x, y]), X, Y)
_case("stack axis", lambda xp, x, y: xp.stack((x, y), axis=-1), lambda x, y: np.stack([x, y], -1), X, Y)
_case("reshape", lambda xp, x: xp.reshape(x, (4, -1)), lambda x: x.reshape(4, -1), CUBE)
_case("reshape flat", lambda xp, x: xp.reshape(x, (-1,)), lambda x: x.reshape(-1), CUBE)
_case("permute_dims", lambda xp, x: xp.permute_dims(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), CUBE)
_case("expand_dims", lambda xp, x: xp.expand_dims(x, axis=-1), lambda x: x[..., None], X)
_case("expand_dims first", lambda xp, x: xp.expand_dims(x, axis=0), lambda x: x[None], X)
_case("squeeze", lambda xp, x: xp.squeeze(x, axis=1), lambda x: x[:, 0], COLUMN)
_case("broadcast_to", lambda xp, x: xp.broadcast_to(x, (3, 4)), lambda x: np.broadcast_to(x, (3, 4)), COLUMN)
_case("broadcast_to more", lambda xp, x: xp.broadcast_to(x, (2, 3, 4)), lambda x: np.broadcast_to(x, (2, 3, 4)), ROW)
_case("flip", lambda xp, x: xp.flip(x, axis=-1), lambda x: x[..., ::-1], CUBE)
_case("flip all", lambda xp, x: xp.flip(x), np.flip, CUBE)
_case("take", lambda xp, x, i: xp.take(x, i, axis=0), lambda x, i: x[i.astype(int)], X, INDICES)
_case("take columns", lambda xp, x, i: xp.take(x, i, axis=1), lambda x, i: x[:, i.astype(int)], X, INDICES)
_case(
    "take_along_axis",
    lambda xp, x, i: xp.take_along_axis(x, i, axis=1),
    lambda x, i: np.take_along_axis(x, i.astype(int), axis=1),
    X,
    ALONG,
)
_case("take at one place", lambda xp, x: xp.take(x, xp.asarray(1), axis=0), lambda x: x[1], X)
_case("one_hot", lambda xp, i: xp.one_hot(i, 4), lambda i: np.eye(4)[i], ALONG)

# -- creation

_case("zeros", lambda xp, x: xp.zeros((2, 3)) + x[0, 0], lambda x: np.zeros((2, 3)) + x[0, 0], X)
_case("ones", lambda xp, x: xp.ones((2, 3)) * x[0, 0], lambda x: np.ones((2, 3)) * x[0, 0], X)
_case("full", lambda xp, x: xp.full((2, 3), 2.5) * x[0, 0], lambda x: np.full((2, 3), 2.5) * x[0, 0], X)
_case("full of integers", lambda xp, x: xp.full((2, 3), 2), lambda x: np.full((2, 3), 2), X)
_case("full of bools", lambda xp, x: xp.full((2, 3), True), lambda x: np.full((2, 3), True), X)
_case("zeros_like", lambda xp, x: xp.zeros_like(x) + x, lambda x: x, X)
_case("ones_like", lambda xp, x: xp.ones_like(x) + x, lambda x: 1 + x, X)
_case("full_like", lambda xp, x: xp.full_like(x, 2.5) * x, lambda x: 2.5 * x, X)
_case("zeros_like integers", lambda xp, x: xp.zeros_like(x), np.zeros_like, INTEGERS)
_case("eye", lambda xp, x: xp.eye(3) @ x, lambda x: x, X)
_case("eye more", lambda xp, x: xp.eye(3, 4, k=1) * x, lambda x: np.eye(3, 4, k=1) * x, X)
_case("arange", lambda xp, x: xp.arange(4, dtype=x.dtype) + xp.zeros_like(x[0]), lambda x: np.arange(4), INTEGERS)
_case("arange floats", lambda xp, x: xp.arange(0.0, 2.0, 0.5) + x, lambda x: np.arange(0.0, 2.0, 0.5) + x, ROW)
_case("astype", lambda xp, x: xp.astype(x, xp.int32), lambda x: x.astype(np.int32), X)
_case("astype bool", lambda xp, x: xp.astype(x, xp.bool), lambda x: x.astype(bool), INTEGERS)
_case("astype gradient", lambda xp, x: xp.astype(x, x.dtype) * 2.0, lambda x: x * 2, X)

_case("asarray", lambda xp, x: xp.asarray(np.arange(4.0)) * x, lambda x: np.arange(4) * x, X)
_case(
    "asarray float32", lambda xp, x: xp.asarray(np.arange(1, 5, dtype=np.float32)) * x, lambda x: np.arange(1, 5) * x, X
)
_case("asarray list", lambda xp, x: xp.asarray([[0.5], [1.5], [-2.0]]) * x, lambda x: [[0.5], [1.5], [-2]] * x, X)
_case("asarray number", lambda xp, x: xp.asarray(0.5) * x, lambda x: 0.5 * x, X)
_case("asarray native", lambda xp, x: xp.asarray(x) * x, np.square, X)
_case("asarray native in a dtype", lambda xp, x: xp.asarray(x, dtype=x.dtype) * x, np.square, X)
_case("asarray integers", lambda xp, x: xp.asarray([2, 3]), lambda x: np.array([2, 3]), INTEGERS)
_case("asarray array of integers", lambda xp, x: xp.asarray(np.arange(5)), lambda x: np.arange(5), INTEGERS)
_case("asarray native integers", lambda xp, x: xp.asarray(x), lambda x: x, INTEGERS)
_case("asarray bools", lambda xp, x: xp.asarray(np.array([True, False])), lambda x: np.array([True, False]), INTEGERS)

# -- networks


def _conv(
    label: str,
    x: Array,
    kernel: Array,
    strides: Any = 1,
    pads: Any = None,
    dilation: Any = 1,
    groups: int = 1,
    **spelled: Any,
) -> None:
    """``spelled`` is what `xp.conv` gets, where that is not ``pads``."""
    axes = x.ndim - 2
    options = {"strides": strides, "padding": pads or "valid", "dilation": dilation, "groups": groups, **spelled}
    per_axis = [(n,) * axes if isinstance(n, int) else n for n in (strides, dilation)]
    _case(
        f"conv {label}",
        lambda xp, x, kernel: xp.conv(x, kernel, **options),
        lambda x, kernel: xp_oracle.conv(x, kernel, per_axis[0], pads or [(0, 0)] * axes, per_axis[1], groups),
        x,
        kernel,
    )


_conv("1d", LINE, LINE_KERNEL)
_conv("1d strides", LINE, LINE_KERNEL, 2)
_conv("1d same, odd padding", LINE, LINE_KERNEL, 2, [(0, 1)], padding="same")
_conv("1d same, even padding", LINE[:, 1:], LINE_KERNEL, 2, [(1, 1)], padding="SAME")
_conv("1d same, strides above the window", LINE, LINE_KERNEL[:1], 4, [(0, 0)], padding="same")
_conv("1d padding", LINE, LINE_KERNEL, 1, [(2, 2)], padding=2)
_conv("1d pairs", LINE, LINE_KERNEL, 2, [(1, 3)])
_conv("1d dilation", LINE, LINE_KERNEL, 1, None, 2)
_conv("1d dilation same", LINE, LINE_KERNEL, 1, [(2, 2)], 2, padding="same")
_conv("1d dilation, strides, same", LINE, LINE_KERNEL, 2, [(1, 2)], 2, padding="same")
_conv("1d groups", LINE, LINE_GROUPS, 1, [(1, 1)], groups=2)
_conv("1d groups, dilation, strides", LINE, LINE_GROUPS, 2, [(1, 0)], 2, groups=2)
_conv("1d depthwise", LINE, LINE_DEEP, 2, None, 1, 4)
_conv("1d depthwise dilation same", LINE, LINE_DEEP, 1, [(1, 1)], 2, 4, padding="same")
_conv("2d", PLANE, PLANE_KERNEL)
_conv("2d point", PLANE, POINT_KERNEL)
_conv("2d strides, same", PLANE, PLANE_KERNEL, (2, 1), [(1, 1), (0, 1)], padding="same")
_conv("2d padding", PLANE, PLANE_KERNEL, 2, [(1, 1), (1, 1)], padding=1)
_conv("2d padding per axis", PLANE, PLANE_KERNEL, 1, [(2, 2), (0, 0)], padding=(2, 0))
_conv("2d pairs", PLANE, PLANE_KERNEL, (1, 3), [(1, 2), (0, 3)])
_conv("2d dilation", PLANE, PLANE_KERNEL, 1, None, (2, 3))
_conv("2d dilation, strides", PLANE, PLANE_KERNEL, (2, 1), [(2, 2), (0, 1)], (2, 1), padding="same")
_conv("2d groups", WIDE, WIDE_GROUPS, (2, 1), [(0, 0), (0, 1)], groups=2, padding="same")
_conv("2d groups, dilation", WIDE, WIDE_GROUPS, 1, [(1, 1), (1, 0)], 2, 2)
_conv("2d depthwise", PLANE, PLANE_DEEP, 2, [(1, 1), (0, 0)], groups=2, padding="same")
_conv("2d depthwise, uneven strides", PLANE, PLANE_DEEP, (1, 2), [(1, 1), (0, 0)], groups=2, padding="same")


def _pools(label: str, x: Array, window: Any, strides: Any = None, pads: Any = None, **spelled: Any) -> None:
    axes = x.ndim - 2
    options = {"strides": strides, "padding": pads or "valid", **spelled}
    sizes, steps = ((n,) * axes if isinstance(n, int) else n for n in (window, window if strides is None else strides))
    for name, reduce in (("avg_pool", np.nanmean), ("max_pool", np.nanmax)):
        _case(
            f"{name} {label}",
            lambda xp, x, name=name: getattr(xp, name)(x, window, **options),
            lambda x, reduce=reduce: xp_oracle.pool(reduce, x, sizes, steps, pads),
            x,
        )


_pools("1d", LINE, 2)
_pools("1d overlapping", LINE, 3, 1)
_pools("1d same", LINE, 3, 2, [(0, 1)], padding="same")
_pools("1d below zero", LINE - 9, 3, 2, [(1, 1)], padding=1)
_pools("1d padding above half", LINE - 9, 3, 2, [(2, 2)], padding=2)
_pools("1d pairs", LINE - 9, 3, 2, [(0, 2)])
_pools("2d", PLANE, 2)
_pools("2d overlapping", PLANE, (3, 2), 1)
_pools("2d same", PLANE - 9, (3, 2), (2, 1), [(1, 1), (0, 1)], padding="Same")
_pools("2d padding", PLANE - 9, 2, 2, [(1, 1), (1, 1)], padding=1)
_pools("2d padding per axis", PLANE - 9, (3, 2), 2, [(1, 1), (0, 0)], padding=(1, 0))
_pools("2d pairs", PLANE - 9, 3, (1, 2), [(1, 2), (0, 1)])

_case("gelu", lambda xp, x: xp.gelu(x), xp_oracle.gelu, X)
_case("gelu wide", lambda xp, x: xp.gelu(x * 4), lambda x: xp_oracle.gelu(x * 4), X)
_case("gelu approximate", lambda xp, x: xp.gelu(x, approximate=True), xp_oracle.gelu_by_tanh, X)
_case("gelu huge", lambda xp, x: xp.gelu(x), xp_oracle.gelu, HUGE)
_case("silu", lambda xp, x: xp.silu(x), lambda x: x * _sigmoid(x), X)
_case("silu huge", lambda xp, x: xp.silu(x), lambda x: x * _sigmoid(x), HUGE)


def _norm(label: str, x: Array, axis: Any, *affine: Array, epsilon: float = 1e-5) -> None:
    def expected(x: Array, *affine: Array) -> Array:
        scale = affine[0] if len(affine) > 0 else 1.0
        offset = affine[1] if len(affine) > 1 else 0.0
        return np.asarray(xp_oracle.layer_norm(x, axis, epsilon) * scale + offset)

    _case(
        f"layer_norm {label}",
        lambda xp, x, *affine: xp.layer_norm(x, *affine, axis=axis, epsilon=epsilon),
        expected,
        x,
        *affine,
    )


_norm("plain", X, -1)
_norm("scale", X, -1, ROW)
_norm("scale and offset", CUBE, -1, ROW, Y[0])
_norm("last axes", CUBE, (-1, 1), X, Y)
_norm("inner axis", CUBE, 1, COLUMN, COLUMN * 2)
_norm("outer axes", CUBE, (0, -1), COLUMN)
_norm("epsilon", X, 0, ROW, ROW, epsilon=0.5)
_case(
    "layer_norm offset only",
    lambda xp, x, y: xp.layer_norm(x, None, y),
    lambda x, y: xp_oracle.layer_norm(x, -1) + y,
    X,
    ROW,
)
_case(
    "layer_norm far from zero",
    lambda xp, x: xp.layer_norm(x + 64),
    lambda x: xp_oracle.layer_norm(x, -1),
    np.round(CUBE * 4) / 4,  # exact in float32, and so are its means
)


def _einsum(subscripts: str, *arrays: Array) -> None:
    _case(
        f"einsum {subscripts}",
        lambda xp, *operands: xp.einsum(subscripts, *operands),
        lambda *operands: np.einsum(subscripts, *operands),
        *arrays,
    )


_einsum("ij,jk->ik", X, MATRIX)
_einsum("ij,jk", X, MATRIX)
_einsum("bij , bjk -> bik", CUBE, BATCHED)
_einsum("...ij,jk->...ik", CUBE, MATRIX)
_einsum("ij,ij,j->i", X, Y, ROW)
_einsum("ij->", X)
_einsum("ij->ji", X)
_einsum("bij->j", CUBE)
_einsum("i,j->ij", ROW, COLUMN[:, 0])
_einsum("ii->i", X[:, :3])
_einsum("ii", X[:, :3])
_einsum("i...i,i", np.stack([X[:, :3], Y[:, :3]], axis=1), COLUMN[:, 0])
_einsum("ij,kj->ik", INTEGERS, INTEGERS)

# -- order and sequences


def _descending(x: Array, axis: int) -> Array:
    return np.argsort(-x, axis=axis, stable=True)


_case("matrix_transpose", lambda xp, x: xp.matrix_transpose(x), lambda x: x.swapaxes(-1, -2), CUBE)
_case("cumulative_sum", lambda xp, x: xp.cumulative_sum(x), np.cumsum, ROW)
_case("cumulative_sum axis", lambda xp, x: xp.cumulative_sum(x, axis=1), lambda x: x.cumsum(1), CUBE)
_case("cumulative_sum integers", lambda xp, x: xp.cumulative_sum(x, axis=-1), lambda x: x.cumsum(-1), INTEGERS)
_case("cumulative_sum bools", lambda xp, x: xp.cumulative_sum(x, axis=0), lambda x: x.cumsum(0), BITS)
_case(
    "cumulative_sum from zero",
    lambda xp, x: xp.cumulative_sum(x, axis=-2, include_initial=True),
    lambda x: np.concatenate([np.zeros((2, 1, 4)), x.cumsum(1)], 1),
    CUBE,
)
_case("sort", lambda xp, x: xp.sort(x), np.sort, X)
_case("sort axis", lambda xp, x: xp.sort(x, axis=1), lambda x: np.sort(x, 1), CUBE)
_case("sort descending", lambda xp, x: xp.sort(x, axis=0, descending=True), lambda x: -np.sort(-x, 0), CUBE)
_case("sort integers", lambda xp, x: xp.sort(x, axis=0), lambda x: np.sort(x, 0), INTEGERS)
_case("argsort", lambda xp, x: xp.argsort(x, axis=0), lambda x: np.argsort(x, 0), CUBE)
_case("argsort equal", lambda xp, x: xp.argsort(x), lambda x: np.argsort(x, stable=True), EQUALS)
_case("argsort descending", lambda xp, x: xp.argsort(x, descending=True), lambda x: _descending(x, -1), EQUALS)
_case("top_k", lambda xp, x: xp.top_k(x, 2)[0], lambda x: -np.sort(-x)[:, :2], X)
_case("top_k axis", lambda xp, x: xp.top_k(x, 1, axis=1)[0], lambda x: x.max(1, keepdims=True), CUBE)
_case("top_k indices", lambda xp, x: xp.top_k(x, 2, axis=0)[1], lambda x: _descending(x, 0)[:2], X)
_case("segment_sum", lambda xp, x, i: xp.segment_sum(x, i, 5), lambda x, i: xp_oracle.segment_sum(x, i, 5), X, SEGMENTS)
_case(
    "segment_sum constant segments",
    lambda xp, x: xp.segment_sum(x, xp.asarray([4, 0, 4]), num_segments=5),
    lambda x: xp_oracle.segment_sum(x, SEGMENTS, 5),
    X,
)
_case(
    "segment_sum of numbers",
    lambda xp, x, i: xp.segment_sum(x, i, 5),
    lambda x, i: xp_oracle.segment_sum(x, i, 5),
    INTEGERS[:, 0],
    SEGMENTS,
)
_case("linalg solve", lambda xp, a, b: xp.linalg.solve(a, b), np.linalg.solve, SQUARE, X)
_case("linalg solve vector", lambda xp, a, b: xp.linalg.solve(a, b), np.linalg.solve, SQUARE, X[:, 0])
_case("linalg solve batched", lambda xp, a, b: xp.linalg.solve(a, b), np.linalg.solve, SQUARES, CUBE)
_case("linalg solve broadcast", lambda xp, a, b: xp.linalg.solve(a, b), np.linalg.solve, SQUARES, X)
_case("linalg solve one for all", lambda xp, a, b: xp.linalg.solve(a, b), np.linalg.solve, SQUARE, CUBE)
_case("linalg slogdet", lambda xp, x: xp.linalg.slogdet(x)[1], lambda x: np.linalg.slogdet(x)[1], SQUARES)
_case(
    "linalg slogdet sign",
    lambda xp, x: xp.linalg.slogdet(x)[0] + 0 * x[:, 0, 0],
    lambda x: np.array([1.0, -1.0]),
    SQUARES,
)
_case("linalg inv", lambda xp, x: xp.linalg.inv(x), np.linalg.inv, SQUARES)


def _rnn(xp: Any, x: Any, weights: Any) -> Any:
    """States of a network that is fed the rows of ``x``, and the last one; it also counts the rows."""

    def step(carry: Any, row: Any) -> Any:
        state = xp.tanh(xp.matmul(carry["state"], weights) + row["x"])
        return {"state": state, "rows": carry["rows"] + 1}, (state, carry["rows"])

    last, (states, numbers) = xp.scan(step, {"state": x[0] * 0.5, "rows": 0}, {"x": x})
    return xp.concat(
        [states, xp.stack([last["state"]]), 0.0 * states[:1] + xp.astype(xp.sum(numbers) + last["rows"], x.dtype)]
    )


_case("scan", _rnn, xp_oracle.rnn, X, _draw.normal(size=(4, 4)))
_case("scan of numbers", lambda xp, x: xp.scan(lambda c, v: (c * v, c), 1.0, x)[0], np.prod, ROW)
_case("vmap", lambda xp, x: xp.vmap(lambda row: xp.sum(row) * row)(x), lambda x: x.sum(1, keepdims=True) * x, X)
_case(
    "vmap in_axes",
    lambda xp, x, y, z: xp.vmap(lambda a, b, c: xp.matmul(a["a"], b) + c, in_axes=(0, 1, None))({"a": x}, y, z),
    lambda x, y, z: np.einsum("nij,jn->ni", x, y) + z,
    CUBE,
    X.T[:, :2],
    COLUMN[:, 0],
)
_case(
    "vmap of several",
    lambda xp, x: xp.sum(xp.vmap(lambda row: (row, [xp.max(row)]))(x)[1][0] * xp.asarray([1.0, 2.0, 3.0])),
    lambda x: x.max(1) @ [1.0, 2.0, 3.0],
    X,
)

# -- operators: what else is portable on arrays, spelled as in NumPy


def _operators(label: str, fn: Callable[..., Any], *arrays: Array) -> None:
    _case(f"operators {label}", lambda xp, *operands: fn(*operands), fn, *arrays)


_operators("arithmetic", lambda x, y: (x + y) * x - y / (x**2 + 1.0), X, Y)
_operators("numbers", lambda x: 1.0 - 2 * x + (-x) / 3 + 4 / (x * x + 1), X)
_operators("broadcast", lambda x, y: x * y + y, X, COLUMN)
_operators("matmul", lambda x, y: x @ y, X, MATRIX)
_operators("power", lambda x: x**3 + x**0.5, POSITIVE)
_operators("compare", lambda x, y: (x > y) & ~(x <= 0) | (x == y), X, Y)
_operators("slices", lambda x: x[:, 1:3] * x[..., ::2] + x[0, -1], X)
_operators("integers", lambda x: x * 2 + 1 - x, INTEGERS)
