"""The PyTorch adapter: models and their devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import loopcore as lc
from loopcore import backend as protocol
from loopcore.errors import (
    BackendError,
    OptimizerError,
    UnknownModelError,
)
from loopcore.optimizers import SGD, Adam
from loopcore_torch import Backend
from loopcore_torch.optimizers import move_state
from tests.torch_adapter.calls import (
    Tied,
    bound,
    compiled_of,
    mlp,
    norm,
    seeded,  # noqa: F401, used by all tests here
    w,
    weights,
)

# -- the class ---------------------------------------------------------------------------------------------------------


def test_it_is_a_backend() -> None:
    made: protocol.Backend = Backend()
    assert (made.name, made.compiles, made.transfers) == ("torch", False, 0)


def test_functions_without_a_learner() -> None:
    assert Backend.xp.zeros(2).dtype == torch.float32
    assert Backend.losses.mse(torch.ones(2), torch.zeros(2)) == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(1, 1), True),
        (torch.ones(2), True),
        ({"a": [torch.ones(2)], "b": np.ones(2)}, True),
        ({"a": np.ones(2)}, False),
        (torch.ones(2, dtype=torch.int64), False),
        ({}, False),
        (lambda x: x, False),
        (nn.Linear, False),
    ],
)
def test_recognises(model: Any, expected: bool) -> None:
    assert Backend.recognises(model) is expected


def test_devices() -> None:
    for device in ("cpu", torch.device("cpu")):
        backend = bound(mlp(), device=device)
        assert backend.convert(np.ones(1)).device == torch.device("cpu")
        assert backend.xp.device == torch.device("cpu")
    wrong: tuple[Any, ...] = ("gpu", "cuda:99", 1.5)
    for device in wrong:
        with pytest.raises(BackendError, match="device="):
            Backend(device=device)


# -- binding -----------------------------------------------------------------------------------------------------------


def test_paths() -> None:
    backend = Backend()
    backend.bind({"a": norm(), "b": nn.Linear(2, 1, bias=False)})
    assert backend.paths("params") == {
        "a": ("a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias"),
        "b": ("b.weight",),
    }
    assert backend.paths("buffers") == {
        "a": ("a.1.running_mean", "a.1.running_var", "a.1.num_batches_tracked"),
        "b": (),
    }


def test_tied_weights_are_listed_once() -> None:
    assert bound(Tied()).paths("params") == {"": ("first.weight",)}


def test_names_of_wrapped_modules() -> None:
    expected = bound(norm()).paths("params"), bound(norm()).paths("buffers")
    inner = norm()
    for wrapped in (
        compiled_of(inner),
        nn.DataParallel(inner),
        nn.DataParallel(compiled_of(inner)),
    ):
        backend = bound(wrapped)
        assert (backend.paths("params"), backend.paths("buffers")) == expected
        assert backend.native("") is wrapped
        assert backend.get(["0.weight"])["0.weight"] is inner[0].weight
    partly = nn.Sequential(compiled_of(nn.Linear(4, 3)), nn.BatchNorm1d(3))
    assert bound(partly).paths("params") == expected[0]


def test_a_submodule_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module = nn.Linear(1, 1)
    assert bound(model).paths("params")[""] == ("module.weight", "module.bias")


def test_integer_parameters_are_buffers() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("codes", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    backend = bound(model)
    assert backend.paths("params")[""] == ("weight", "bias")
    assert backend.paths("buffers")[""] == ("codes",)
    backend.set({"codes": np.array([3, 4])})
    assert model.get_parameter("codes").tolist() == [3, 4]


def test_native_is_the_users_module() -> None:
    model = mlp()
    assert bound(model).native("") is model


def test_unusable_models() -> None:
    for model, words in [
        (nn.LazyLinear(3), "call the lazy module once"),
        (nn.Linear, r"Linear\(\.\.\.\)"),
        ({}, "no parameters"),
        ({"a": torch.tensor([1])}, "'a'.*int64.*state"),
        (lambda x: x, "nn.Module"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two arrays have this path"),
    ]:
        with pytest.raises(UnknownModelError, match=words):
            bound(model)


def test_binding_again_forgets_the_first_models() -> None:
    backend = bound(mlp(), SGD(0.1))
    xp = backend.xp
    backend.bind({"": nn.Linear(2, 2).double()})
    assert backend.paths("params") == {"": ("weight", "bias")}
    assert backend.xp is xp and xp.zeros(1).dtype == torch.float64
    with pytest.raises(OptimizerError, match="no optimizer trains weight"):
        backend.update(backend.snapshot(["weight"]), True)


# -- devices -----------------------------------------------------------------------------------------------------------


def test_moving_keeps_optimizer_state() -> None:
    backend, twin = weights((1.0, 2.0), Adam(0.1)), weights((1.0, 2.0), Adam(0.1))
    own = w(backend)
    for step in range(3):
        for one in (backend, twin):
            one.update({"w": torch.tensor([1.0, -step])}, True)
        backend.to_device("cpu")
    assert w(backend) is own and torch.equal(own, w(twin))


def test_optimizer_state_moves() -> None:
    parameter = nn.Parameter(torch.ones(2))
    for options, counter in (({}, "cpu"), ({"capturable": True}, "meta")):
        optimizer = torch.optim.Adam([parameter])
        parameter.grad = torch.ones(2)
        optimizer.step()
        optimizer.param_groups[0].update(options)
        move_state(optimizer, torch.device("meta"))
        state = optimizer.state[parameter]
        assert state["exp_avg"].device.type == state["exp_avg_sq"].device.type == "meta"
        assert state["step"].device.type == counter


def test_moves_that_torch_cannot_do_in_place() -> None:
    backend = bound(mlp(), SGD(0.1))
    with pytest.raises(BackendError, match="build the Learner anew"):
        backend.to_device("meta")
    with pytest.raises(BackendError, match="device='nowhere'"):
        backend.to_device("nowhere")


def test_lazy_modules_get_their_shapes_from_the_first_batch() -> None:
    """In evaluation mode, so that BatchNorm has not seen the batch; and the fit begins with it all the same."""
    xs, ys = np.random.default_rng(0).normal(size=(2, 6, 3)), np.zeros((2, 6, 2))
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
    data = iter(list(zip(xs, ys, strict=True)))
    learner = lc.Learner(lazy, lc.losses.mse, lc.SGD(0.1), data=(data, None), default_callbacks=False)
    assert set(learner.export_weights()) >= {"0.weight", "2.bias"} and lazy[0].in_features == 3
    assert lazy.training and all(module.training for module in lazy.modules())
    np.testing.assert_array_equal(learner.export_weights()["1.running_mean"], np.zeros(4))
    assert learner.fit(1).status == "completed"
    assert learner.runs.attempts["training"] == 2
