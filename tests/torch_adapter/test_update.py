"""The PyTorch adapter: updates inside a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loopcore.errors import (
    OptimizerError,
)
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from loopcore_torch import Backend
from tests.torch_adapter.calls import (
    assert_close,
    bound,
    call,
    gradient,
    mlp,
    seeded,  # noqa: F401, used by all tests here
    w,
    weights,
)

TWINS: list[tuple[OptimizerSpec, Callable[[Any], torch.optim.Optimizer]]] = [
    (SGD(0.1), lambda params: torch.optim.SGD(params, 0.1, fused=True)),
    (Momentum(0.1, 0.8), lambda params: torch.optim.SGD(params, 0.1, 0.8, fused=True)),
    (Adam(0.1, 0.8, 0.95, 1e-6), lambda params: torch.optim.Adam(params, 0.1, (0.8, 0.95), 1e-6, fused=True)),
    (AdamW(0.1, weight_decay=0.3), lambda params: torch.optim.AdamW(params, 0.1, weight_decay=0.3, fused=True)),
]


def doubled_sum(backend: Backend) -> Tensor:
    total: Tensor = backend.get(["w"])["w"].sum()
    return total * 2


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimizers_with_gradients_of_other_strides(kind: Any) -> None:
    found = list[Tensor]()
    for fused in (False, True):
        model = nn.ParameterDict({"w": torch.arange(6.0).reshape(2, 3) - 2})
        backend = Backend()
        backend.bind({"": model})
        backend.attach([(kind(model.parameters(), 0.1, fused=fused), ("w",))])
        for _ in range(2):
            grads = gradient(backend, partial(doubled_sum, backend))
            assert grads["w"].stride() == (0, 0), "what makes a fused kernel go wrong"
            backend.update(grads, True)
        found.append(model["w"].detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("spec", "native"), TWINS, ids=lambda value: getattr(type(value), "__name__", ""))
def test_specs_are_torch_optimizers(spec: OptimizerSpec, native: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, twin, third = mlp(), mlp(), mlp()
    twin.load_state_dict(model.state_dict())
    third.load_state_dict(model.state_dict())
    backend, other = bound(model, spec), bound(third, native(third.parameters()))
    optimizer = native(twin.parameters())
    x = torch.randn(6, 4)
    for _ in range(4):
        backend.update(gradient(backend, lambda: call(backend, x).square().mean()), True)
        other.update(gradient(other, lambda: call(other, x).square().mean()), True)
        optimizer.zero_grad()
        twin(x).square().mean().backward()
        optimizer.step()
    for a, b, c in zip(model.parameters(), twin.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_only_given_paths_move() -> None:
    model = mlp()
    backend = bound(model, Momentum(0.1))
    full = gradient(backend, lambda: call(backend, torch.ones(2, 4)).square().mean())
    backend.update(full, True)  # now every parameter has a velocity
    before = backend.snapshot(full)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert backend.update({"2.bias": full["2.bias"]}, True) is True
    after = backend.get(full)
    assert [path for path in full if not torch.equal(before[path], after[path])] == ["2.bias"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_close(after["2.bias"], before["2.bias"] - 0.1 * (0.9 * full["2.bias"] + full["2.bias"]))


def test_each_optimizer_steps_once() -> None:
    backend = bound(mlp())
    paths = backend.paths("params")[""]
    backend.attach([(SGD(0.1), paths[:2]), (Adam(0.1), paths[2:])])
    zeros = {path: torch.ones_like(leaf) for path, leaf in backend.get(paths).items()}
    before = backend.snapshot(paths)
    backend.update(zeros, True)
    backend.update({path: zeros[path] for path in paths[:2]}, True)
    after = backend.get(paths)
    for path in paths:
        assert_close(after[path], before[path] - (0.2 if path in paths[:2] else 0.1), 1e-5)


@pytest.mark.parametrize("no", [False, torch.tensor(False), np.bool_(False)])
def test_an_update_that_does_not_happen(no: Any) -> None:
    backend, twin = weights((1.0, 2.0), Adam(0.1)), weights((1.0, 2.0), Adam(0.1))
    grads = {"w": torch.tensor([1.0, -3.0])}
    assert backend.update(grads, no) is False
    assert w(backend).tolist() == [1, 2]
    for one in (backend, twin):
        assert one.update(grads, torch.tensor(True)) is True
        one.update({"w": torch.tensor([-1.0, 0.5])}, True)
    assert torch.equal(w(backend), w(twin))  # the counter of bias correction did not advance either


def test_an_optimizer_that_raises_leaves_no_gradient() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("broken step")

    model = nn.Linear(1, 1)
    backend = bound(model, Broken(model.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="broken step"):
        backend.update(backend.snapshot(["weight", "bias"]), True)
    assert model.weight.grad is None and model.bias.grad is None


def test_gradients_without_an_optimizer() -> None:
    backend = bound(mlp())
    backend.attach([(SGD(0.1), ("0.weight",))])
    with pytest.raises(OptimizerError, match=r"no optimizer trains 2\.bias"):
        backend.update({"0.weight": torch.ones(8, 4), "2.bias": torch.ones(3)}, True)


def test_gradients_kept_by_the_user_are_not_changed() -> None:
    backend = weights((1.0, 2.0), AdamW(0.1))
    grads = {"w": torch.tensor([1.0, 2.0])}
    for _ in range(3):
        backend.update(grads, True)
    assert grads["w"].tolist() == [1, 2]
