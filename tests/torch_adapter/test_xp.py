"""The PyTorch adapter: the functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loopcore_torch import Backend
from tests.torch_adapter.calls import (
    assert_close,
    bound,
    seeded,  # noqa: F401, used by all tests here
)

NAMES = [
    "abs",
    "exp",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "square",
    "sign",
    "tanh",
    "sin",
    "cos",
    "maximum",
    "minimum",
    "clip",
    "where",
    "sum",
    "mean",
    "var",
    "max",
    "min",
    "any",
    "all",
    "argmax",
    "argmin",
    "concat",
    "stack",
    "reshape",
    "permute_dims",
    "expand_dims",
    "squeeze",
    "broadcast_to",
    "flip",
    "take",
    "take_along_axis",
    "matmul",
    "zeros",
    "ones",
    "full",
    "zeros_like",
    "ones_like",
    "full_like",
    "arange",
    "eye",
    "astype",
    "isfinite",
    "float32",
    "int32",
    "int64",
    "bool",
    "linalg",
    "relu",
    "sigmoid",
    "softplus",
    "softmax",
    "log_softmax",
    "logsumexp",
    "one_hot",
    *("einsum", "conv", "avg_pool", "max_pool", "gelu", "silu", "layer_norm", "asarray"),
    *("matrix_transpose", "logaddexp", "cumulative_sum", "sort", "argsort", "top_k", "segment_sum", "scan", "vmap"),
]


def test_xp_has_exactly_the_promised_names() -> None:
    xp = Backend.xp
    found = {name for name in dir(xp) if not name.startswith("_")} - {"device", "dtype"}
    assert found == set(NAMES)
    assert [name for name in dir(xp.linalg) if not name.startswith("_")] == ["inv", "slogdet", "solve", "vector_norm"]


X = np.random.default_rng(0).uniform(0.2, 2.0, (3, 4))
I = np.array([[2, 0, 1, 1], [0, 0, 2, 1]])  # noqa: E741
SHIFTED = X - 1.0
CASES: list[tuple[str, Callable[[Any, Any], Any], Any]] = [
    ("abs", lambda xp, x: xp.abs(x - 1), np.abs(SHIFTED)),
    ("exp", lambda xp, x: xp.exp(x), np.exp(X)),
    ("log", lambda xp, x: xp.log(x), np.log(X)),
    ("log1p", lambda xp, x: xp.log1p(x), np.log1p(X)),
    ("expm1", lambda xp, x: xp.expm1(x), np.expm1(X)),
    ("sqrt", lambda xp, x: xp.sqrt(x), np.sqrt(X)),
    ("square", lambda xp, x: xp.square(x), np.square(X)),
    ("sign", lambda xp, x: xp.sign(x - 1), np.sign(SHIFTED)),
    ("tanh", lambda xp, x: xp.tanh(x), np.tanh(X)),
    ("sin", lambda xp, x: xp.sin(x), np.sin(X)),
    ("cos", lambda xp, x: xp.cos(x), np.cos(X)),
    ("maximum", lambda xp, x: xp.maximum(x, 1.0), np.maximum(X, 1)),
    ("maximum left", lambda xp, x: xp.maximum(1, x), np.maximum(X, 1)),
    ("minimum", lambda xp, x: xp.minimum(x, xp.square(x)), np.minimum(X, X**2)),
    ("clip", lambda xp, x: xp.clip(x, 0.5, 1.5), np.clip(X, 0.5, 1.5)),
    ("clip low", lambda xp, x: xp.clip(x, min=0.5), np.clip(X, 0.5, None)),
    ("clip arrays", lambda xp, x: xp.clip(x, x * 0 + 0.5, 1.5), np.clip(X, 0.5, 1.5)),
    ("clip nothing", lambda xp, x: xp.clip(x), X),
    ("where", lambda xp, x: xp.where(x > 1, x, 0.0), np.where(X > 1, X, 0)),
    ("sum", lambda xp, x: xp.sum(x), X.sum()),
    ("sum axis", lambda xp, x: xp.sum(x, axis=-1, keepdims=True), X.sum(-1, keepdims=True)),
    ("sum axes", lambda xp, x: xp.sum(x, axis=(0, 1), keepdims=True), X.sum((0, 1), keepdims=True)),
    ("mean", lambda xp, x: xp.mean(x, axis=0), X.mean(0)),
    ("mean all", lambda xp, x: xp.mean(x, keepdims=True), X.mean(keepdims=True)),
    ("var", lambda xp, x: xp.var(x, axis=1), X.var(1)),
    ("var correction", lambda xp, x: xp.var(x, correction=1), X.var(ddof=1)),
    ("max", lambda xp, x: xp.max(x, axis=1), X.max(1)),
    ("max all", lambda xp, x: xp.max(x), X.max()),
    ("min", lambda xp, x: xp.min(x, axis=(0, 1)), X.min()),
    ("concat", lambda xp, x: xp.concat([x, x * 2], axis=1), np.concatenate([X, X * 2], 1)),
    ("concat flat", lambda xp, x: xp.concat([x, x[0]], axis=None), np.concatenate([X, X[0]], None)),
    ("stack", lambda xp, x: xp.stack([x, x * 2], axis=-1), np.stack([X, X * 2], -1)),
    ("reshape", lambda xp, x: xp.reshape(x, (2, -1)), X.reshape(2, -1)),
    ("reshape flat", lambda xp, x: xp.reshape(x, -1), X.reshape(-1)),
    ("permute_dims", lambda xp, x: xp.permute_dims(x, (1, 0)), X.T),
    ("expand_dims", lambda xp, x: xp.expand_dims(x, axis=1), X[:, None]),
    ("squeeze", lambda xp, x: xp.squeeze(x[:1], 0), X[0]),
    ("broadcast_to", lambda xp, x: xp.broadcast_to(x, (2, 3, 4)), np.broadcast_to(X, (2, 3, 4))),
    ("flip", lambda xp, x: xp.flip(x), np.flip(X)),
    ("flip axis", lambda xp, x: xp.flip(x, axis=1), np.flip(X, 1)),
    ("take", lambda xp, x: xp.take(x, torch.tensor(I[0], dtype=torch.int32), axis=0), np.take(X, I[0], 0)),
    ("take many", lambda xp, x: xp.take(x, torch.tensor(I), axis=-1), np.take(X, I, -1)),
    ("take flat", lambda xp, x: xp.take(x[0], torch.tensor(I)), np.take(X[0], I)),
    (
        "take_along_axis",
        lambda xp, x: xp.take_along_axis(x, torch.tensor(I, dtype=torch.int32), axis=0),
        np.take_along_axis(X, I, 0),
    ),
    ("matmul", lambda xp, x: xp.matmul(x, xp.permute_dims(x, (1, 0))), X @ X.T),
    ("astype", lambda xp, x: xp.astype(x, torch.float64), X),
    ("relu", lambda xp, x: xp.relu(x - 1), np.maximum(SHIFTED, 0)),
    ("sigmoid", lambda xp, x: xp.sigmoid(x), 1 / (1 + np.exp(-X))),
    ("softplus", lambda xp, x: xp.softplus(x * 15), np.log1p(np.exp(X * 15))),
    ("softmax", lambda xp, x: xp.softmax(x), np.exp(X) / np.exp(X).sum(-1, keepdims=True)),
    ("softmax axis", lambda xp, x: xp.softmax(x, axis=0), np.exp(X) / np.exp(X).sum(0)),
    ("log_softmax", lambda xp, x: xp.log_softmax(x, axis=0), np.log(np.exp(X) / np.exp(X).sum(0))),
    ("logsumexp", lambda xp, x: xp.logsumexp(x), np.log(np.exp(X).sum())),
    ("logsumexp axis", lambda xp, x: xp.logsumexp(x, axis=0, keepdims=True), np.log(np.exp(X).sum(0, keepdims=True))),
    ("vector_norm", lambda xp, x: xp.linalg.vector_norm(x), np.sqrt((X**2).sum())),
    ("norm axis", lambda xp, x: xp.linalg.vector_norm(x, axis=1, keepdims=True), np.sqrt((X**2).sum(1, keepdims=True))),
    ("norm ord", lambda xp, x: xp.linalg.vector_norm(x, axis=0, ord=1), np.abs(X).sum(0)),
]


@pytest.mark.parametrize(("fn", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_xp_values_and_gradients(fn: Callable[[Any, Any], Any], expected: Any) -> None:
    xp = bound(nn.Linear(1, 1).double()).xp
    x = torch.tensor(X, requires_grad=True)
    found = fn(xp, x)
    assert tuple(found.shape) == np.shape(expected) and found.dtype == torch.float64
    assert_close(found, expected, 1e-12)
    assert torch.autograd.gradcheck(lambda x: fn(xp, x), (x,))


def test_xp_of_integers_and_bools() -> None:
    xp = Backend.xp
    ints = torch.tensor([[3, 1], [2, 3]])
    assert xp.sum(ints > 1).item() == 3
    assert xp.mean(ints > 1).item() == 0.75 and xp.mean(ints).dtype == torch.float32
    assert xp.max(ints).item() == 3 and xp.min(ints, axis=0).tolist() == [2, 1]
    assert xp.any(ints > 2, axis=1).tolist() == [True, True] and xp.all(ints > 2).item() is False
    assert xp.all(ints, axis=(0, 1), keepdims=True).tolist() == [[True]]
    assert xp.any(torch.tensor(False)).item() is False and xp.sum(torch.tensor(2.0)).item() == 2
    assert xp.argmax(ints).item() == 0 and xp.argmin(ints, axis=1).tolist() == [1, 0]
    assert xp.argmax(ints, axis=0, keepdims=True).shape == (1, 2)
    assert xp.isfinite(torch.tensor([1.0, math.inf, math.nan])).tolist() == [True, False, False]
    assert xp.maximum(ints, 2.5).dtype == torch.float32 and xp.maximum(ints, 2).dtype == torch.int64
    assert xp.sum(ints, dtype=xp.float32).dtype == torch.float32


def test_xp_creates_in_the_parameters_dtype() -> None:
    xp = bound(nn.Linear(1, 1).double()).xp
    for array in (xp.zeros(2), xp.ones((2, 1)), xp.full((2,), 0.5), xp.eye(2), xp.arange(0.5, 2), xp.zeros(())):
        assert array.dtype == torch.float64
    assert xp.one_hot(torch.tensor([1, 0], dtype=torch.uint8), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert xp.one_hot(torch.tensor([1]), 3).dtype == torch.float64
    assert xp.one_hot(torch.tensor([1]), 3, dtype=xp.int32).dtype == torch.int32
    assert xp.full(3, 2).dtype == torch.int64 and xp.full(3, 2).tolist() == [2, 2, 2]
    assert xp.full((2,), True).dtype == torch.bool and xp.full((2,), torch.tensor(1.5)).tolist() == [1.5, 1.5]
    assert xp.arange(3).dtype == torch.int64 and xp.arange(1, 6, 2).tolist() == [1, 3, 5]
    assert xp.zeros(1, dtype=xp.bool).dtype == torch.bool and xp.arange(2, dtype=xp.float32).dtype == torch.float32
    assert (
        xp.eye(2, 3, k=1).tolist() == np.eye(2, 3, k=1).tolist()
        and xp.eye(3, k=-1).tolist() == np.eye(3, k=-1).tolist()
    )
    like = torch.ones(2, dtype=torch.float32)
    assert xp.zeros_like(like).dtype == torch.float32 and xp.ones_like(like, dtype=xp.int32).tolist() == [1, 1]
    assert xp.full_like(like, 3).tolist() == [3, 3] and xp.full_like(like, torch.tensor(4.0)).tolist() == [4, 4]


def test_the_norm_of_zero_has_gradient_zero() -> None:
    xp = Backend.xp
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    norms = xp.linalg.vector_norm(x, axis=-1)
    assert norms.tolist() == [0, 5]
    (slope,) = torch.autograd.grad(norms.sum(), x, create_graph=True)
    assert_close(slope, [[0, 0], [0.6, 0.8]])
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    assert second.isfinite().all() and second[0].tolist() == [0, 0]


def test_extremes_share_the_gradient() -> None:
    x = torch.tensor([2.0, 2.0, 1.0], requires_grad=True)
    assert torch.autograd.grad(Backend.xp.max(x), x)[0].tolist() == [0.5, 0.5, 0]


def test_xp_refuses_what_would_go_wrong() -> None:
    xp = Backend.xp
    with pytest.raises(ValueError, match="has not length 1"):
        xp.squeeze(torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match="needs axis="):
        xp.take(torch.ones(2, 3), torch.tensor([0]))
    with pytest.raises(TypeError, match="must be an array"):
        xp.maximum("1", 2)
    assert xp.maximum(1.0, 2.0).item() == 2  # as on every backend
