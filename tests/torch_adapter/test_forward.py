"""The PyTorch adapter: what a model does inside a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopcore.backend import Leaves
from tests.torch_adapter.calls import (
    KEY,
    assert_close,
    bound,
    call,
    gradient,
    mlp,
    norm,
    seeded,  # noqa: F401, used by all tests here
)


def test_the_mode_is_set_for_each_call() -> None:
    inner = nn.Sequential(nn.Dropout(0.5))
    model = nn.Sequential(nn.Dropout(0.5), inner)
    backend = bound(model)
    x = torch.ones(50)
    assert call(backend, x, training=False) is x and not inner[0].training
    assert not torch.equal(call(backend, x, training=True), x) and inner[0].training


def test_outside_an_objective_there_is_no_graph() -> None:
    model = norm()
    backend = bound(model)
    x = torch.ones(3, 4)
    for update in (True, False):
        assert not call(backend, x, update=update).requires_grad
    assert not backend.apply("", {}, (x,), {}, training=True).requires_grad
    assert torch.is_grad_enabled()
    assert call(backend, x, training=False).allclose(model.eval()(x))


def test_arguments_and_results_pass_through() -> None:
    class Model(nn.Module):
        def forward(self, a: Tensor, *, scale: float, rest: Any = None) -> dict[str, Any]:
            return {"y": a * scale, "rest": rest}

    out = call(bound(Model()), torch.ones(2), scale=3.0, rest="kept")
    assert out["y"].tolist() == [3, 3] and out["rest"] == "kept"


@pytest.mark.parametrize("inside", [False, True])
def test_update_state(inside: bool) -> None:
    backend = bound(norm())
    x = torch.randn(8, 4)
    paths = backend.paths("buffers")[""]
    before = backend.snapshot(paths)

    def run(update: bool) -> None:
        if inside:
            gradient(backend, lambda: call(backend, x, update=update).square().mean())
        else:
            call(backend, x, update=update)

    run(False)
    for path, value in backend.get(paths).items():
        assert torch.equal(value, before[path])
    run(True)
    assert backend.get(paths)["1.num_batches_tracked"] == 1
    assert not torch.equal(backend.get(paths)["1.running_mean"], before["1.running_mean"])


def test_gradients_do_not_depend_on_update_state() -> None:
    backend = bound(norm())
    x = torch.randn(8, 4)

    def of(update: bool) -> Leaves:
        return gradient(backend, lambda: call(backend, x, update=update).pow(3).mean())

    found = of(True), of(False)
    for path in found[0]:
        assert_close(found[0][path], found[1][path])


def test_buffers_that_forward_replaces() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count: Tensor
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x

    backend = bound(Counter())
    call(backend, torch.ones(1))
    call(backend, torch.ones(1), update=False)
    assert backend.get(["count"])["count"] == 1
    backend.set({"count": 5.0})
    assert backend.native("").count == 5


def test_apply_with_other_parameters() -> None:
    model = norm()
    backend = bound(model)
    x = torch.randn(8, 4)
    before = {**model.state_dict()}
    before = {name: value.clone() for name, value in before.items()}
    other = {path: leaf * 0 + 2 for path, leaf in backend.snapshot(backend.paths("params")[""]).items()}
    whole = backend.apply("", other, (x,), {}, training=True)
    expected = F.batch_norm(
        x @ torch.full((4, 3), 2.0) + 2, None, None, torch.full((3,), 2.0), torch.full((3,), 2.0), True
    )
    assert_close(whole, expected, 1e-4)
    part = backend.apply("", {"1.bias": np.full(3, 7.0)}, (x,), {}, training=False)
    assert_close(part, call(backend, x, training=False) + 7)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_apply_is_differentiable_by_what_it_is_given() -> None:
    backend = bound(nn.Linear(2, 1, bias=False))
    x = torch.tensor([[1.0, 2.0]])

    def objective() -> Tensor:
        doubled = {path: 2 * leaf for path, leaf in backend.snapshot(["weight"]).items()}
        result: Tensor = backend.apply("", doubled, (x,), {}, training=True).sum()
        return result

    assert_close(gradient(backend, objective)["weight"], [[2.0, 4.0]])


def test_bodies_run_without_graph() -> None:
    backend = bound(mlp())
    modes: list[bool] = []

    def note() -> None:
        modes.append(torch.is_grad_enabled())

    def objective() -> Any:
        note()
        return call(backend, torch.ones(1, 4)).sum()

    def broken() -> None:
        raise KeyError("missing")

    def body() -> None:
        note()
        backend.run_body(note, KEY)
        gradient(backend, objective)
        note()

    backend.run_body(body, KEY)
    assert modes == [False, False, True, False] and torch.is_grad_enabled()
    with pytest.raises(KeyError):
        backend.run_body(broken, KEY)
    assert torch.is_grad_enabled()
