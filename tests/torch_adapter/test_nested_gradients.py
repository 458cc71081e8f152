"""The PyTorch adapter: gradients inside gradients, and gradients of functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loopcore.errors import (
    GradientError,
    LossError,
)
from tests.torch_adapter.calls import (
    assert_close,
    bound,
    call,
    gradient,
    mlp,
    norm,
    seeded,  # noqa: F401, used by all tests here
    w,
    w_of,
    weights,
)

# -- gradients inside gradients ----------------------------------------------------------------------------------------


def test_a_gradient_inside_an_objective() -> None:
    backend = weights((1.0, 2.0))
    state: dict[str, Any] = {}

    def inner() -> Tensor:
        state["inner"] = w(backend).pow(3).sum()
        found: Tensor = state["inner"]
        return found

    def outer() -> Tensor:
        grads = gradient(backend, inner, None, state)  # 3 w^2
        assert state["inner"].requires_grad  # still part of the outer graph
        result: Tensor = (grads["w"] * torch.tensor([1.0, 10.0])).sum() + state["inner"]
        return result

    assert_close(gradient(backend, outer, None, state)["w"], [6 + 3, 120 + 12.0])
    assert not state["inner"].requires_grad and w(backend).grad is None


def test_an_inner_gradient_sees_only_its_own_objective() -> None:
    backend = bound(nn.Linear(1, 1, bias=False))
    x = torch.ones(1, 1)

    def outer() -> Any:
        y = call(backend, x)
        gradient(backend, lambda: y.sum())
        return y.sum()

    with pytest.raises(GradientError, match="does not depend on weight"):
        gradient(backend, outer)


def test_a_step_inside_an_objective() -> None:
    model = nn.Linear(1, 1, bias=False)
    backend = bound(model)
    backend.set({"weight": np.array([[3.0]])})
    x = torch.tensor([[2.0]])

    def loss() -> Tensor:
        result: Tensor = call(backend, x).square().sum()  # 4 w^2
        return result

    def outer() -> Any:
        fast = {path: w_of(backend, path) - 0.1 * grad for path, grad in gradient(backend, loss).items()}  # 0.2 w
        return backend.gradient(lambda: loss().pow(2), [("weight",)], fast, ())[0][0]["weight"].sum()  # 64 (0.2 w)^3

    assert_close(gradient(backend, outer)["weight"], [[64 * 3 * 0.2**3 * 9]], 1e-5)
    assert model.weight.item() == 3


def test_at_values_nest() -> None:
    backend = weights((1.0, 1.0))
    seen: list[list[float]] = []

    def inner() -> Tensor:
        seen.append(w(backend).tolist())
        return w(backend).square().sum()

    def outer() -> Any:
        seen.append(w(backend).tolist())
        found = gradient(backend, inner)["w"]
        other = gradient(backend, inner, {"w": 2 * w(backend)})["w"]
        seen.append(w(backend).tolist())
        return (found + other).sum()

    assert_close(gradient(backend, outer, {"w": torch.tensor([3.0, 4.0])})["w"], [6.0, 6.0])
    assert seen == [[3, 4], [3, 4], [6, 8], [3, 4]] and w(backend).tolist() == [1, 1]


def test_an_error_in_an_inner_objective_can_be_caught() -> None:
    backend = weights((1.0, 2.0))

    def outer() -> Tensor:
        with pytest.raises(LossError):
            gradient(backend, lambda: None, {"w": torch.zeros(2)})
        return w(backend).square().sum()

    assert_close(gradient(backend, outer)["w"], [2.0, 4.0])


def test_inner_gradients_of_several_losses() -> None:
    backend = weights((1.0, 2.0))

    def outer() -> Any:
        rows = backend.gradient(lambda: (w(backend).pow(2).sum(), w(backend).pow(3).sum()), [("w",)], None, ())
        return (rows[0][0]["w"] * rows[1][0]["w"]).sum()  # 2 w * 3 w^2

    assert_close(gradient(backend, outer)["w"], [18.0, 72.0])


def test_inner_gradients_of_batch_norm_keep_its_state() -> None:
    backend = bound(norm())
    x = torch.randn(8, 4)

    def outer() -> Tensor:
        grads = gradient(backend, lambda: call(backend, x).pow(3).mean())
        return sum((grad.square().sum() for grad in grads.values()), torch.zeros(()))

    gradient(backend, outer)
    assert w_of(backend, "1.num_batches_tracked") == 1


# -- grad --------------------------------------------------------------------------------------------------------------


def test_grad_of_a_function() -> None:
    backend = weights()
    x = torch.tensor([1.0, 2.0])
    assert_close(backend.grad(lambda x: x.pow(3).sum(), ())(x), [3.0, 12.0])
    first, second = backend.grad(lambda a, b: (a * b["c"]).sum(), ())(x, {"c": np.array([5.0, 6.0])})
    assert first.tolist() == [5, 6] and second["c"].tolist() == [1, 2]
    assert backend.grad(lambda x: x * x, ())(3.0) == 6
    assert not x.requires_grad and torch.is_grad_enabled()


def test_what_a_function_closes_over_is_constant() -> None:
    backend = weights((1.0, 2.0))
    x = torch.tensor([3.0, 4.0])
    assert_close(backend.grad(lambda z: (z * x).sum(), ())(x), x)
    found: list[Tensor] = []

    def objective() -> Tensor:
        y = w(backend) * 2
        found.append(backend.grad(lambda z: (z * y).sum(), ())(y))
        return (found[0] * w(backend)).sum()  # 2 w * w

    assert_close(gradient(backend, objective)["w"], [4.0, 8.0])
    assert_close(found[0], [2.0, 4.0])


def test_a_gradient_penalty() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    backend = bound(model)
    x = torch.randn(4, 3)

    def objective() -> Any:
        slope = backend.grad(lambda z: call(backend, z).sum(), ())(x)
        return (backend.xp.linalg.vector_norm(slope, axis=-1) - 1).square().mean()

    free = x.clone().requires_grad_()
    slope = torch.autograd.grad(model(free).sum(), free, create_graph=True)[0]
    loss = (slope.norm(dim=-1) - 1).square().mean()
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    for grad, want in zip(gradient(backend, objective).values(), expected, strict=True):
        assert_close(grad, want)


def test_grad_runs_models_with_graph_and_leaves_none() -> None:
    model = mlp()
    backend = bound(model)
    state: dict[str, Any] = {}

    def fn(x: Tensor) -> Tensor:
        state["y"] = call(backend, x)
        result: Tensor = state["y"].sum()
        return result

    slope = backend.grad(fn, (state,))(torch.ones(2, 4))
    assert slope.shape == (2, 4) and slope.abs().sum() > 0 and not slope.requires_grad
    assert not state["y"].requires_grad and all(parameter.grad is None for parameter in model.parameters())


def test_grad_of_what_is_not_reached() -> None:
    backend = weights()
    found = backend.grad(lambda a, b: a.sum(), ())(torch.ones(2), torch.ones(3))
    assert found[1].tolist() == [0, 0, 0]
    with pytest.raises(GradientError, match="argument 0"):
        backend.grad(lambda a: torch.ones(()), ())(torch.ones(2))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((torch.ones(1), torch.ones(1, dtype=torch.int64)), "argument 1 .*int64.*close over it"),
        (({"a": 1.0, "b": 2},), "leaf 1 of argument 0"),
        (("text",), "argument 0 .*a str"),
        ((), "write grad"),
    ],
)
def test_arguments_without_gradient(args: tuple[Any, ...], words: str) -> None:
    with pytest.raises(GradientError, match=words):
        weights().grad(lambda *args: torch.ones(()), ())(*args)


def test_grad_of_two_values_is_an_error() -> None:
    with pytest.raises(LossError, match="returned 2 values"):
        weights().grad(lambda x: (x.sum(), x.sum()), ())(torch.ones(1))


def test_stop_gradient() -> None:
    backend = weights((1.0, 2.0))
    objective = lambda: (backend.stop_gradient({"a": w(backend)})["a"] * w(backend)).sum()  # noqa: E731
    assert_close(gradient(backend, objective)["w"], [1.0, 2.0])
    plain = {"a": torch.ones(1), "b": "text"}
    assert backend.stop_gradient(plain) is plain
