"""The PyTorch adapter: gradients inside a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import loopcore as lc
from loopcore.errors import (
    GradientError,
    LossError,
)
from loopcore.optimizers import SGD
from loopcore_torch import Backend
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


def test_gradient_is_that_of_torch() -> None:
    model = mlp()
    backend = bound(model)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for twice in range(2):
        found = gradient(backend, lambda: F.cross_entropy(call(backend, x), y))
        for grad, want in zip(found.values(), expected, strict=True):
            assert torch.equal(grad, want) and not grad.requires_grad, twice


def test_no_gradient_is_left_behind() -> None:
    model = mlp()
    backend = bound(model, SGD(0.1))
    x = torch.randn(6, 4)
    expected = gradient(backend, lambda: call(backend, x).square().mean())
    for drop in ("begin", "update"):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 100)
        if drop == "begin":  # of an outermost run
            with backend.scope():
                assert all(parameter.grad is None for parameter in model.parameters())
        found = gradient(backend, lambda: call(backend, x).square().mean())
        for path in expected:
            assert torch.equal(found[path], expected[path])
        assert all((parameter.grad is None) is (drop == "begin") for parameter in model.parameters())
        if drop == "update":
            backend.update(found, True)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_run_drops_gradients_the_user_left() -> None:
    """Of frozen parameters too; and not again within the run, so that a handler may use ``.grad`` for itself."""
    model = mlp()
    *_, bias = model.parameters()
    paths: list[bool] = []

    def look(learner: Any, phase: Any) -> None:
        paths.append(all(parameter.grad is None for parameter in model.parameters()))
        bias.grad = torch.ones_like(bias)

    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100)
    look_up = lc.FunctionCallback(look, lc.FitBegin)
    learner = lc.Learner(model, lc.losses.mse, optimizer={"0": SGD(0.1)}, callbacks=[look_up], default_callbacks=False)
    batch = (torch.ones(3, 4), torch.ones(3, 3))
    learner.data = {"training": [batch, batch]}
    learner.fit(1)
    assert paths == [True]
    assert [parameter.grad is None for parameter in model.parameters()] == [True, True, True, False]
    learner.run_step(lc.TrainingPhase(), batch)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_leaves_get_no_gradient() -> None:
    model, foreign = mlp(), torch.ones(3, requires_grad=True)
    backend = bound(model)
    paths = ("2.weight", "2.bias")
    backend.gradient(lambda: (call(backend, torch.ones(2, 4)) * foreign).sum(), [paths], None, ())
    assert foreign.grad is None and all(parameter.grad is None for parameter in model.parameters())


def test_what_is_not_reached_is_zero() -> None:
    backend = bound(mlp())
    found = gradient(backend, lambda: backend.get(["0.bias"])["0.bias"].sum())
    assert found["0.bias"].tolist() == [1] * 8
    assert found["2.weight"].tolist() == [[0] * 8] * 3


def test_reaching_nothing_is_an_error() -> None:
    backend = bound(mlp())
    outside = call(backend, torch.ones(1, 4))
    for objective in (lambda: outside.sum(), lambda: call(backend, torch.ones(1, 4)).detach().sum()):
        with pytest.raises(GradientError, match=r"0\.weight, 0\.bias.*inside the objective"):
            gradient(backend, objective)
    free = torch.ones((), requires_grad=True)
    with pytest.raises(GradientError, match="does not depend on"):
        gradient(backend, lambda: free * 1)
    with pytest.raises(GradientError, match="loss number 1"):
        gradient(backend, lambda: (call(backend, torch.ones(1, 4)).sum(), outside.sum()))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "end it with return state.loss"),
        (torch.ones(3), r'shape \(3,\).*reduction="mean"'),
        (torch.ones(1), r"shape \(1,\)"),
        (1.5, "without .item()"),
        ({"loss": torch.ones(())}, "returned a dict"),
        ((), "returned a tuple"),
        ((torch.ones(()), None), "returned nothing"),
    ],
)
def test_losses_that_are_none(result: Any, words: str) -> None:
    backend = weights()
    with pytest.raises(LossError, match=words):
        gradient(backend, lambda: result)
    with pytest.raises(LossError, match=words):
        backend.grad(lambda x: result, ())(torch.ones(1))


def test_several_losses_share_a_forward() -> None:
    model = mlp()
    backend = bound(model)
    x = torch.randn(5, 4)
    paths = backend.paths("params")[""]
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def objective() -> tuple[Tensor, ...]:
        y = call(backend, x)
        return y.square().mean(), y.abs().mean(), y.abs().mean()

    def mean_of(loss: Callable[[Any], Any]) -> Any:
        return loss(call(backend, x)).mean()

    rows = backend.gradient(objective, [paths], None, ())
    assert len(rows) == 3 and len(calls) == 1
    for row, loss in zip(rows, (torch.square, torch.abs, torch.abs), strict=True):
        expected = gradient(backend, partial(mean_of, loss))
        for path in paths:
            assert_close(row[0][path], expected[path])
    same = backend.gradient(lambda: (lambda loss: (loss, loss))(call(backend, x).mean()), [paths], None, ())
    assert_close(same[0][0]["2.bias"], same[1][0]["2.bias"])


def test_several_groups() -> None:
    backend = Backend()
    backend.bind({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    groups = list(backend.paths("params").values())
    x = torch.ones(1, 2)
    objective = lambda: call(backend, call(backend, x, model="a"), model="b").sum()  # noqa: E731
    rows = backend.gradient(objective, [*groups, ("b.bias", "a.bias")], None, ())
    assert [list(part) for part in rows[0]] == [list(groups[0]), list(groups[1]), ["b.bias", "a.bias"]]
    assert rows[0][1]["b.bias"].tolist() == [1, 1] == rows[0][2]["b.bias"].tolist()


def test_two_models_in_turn() -> None:
    backend = Backend()
    backend.bind({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    found = backend.gradient(
        lambda: call(backend, call(backend, torch.ones(1, 2), model="a"), model="b").sum(),
        [backend.paths("params")["b"]],
        None,
        (),
    )
    assert list(found[0][0]) == ["b.weight", "b.bias"]
    assert all(p.grad is None for name in "ab" for p in backend.native(name).parameters())


def test_at_other_values() -> None:
    backend = weights((1.0, 2.0))
    own = w(backend)
    seen: list[Tensor] = []

    def objective() -> Tensor:
        seen.extend([w(backend), backend.snapshot(["w"])["w"]])
        return w(backend).pow(3).sum()

    at = {"w": torch.tensor([3.0, 4.0])}
    assert_close(gradient(backend, objective, at)["w"], [27.0, 48.0])
    assert seen[0].tolist() == seen[1].tolist() == [3, 4]
    assert w(backend) is own and own.tolist() == [1, 2] and own.grad is None
    assert not at["w"].requires_grad
    assert_close(gradient(backend, objective)["w"], [3.0, 12.0])


def test_at_some_values_of_a_module() -> None:
    model = mlp()
    backend = bound(model)
    x = torch.randn(5, 4)
    at = {"2.bias": np.array([1.0, 2.0, 3.0])}
    found = gradient(backend, lambda: call(backend, x).square().mean(), at)
    shifted = mlp()
    shifted.load_state_dict(model.state_dict())
    shifted.get_parameter("2.bias").data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = torch.autograd.grad(shifted(x).square().mean(), list(shifted.parameters()))
    for grad, want in zip(found.values(), expected, strict=True):
        assert_close(grad, want)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(GradientError, match="at= has values for wrong"):
        gradient(backend, lambda: call(backend, x).mean(), {"wrong": torch.ones(1)})
    assert_close(gradient(backend, lambda: call(backend, x).mean())["2.bias"], [1 / 3] * 3)


def test_at_updates_buffers() -> None:
    backend = bound(norm())
    at = backend.snapshot(backend.paths("params")[""])
    gradient(backend, lambda: call(backend, torch.randn(8, 4)).square().mean(), at)
    assert backend.get(["1.num_batches_tracked"])["1.num_batches_tracked"] == 1


def test_what_an_objective_wrote_belongs_to_no_graph() -> None:
    backend = bound(mlp())
    state: dict[str, Any] = {"xs": torch.randn(3, 4), "note": "text"}
    shared: dict[str, Any] = {"list": [1, "a"], "object": object()}
    unchanged = dict(shared)

    def objective() -> Tensor:
        state["y"] = call(backend, state["xs"])
        state["tree"] = {"a": [state["y"] + 1, None], "b": 2}
        state["weight"] = backend.native("")[2].weight
        shared["loss"] = state["y"].mean()
        found: Tensor = shared["loss"]
        return found

    xs = state["xs"]
    gradient(backend, objective, None, state, shared)
    assert state["xs"] is xs and state["note"] == "text"
    assert not any(state[name].requires_grad for name in ("y", "weight"))
    assert not state["tree"]["a"][0].requires_grad and state["tree"]["a"][1] is None and state["tree"]["b"] == 2
    assert not shared["loss"].requires_grad
    assert shared["list"] is unchanged["list"] and shared["object"] is unchanged["object"]
    assert backend.native("")[2].weight.requires_grad


def test_an_objective_that_raises() -> None:
    model = mlp()
    backend = bound(model)
    state: dict[str, Any] = {}

    def objective() -> Tensor:
        state["y"] = call(backend, torch.ones(1, 4))
        raise KeyError("mine")

    for at in (None, {"2.bias": torch.ones(3)}):
        with pytest.raises(KeyError, match="mine"):
            gradient(backend, objective, at, state)
        assert torch.is_grad_enabled() and not state["y"].requires_grad
        assert not call(backend, torch.ones(1, 4)).requires_grad
        assert w_of(backend, "2.bias") is model[2].bias


def test_a_backward_that_raises_leaves_no_gradient() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError("broken backward")

    backend = weights()
    objective = lambda: w(backend).sum() + Broken.apply(w(backend)).sum()  # type: ignore[no-untyped-call]  # noqa: E731
    with pytest.raises(RuntimeError, match="broken backward"):
        gradient(backend, objective)
    assert w(backend).grad is None


def test_parameters_that_need_no_gradient() -> None:
    model = mlp()
    backend = bound(model, SGD(0.1))
    model[0].requires_grad_(False)
    grads = gradient(backend, lambda: call(backend, torch.ones(1, 4)).sum())
    assert not grads["0.weight"].any() and grads["2.weight"].any()
    assert backend.frozen_by_user() == {"0.weight", "0.bias"} and backend.unreached() == ()
    model.requires_grad_(False)
    with pytest.raises(GradientError, match="all parameters in wrt have requires_grad=False"):
        gradient(backend, lambda: (call(backend, torch.ones(1, 4)) + torch.ones((), requires_grad=True)).sum())
    backend.wake(["0.bias"])
    assert model[0].bias.requires_grad and backend.frozen_by_user() == {"0.weight", "2.weight", "2.bias"}
    assert all(parameter.grad is None for parameter in model.parameters())
