"""The PyTorch adapter, method by method; what all backends share is in the conformance suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

import loopcore as lc
from loopcore import backend as protocol
from loopcore.backend import DrawKey, Leaves
from loopcore.errors import (
    BackendError,
    CheckpointError,
    GradientError,
    LossError,
    OptimizerError,
    UnknownModelError,
)
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from loopcore_torch import Backend
from loopcore_torch.arrays import from_numpy, to_numpy
from loopcore_torch.optimizers import move_state
from loopcore_torch.random import GlobalGenerators, mix

KEY = DrawKey(seed=1, stream=2, step=3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled()


def bound(model: Any, optimizer: Any = None, **options: Any) -> Backend:
    """A backend with one unnamed model, all of which one optimizer trains."""
    backend = Backend(**options)
    backend.bind({"": model})
    if optimizer is not None:
        backend.attach([(optimizer, backend.paths("params")[""])])
    return backend


def call(backend: Backend, *args: Any, model: str = "", training: bool = True, update: bool = True, **kw: Any) -> Any:
    return backend.forward(model, args, kw, training=training, update_state=update)


def gradient(backend: Backend, objective: Callable[[], Any], at: Leaves | None = None, *scopes: Any) -> Leaves:
    """With respect to all parameters."""
    paths = tuple(path for part in backend.paths("params").values() for path in part)
    return backend.gradient(objective, [paths], at, scopes)[0][0]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def weights(values: Any = (1.0, 2.0), optimizer: Any = None) -> Backend:
    """A backend whose model is the tree {"w": values}."""
    return bound({"w": torch.tensor(values)}, optimizer)


def w(backend: Backend) -> Tensor:
    found: Tensor = backend.get(["w"])["w"]
    return found


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    actual = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    expected = expected.detach().numpy() if isinstance(expected, Tensor) else expected
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


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


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x)))
        return result


def compiled_of(model: nn.Module) -> Any:
    """What torch.compile makes of a module: typed as a function, but a module."""
    return torch.compile(model, backend="eager")


def norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


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


# -- trees of arrays ---------------------------------------------------------------------------------------------------


def test_a_tree_of_tensors() -> None:
    tree: dict[str, Any] = {"b": [torch.ones(2), torch.zeros(())], "a": torch.tensor([3.0])}
    backend = bound(tree, SGD(0.5))
    assert backend.paths("params") == {"": ("a", "b.0", "b.1")}
    assert backend.paths("buffers") == {"": ()}
    grads = gradient(backend, lambda: backend.get(["b.0"])["b.0"].sum() * 2)
    assert grads["b.0"].tolist() == [2, 2] and grads["a"].tolist() == [0]
    backend.update(grads, True)
    assert backend.native("")["b"][0].tolist() == [0, 0]
    assert tree["b"][0].tolist() == [1, 1] and not tree["b"][0].requires_grad


def test_trees_pack_into_their_own_structure() -> None:
    backend = Backend()
    tree: Any = {"b": (torch.ones(2), torch.zeros(())), "a": torch.tensor([3.0])}
    backend.bind({"t": tree, "m": nn.Linear(1, 1)})
    leaves = backend.snapshot(reversed(backend.paths("params")["t"]))
    packed = backend.pack("t", "params", {path.removeprefix("t."): leaf for path, leaf in leaves.items()})
    assert optree.tree_structure(packed) == optree.tree_structure(tree)
    assert_close(packed["b"][0], [1, 1])
    assert list(backend.unpack("t", "params", packed)) == ["a", "b.0", "b.1"]
    with pytest.raises(ValueError, match="structure"):
        backend.unpack("t", "params", {"a": torch.ones(1)})
    assert backend.pack("t", "buffers", {}) == {} == backend.unpack("t", "buffers", {})


def test_modules_pack_into_the_dict_itself() -> None:
    backend = bound(nn.Linear(2, 1))
    leaves = backend.snapshot(backend.paths("params")[""])
    assert backend.pack("", "params", leaves) is leaves
    assert backend.unpack("", "params", leaves) is leaves
    for wrong in ({"weight": leaves["weight"]}, {**leaves, "more": 1}, [1, 2]):
        with pytest.raises(ValueError, match="weight"):
            backend.unpack("", "params", wrong)


def test_one_tensor_is_a_tree() -> None:
    backend = Backend()
    backend.bind({"": torch.ones(2), "temperature": torch.zeros(())})
    assert backend.paths("params") == {"": ("param",), "temperature": ("temperature",)}
    assert backend.pack("", "params", {"param": torch.ones(2)}).tolist() == [1, 1]


def test_numpy_leaves_follow_the_modules() -> None:
    backend = Backend()
    backend.bind({"weights": {"a": np.zeros(2)}, "net": nn.Linear(1, 1)})
    assert list(backend.paths("params")) == ["weights", "net"]
    assert backend.get(["weights.a"])["weights.a"].dtype == torch.float32
    assert bound({"a": np.zeros(2)}).get(["a"])["a"].dtype == torch.float64


def test_a_tree_has_no_forward() -> None:
    with pytest.raises(UnknownModelError, match="without a forward pass"):
        call(weights(), torch.ones(1))
    with pytest.raises(UnknownModelError, match="without a forward pass"):
        gradient(backend := weights(), lambda: call(backend, torch.ones(1)), {"w": torch.ones(2)})


# -- forward -----------------------------------------------------------------------------------------------------------


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


# -- weights -----------------------------------------------------------------------------------------------------------


def test_set_writes_in_place() -> None:
    model = nn.Linear(2, 1)
    backend = bound(model)
    same = model.weight
    backend.set({"weight": np.array([[1.5, 2.5]]), "bias": torch.tensor([3.0], dtype=torch.float64)})
    assert model.weight is same is backend.get(["weight"])["weight"]
    assert model.weight.tolist() == [[1.5, 2.5]] and model.bias.tolist() == [3] and model.bias.requires_grad


def test_snapshots_do_not_change() -> None:
    backend = weights(optimizer=SGD(1.0))
    kept = backend.snapshot(["w"])["w"]
    backend.update({"w": torch.ones(2)}, True)
    assert kept.tolist() == [1, 2] and w(backend).tolist() == [0, 1] and not kept.requires_grad


def test_a_penalty_on_a_snapshot_is_differentiated() -> None:
    backend = bound(mlp())
    x = torch.randn(5, 4)
    paths = backend.paths("params")[""]

    def penalty() -> Tensor:
        return sum((leaf.square().sum() for leaf in backend.snapshot(paths).values()), torch.zeros(()))

    plain = gradient(backend, lambda: call(backend, x).square().mean())
    found = gradient(backend, lambda: call(backend, x).square().mean() + penalty())
    for path, leaf in backend.get(paths).items():
        assert_close(found[path], plain[path] + 2 * leaf)


def test_tied_weights_move_together() -> None:
    model = Tied()
    backend = bound(model, SGD(0.1))
    x = torch.randn(5, 3)
    expected = torch.autograd.grad(model(x).square().mean(), [model.first.weight])[0]
    grads = gradient(backend, lambda: call(backend, x).square().mean())
    assert_close(grads["first.weight"], expected)
    before = model.first.weight.detach().clone()
    backend.update(grads, True)
    assert_close(model.second.weight, before - 0.1 * expected)
    other = {"first.weight": torch.eye(3)}
    assert_close(backend.apply("", other, (x,), {}, training=True), torch.tanh(x))
    at = gradient(backend, lambda: call(backend, x).square().mean(), other)["first.weight"]
    free = torch.eye(3).requires_grad_()
    assert_close(at, torch.autograd.grad((torch.tanh(x @ free.T) @ free.T).square().mean(), free)[0])


# -- gradient ----------------------------------------------------------------------------------------------------------


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


def w_of(backend: Backend, path: str) -> Tensor:
    found: Tensor = backend.get([path])[path]
    return found


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


# -- update ------------------------------------------------------------------------------------------------------------

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


# -- native optimizers -------------------------------------------------------------------------------------------------


def test_native_paths() -> None:
    model = mlp()
    backend = bound(model)
    assert backend.native_paths(Adam(0.1)) is None
    assert backend.native_paths(torch.optim.Adam([model.get_parameter("2.bias"), model.get_parameter("0.weight")])) == (
        "0.weight",
        "2.bias",
    )
    tied = Tied()
    assert bound(tied).native_paths(torch.optim.SGD(tied.parameters(), 0.1)) == ("first.weight",)
    compiled = compiled_of(model)
    assert bound(compiled).native_paths(torch.optim.SGD(compiled.parameters(), 0.1)) == backend.paths("params")[""]


def test_native_optimizers_that_do_not_fit() -> None:
    model, other = mlp(), mlp()
    backend = bound(model)
    paths = backend.paths("params")[""]
    for optimizer, words in [
        (torch.optim.SGD(other.parameters(), 0.1), r"does not hold 0\.weight.*build it from model.parameters\(\)"),
        (torch.optim.SGD([model.get_parameter("0.weight")], 0.1), r"does not hold 0\.bias, 2\.weight, 2\.bias"),
        (
            torch.optim.SGD([*model.parameters(), other.get_parameter("2.bias")], 0.1),
            r"no parameters of the models, of shapes \[3\]",
        ),
        (torch.optim.LBFGS(model.parameters()), "needs a closure"),
        (object(), "builtins.object, but the model is a torch one"),
        (OptimizerSpec(0.1), "torch has nothing for"),
    ]:
        with pytest.raises(OptimizerError, match=words):
            backend.attach([(optimizer, paths)])
    big = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(OptimizerError, match="and 3 more"):
        bound(big, torch.optim.SGD(other.parameters(), 0.1))


def test_a_failed_attach_changes_nothing() -> None:
    model = mlp()
    backend = bound(model, SGD(0.5))
    with pytest.raises(OptimizerError):
        backend.attach([(object(), backend.paths("params")[""])])
    assert backend.get_hyper(0, "learning_rate") == 0.5


def test_schedulers_of_torch_see_the_steps() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    backend = bound(model, optimizer)
    for expected in (0.5, 0.25):
        backend.update(backend.snapshot(["weight", "bias"]), True)
        scheduler.step()  # would warn, had the optimizer not stepped
        assert backend.get_hyper(0, "learning_rate") == expected


def test_step_hooks_of_torch_run() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    seen: list[bool] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad is not None))
    backend = bound(model, optimizer)
    backend.update(backend.snapshot(["weight", "bias"]), True)
    assert seen == [True]


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda params: SGD(0.1), ("learning_rate",)),
        (lambda params: Momentum(0.1), ("learning_rate", "momentum")),
        (lambda params: Adam(0.1), ("learning_rate", "momentum")),
        (lambda params: AdamW(0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.SGD(params, 0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.Adam(params, 0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.Adagrad(params, 0.1), ("learning_rate", "weight_decay")),
        (lambda params: torch.optim.Rprop(params, 0.1), ("learning_rate",)),
    ],
)
def test_hyper(make: Callable[[Any], Any], names: tuple[str, ...]) -> None:
    model = mlp()
    backend = bound(model, make([{"params": model[0].parameters()}, {"params": model[2].parameters()}]))
    assert backend.hyper_names(0) == names
    assert backend.get_hyper(0, "learning_rate") == 0.1
    for number, name in enumerate(names):
        backend.set_hyper(0, name, 0.25 + number / 100)
    assert [backend.get_hyper(0, name) for name in names] == [0.25 + number / 100 for number in range(len(names))]


def test_hyper_reaches_every_group_and_keeps_tensors() -> None:
    model = mlp()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=rate)
    backend = bound(model, optimizer)
    backend.set_hyper(0, "learning_rate", 0.5)
    backend.set_hyper(0, "momentum", 0.7)
    backend.set_hyper(0, "weight_decay", 0.25)
    for group in optimizer.param_groups:
        assert isinstance(group["lr"], Tensor) and group["lr"] == 0.5
        assert group["betas"] == (0.7, 0.999) and group["weight_decay"] == 0.25
    assert backend.get_hyper(0, "learning_rate") == 0.5


def test_a_new_rate_counts_in_the_next_update() -> None:
    backend = weights((1.0, 2.0), SGD(0.1))
    backend.update({"w": torch.ones(2)}, True)
    backend.set_hyper(0, "learning_rate", 0.5)
    backend.update({"w": torch.ones(2)}, True)
    assert_close(w(backend), [0.4, 1.4])


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


# -- random numbers ----------------------------------------------------------------------------------------------------


def dropped(backend: Backend, key: DrawKey) -> Tensor:
    out: list[Tensor] = []
    backend.run_body(lambda: out.append(call(backend, torch.ones(64))), key)
    return out[0]


def test_dropout_follows_the_key() -> None:
    backend = bound(nn.Dropout(0.5))
    first = dropped(backend, KEY)
    assert torch.equal(dropped(backend, KEY), first)
    for other in (KEY._replace(seed=2), KEY._replace(stream=5), KEY._replace(step=4)):
        assert not torch.equal(dropped(backend, other), first)


def test_a_body_leaves_the_users_random_state_as_it_was() -> None:
    backend = bound(nn.Dropout(0.5))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dropped(backend, KEY)
    backend.run_body(lambda: print(dropped(backend, KEY)), KEY)  # one step within another
    assert torch.equal(torch.get_rng_state(), before) and torch.initial_seed() == 5

    def fails() -> None:
        torch.rand(1)
        raise KeyError

    with pytest.raises(KeyError):
        backend.run_body(fails, KEY)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_generator_of_an_accelerator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Generator()  # stands in for the one of the device
    if kind == "cuda":
        module = SimpleNamespace(default_generators=(torch.Generator(), own))
    else:
        module = SimpleNamespace(manual_seed=own.manual_seed, get_rng_state=own.get_state, set_rng_state=own.set_state)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    generators = GlobalGenerators(torch.device(kind, 1))
    before, state = own.get_state(), generators.state()
    generators.seed(7)
    assert own.initial_seed() == 7 == torch.default_generator.initial_seed()
    generators.put_back(state)
    assert torch.equal(own.get_state(), before)


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


DRAWS: dict[str, Callable[[protocol.RandomBackend, DrawKey], Any]] = {
    "normal": lambda random, key: random.normal(key, (20000,)),
    "uniform": lambda random, key: random.uniform(key, (20000,), -1.0, 3.0),
    "bernoulli": lambda random, key: random.bernoulli(key, 0.3, (20000,)),
    "integers": lambda random, key: random.integers(key, 2, 5, (20000,)),
    "permutation": lambda random, key: random.permutation(key, 100),
    "beta": lambda random, key: random.beta(key, 2.0, 3.0, (20000,)),
    "categorical": lambda random, key: random.categorical(key, torch.tensor([0.0, math.log(3.0)]).expand(20000, 2)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_equal_keys_draw_equal_numbers(name: str) -> None:
    random = bound(nn.Linear(1, 1).double()).random
    state = torch.get_rng_state()
    first = DRAWS[name](random, KEY)
    random.normal(KEY, (3,))
    assert torch.equal(DRAWS[name](random, KEY), first)
    for other in (KEY._replace(seed=2), KEY._replace(stream=5), KEY._replace(step=4)):
        assert not torch.equal(DRAWS[name](random, other), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "mean", "variance", "dtype"),
    [
        ("normal", 0.0, 1.0, torch.float64),
        ("uniform", 1.0, 16 / 12, torch.float64),
        ("bernoulli", 0.3, 0.21, torch.float64),
        ("integers", 3.0, 2 / 3, torch.int32),
        ("beta", 0.4, 0.04, torch.float64),
        ("categorical", 0.75, 0.1875, torch.int32),
    ],
)
def test_draws_have_their_distribution(name: str, mean: float, variance: float, dtype: torch.dtype) -> None:
    draws = DRAWS[name](bound(nn.Linear(1, 1).double()).random, KEY)
    assert draws.dtype == dtype and draws.shape == (20000,)
    assert abs(draws.double().mean().item() - mean) < 5 * math.sqrt(variance / 20000)
    assert abs(draws.double().var().item() / variance - 1) < 0.06


def test_the_range_of_draws() -> None:
    random = Backend().random
    assert random.uniform(KEY, (1000,), -1.0, 3.0).min() >= -1
    assert set(random.integers(KEY, 2, 5, (100,)).tolist()) == {2, 3, 4}
    assert set(random.bernoulli(KEY, 0.5, (100,)).tolist()) == {0.0, 1.0}
    assert sorted(random.permutation(KEY, 10).tolist()) == list(range(10))
    assert random.categorical(KEY, torch.zeros(2, 3, 4)).shape == (2, 3)
    assert random.normal(KEY, ()).shape == ()


def test_seeds_do_not_collide() -> None:
    lower = {mix(DrawKey(0, 123456789, step)) & 0xFFFFFFFF for step in range(100_000)}
    assert len(lower) == 100_000  # of which torch's CPU generator uses the lower half
    assert len({mix(DrawKey(seed, stream, 0)) for seed in range(50) for stream in range(50)}) == 2500
    assert all(0 <= mix(DrawKey(seed, 2**32 - 1, 10**9)) < 2**63 for seed in (-5, 0, 2**70))


# -- arrays in ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_fits_is_returned_as_it_is() -> None:
    backend = bound(mlp())
    inner = {"a": [torch.ones(2), (torch.ones(1),)], "b": "text", "c": None, "d": 3}
    for batch in ({"xs": torch.ones(2), "ys": torch.tensor([1])}, inner, torch.ones(2), (torch.ones(2), 1), {}):
        assert backend.convert(batch) is batch


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.ones(2), torch.float32),
        (np.ones(2, np.float16), torch.float32),
        (np.ones(2, np.longdouble), torch.float32),
        (np.ones(2, ">f8"), torch.float32),
        (np.array([1, 2]), torch.int64),
        (np.array([1, 2], ">i4"), torch.int32),
        (np.array([1, 2], np.uint8), torch.uint8),
        (np.array([1, 2], np.uint16), torch.int64),
        (np.array([1, 2], np.uint32), torch.int64),
        (np.array([True, False]), torch.bool),
        (np.ones(2, np.complex64), torch.complex64),
        (np.float64(2), torch.float32),
        (np.int32(2), torch.int32),
        (np.arange(4.0)[::-1], torch.float32),
        (np.ones((0, 3)), torch.float32),
        (torch.ones(2, dtype=torch.float64), torch.float32),
        (torch.ones(2, dtype=torch.bfloat16), torch.float32),
        (torch.ones(2, dtype=torch.uint8), torch.uint8),
        (torch.ones(2, requires_grad=True), torch.float32),
        (nn.Parameter(torch.ones(2)), torch.float32),
    ],
)
def test_convert(value: Any, dtype: torch.dtype) -> None:
    backend = bound(mlp())
    for found in (backend.convert(value), backend.convert({"a": [value]})["a"][0], backend.convert({"a": value})["a"]):
        assert isinstance(found, Tensor) and found.dtype == dtype and not found.requires_grad
        assert found.shape == value.shape
        expected = value.detach().to(dtype).numpy() if isinstance(value, Tensor) else value
        np.testing.assert_array_equal(found.numpy(), expected)


def test_convert_follows_the_parameters() -> None:
    assert bound(mlp().double()).convert(np.ones(1, np.float32)).dtype == torch.float64
    assert bound(mlp().to(torch.bfloat16)).convert(np.ones(1)).dtype == torch.bfloat16
    assert bound(nn.Identity()).convert(np.ones(1)).dtype == torch.float32


def test_numpy_batches_are_copied() -> None:
    backend = bound(mlp())
    buffer = np.ones(2, np.float32)
    found = backend.convert({"xs": buffer, "more": [buffer]})
    buffer[:] = 7
    assert found["xs"].tolist() == [1, 1] == found["more"][0].tolist()
    frozen = np.ones(2, np.float32)
    frozen.flags.writeable = False
    assert backend.convert(frozen).tolist() == [1, 1]


def test_what_is_no_array_is_left_alone() -> None:
    backend = bound(mlp())
    marker = object()
    batch = {"a": np.ones(1), "b": "text", "c": b"bytes", "d": None, "e": True, "f": 2.5, "g": 3, "h": marker}
    found = backend.convert(batch)
    assert isinstance(found.pop("a"), Tensor) and list(found) == list("bcdefgh")
    assert all(found[name] is batch[name] for name in found)
    words = np.array(["a", "b"])
    assert backend.convert({"words": words})["words"] is words


def test_arrays_of_other_libraries() -> None:
    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            return np.array([1.0, 2.0])

    class Dlpack:
        def __init__(self) -> None:
            self.inner = torch.tensor([3.0, 4.0], dtype=torch.float64)

        def __dlpack__(self, **options: Any) -> Any:
            return self.inner.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return self.inner.__dlpack_device__()

    backend = bound(mlp())
    assert backend.convert(Foreign()).tolist() == [1, 2]
    found = backend.convert(Dlpack())
    assert found.tolist() == [3, 4] and found.dtype == torch.float32


def test_bfloat16_both_ways() -> None:
    tensor = torch.tensor([1.5, -2.0]).to(torch.bfloat16)
    host = to_numpy(tensor)
    np.testing.assert_array_equal(host.astype(np.float32), [1.5, -2.0])
    assert torch.equal(from_numpy(host, torch.bfloat16), tensor)
    assert Backend().signature(tensor) == ((2,), host.dtype)


# -- arrays out --------------------------------------------------------------------------------------------------------


def test_concrete() -> None:
    backend = weights()
    grown = w(backend) * 2
    plain = torch.ones(2)
    assert backend.concrete(plain) is plain
    assert not backend.concrete(grown).requires_grad
    tree = {"a": [grown, plain], "b": 3}
    found = backend.concrete(tree)
    assert not found["a"][0].requires_grad and found["a"][1] is plain and found["b"] == 3
    assert backend.concrete({"a": plain})["a"] is plain


def test_adopt_keeps_what_was_handed_back() -> None:
    backend = weights()
    old = {"a": w(backend) * 2, "b": torch.ones(2), "c": None}
    seen = backend.concrete(old)
    found = backend.adopt(old, {"a": seen["a"], "b": np.zeros(2), "c": None})
    assert found["a"] is old["a"] and found["b"].tolist() == [0, 0] and found["b"].dtype == torch.float32
    assert backend.adopt(old["a"], old["a"].detach()) is old["a"]
    for other in (seen["a"] + 1, seen["a"][:1], seen["a"].flip(0), seen["a"].double()):
        new = backend.adopt(old["a"], other)
        assert new is not old["a"] and not new.requires_grad
    shaped = backend.adopt(old, [np.ones(1)])
    assert isinstance(shaped[0], Tensor)
    assert backend.adopt(torch.ones(1), {"deeper": np.ones(1)})["deeper"].tolist() == [1]


def test_adopt_knows_a_leaf_by_its_memory_in_another_structure() -> None:
    backend = weights()
    old = {"a": w(backend) * 2, "b": torch.ones(2)}
    seen = backend.concrete(old)
    found = backend.adopt(old, {**seen, "more": [seen["a"], np.zeros(2), None, seen["a"] + 1]})
    assert found["a"] is old["a"] and found["b"] is old["b"] and found["more"][0] is old["a"]
    assert found["more"][1].tolist() == [0, 0] and found["more"][2] is None and not found["more"][3].requires_grad


def test_what_an_open_objective_differentiates() -> None:
    backend = weights()
    parameter = w(backend)
    assert not backend.is_differentiated(parameter) and not backend.is_differentiated({"a": parameter * 2})

    def objective() -> Tensor:
        y = w(backend) * 2
        assert backend.is_differentiated(y) and backend.is_differentiated({"a": [torch.ones(1), y]})
        assert not any(map(backend.is_differentiated, (torch.ones(2), {"a": 1.0}, None, "a", y.detach())))
        return y.sum()

    gradient(backend, objective)


def test_a_kept_leaf_keeps_its_gradient() -> None:
    backend = weights((1.0, 2.0))

    def objective() -> Tensor:
        y = w(backend) * 3
        return backend.adopt(y, backend.concrete(y)).sum()  # type: ignore[no-any-return]

    assert gradient(backend, objective)["w"].tolist() == [3, 3]


def test_to_host_copies_and_counts() -> None:
    backend = bound(mlp())
    source = torch.ones(2, requires_grad=True)
    host = backend.to_host(source)
    host[0] = 5
    assert source.tolist() == [1, 1] and isinstance(host, np.ndarray) and backend.transfers == 1
    array = np.ones(2)
    found = backend.to_host({"a": source, "b": [array, "text", None, 2.5], "c": torch.tensor(3)})
    array[0] = 9
    assert found["b"][0].tolist() == [1, 1] and found["b"][1:] == ["text", None, 2.5]
    assert found["c"].shape == () and found["c"] == 3 and backend.transfers == 3
    for strange in (torch.ones(2, 3).T, torch.ones(1).expand(4), torch.tensor([1 + 2j]).conj()):
        np.testing.assert_array_equal(backend.to_host(strange), strange.resolve_conj().numpy())


def test_scalars_are_fetched_together() -> None:
    backend = bound(mlp())
    losses: list[Any] = [torch.tensor(float(n), requires_grad=n % 2 == 0) for n in range(100)]
    found = backend.to_host([*losses, torch.tensor(True), torch.tensor(7), torch.tensor(8)])
    assert backend.transfers == 3
    assert [float(value) for value in found[:100]] == [float(n) for n in range(100)]
    assert all(isinstance(value, np.ndarray) and value.shape == () for value in found)
    assert [value.dtype.kind for value in found[100:]] == ["b", "i", "i"] and found[102] == 8


def test_signature_and_kinds() -> None:
    backend = Backend()
    assert backend.signature(torch.ones(2, 3)) == ((2, 3), np.dtype(np.float32))
    assert backend.signature(torch.tensor(1)) == ((), np.dtype(np.int64))
    assert backend.signature(torch.ones(2, dtype=torch.bool)) == ((2,), np.dtype(bool))
    assert backend.signature(np.ones(3)) == ((3,), np.dtype(np.float64))
    assert backend.signature(2.5)[0] == ()
    assert backend.is_array(torch.ones(1)) and backend.is_array(np.ones(1)) and backend.is_array(np.float32(1))
    assert not any(backend.is_array(value) for value in (1, 1.0, "a", None, [torch.ones(1)]))
    assert backend.is_ready(torch.ones(1)) is True


def test_trees() -> None:
    backend = Backend()
    tree = {"b": (1, None), "a": [2]}
    assert backend.tree_map(lambda x: (x or 0) + 1, tree) == {"b": (2, 1), "a": [3]}
    assert list(backend.tree_map(lambda x: x, tree)) == ["b", "a"]
    assert backend.tree_map(lambda x, y: x + y, {"a": 1}, {"a": 2}) == {"a": 3}
    assert backend.tree_leaves(tree) == [2, 1, None]


# -- xp ----------------------------------------------------------------------------------------------------------------

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


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_those_of_torch(reduction: Any) -> None:
    losses = Backend.losses
    y, t = torch.randn(5, 3), torch.rand(5, 3)
    natives: list[tuple[str, Callable[..., Tensor]]] = [
        ("binary_cross_entropy", F.binary_cross_entropy_with_logits),
        ("mse", F.mse_loss),
        ("mae", F.l1_loss),
        ("huber", F.huber_loss),
    ]
    for name, native in natives:
        assert torch.equal(getattr(losses, name)(y, t, reduction), native(y, t, reduction=reduction))
        assert getattr(losses, name)(y, (t > 0.5), reduction=reduction).dtype == torch.float32
    labels = torch.tensor([0, 2, 1, 1, 0])
    expected = F.cross_entropy(y, labels, reduction=reduction)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(losses.cross_entropy(y, labels.to(dtype), reduction), expected)
    assert_close(losses.cross_entropy(y, F.one_hot(labels, 3), reduction), expected)
    assert_close(losses.cross_entropy(y, F.one_hot(labels, 3).double(), reduction), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_class_axis_is_last(reduction: Any) -> None:
    y, labels = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    expected = F.cross_entropy(y.movedim(-1, 1), labels, reduction=reduction)
    assert_close(Backend.losses.cross_entropy(y, labels, reduction), expected)
    soft = F.one_hot(labels, 3).float()
    assert_close(Backend.losses.cross_entropy(y, soft, reduction), expected)
    assert_close(Backend.losses.cross_entropy(y[0, 0], labels[0, 0]), F.cross_entropy(y[0, 0], labels[0, 0]))


def test_losses_that_cannot_be() -> None:
    losses = Backend.losses
    for name in ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"):
        with pytest.raises(ValueError, match="reduction='average'"):
            getattr(losses, name)(torch.ones(2, 2), torch.ones(2, 2), "average")
    for labels in (torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5)):
        with pytest.raises(LossError, match="integer labels of shape"):
            losses.cross_entropy(torch.ones(5, 3), labels)


# -- torch.compile and DistributedDataParallel -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_learner_names_a_backend_of_torch_compile(compiler: str) -> None:
    first, batch = mlp(), (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    losses: dict[str | bool, list[float]] = {}
    counters.clear()
    for compile in (False, compiler):
        learner = lc.Learner(
            deepcopy(first), lc.losses.cross_entropy, lc.Adam(0.01), default_callbacks=False, compile=compile
        )
        phase = lc.TrainingPhase()
        losses[compile] = [float(learner.run_step(phase, batch).loss) for _ in range(3)]
    assert counters["stats"]["unique_graphs"] > 0
    np.testing.assert_allclose(losses[compiler], losses[False], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compiler", ["xla", "inductr"])
def test_a_backend_that_torch_compile_does_not_have(compiler: str) -> None:
    with pytest.raises(ValueError, match=f"'eager'.*'inductor'.* on the torch backend, not '{compiler}'"):
        lc.Learner(mlp(), compile=compiler)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_compiled_steps_agree_with_eager_ones() -> None:
    first = mlp()
    models = [mlp(), mlp()]
    for model in models:
        model.load_state_dict(first.state_dict())
    eager, compiled = bound(models[0], Adam(0.01)), bound(models[1], Adam(0.01), compile="aot_eager")
    assert compiled.paths("params") == eager.paths("params") and compiled.native("") is models[1]
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def loss(backend: Backend) -> Tensor:
        return F.cross_entropy(call(backend, x), y)

    for backend in (eager, compiled):
        for _ in range(3):
            backend.update(gradient(backend, partial(loss, backend)), True)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(a, b)
    assert_close(call(eager, x, training=False), call(compiled, x, training=False))

    def penalty(backend: Backend) -> Tensor:  # what torch.compile makes cannot be differentiated twice
        slope: Tensor = backend.grad(lambda z: call(backend, z).square().sum(), ())(x)
        return slope.square().sum()

    def mean(backend: Backend) -> Tensor:
        result: Tensor = call(backend, x).mean()
        return result

    def meta(backend: Backend) -> Tensor:
        grads = gradient(backend, lambda: call(backend, x).square().mean())
        return sum((grad.square().sum() for grad in grads.values()), torch.zeros(()))

    for fn in (penalty, meta):
        pairs = [gradient(backend, partial(fn, backend)) for backend in (eager, compiled)]
        for path in pairs[0]:
            assert_close(pairs[0][path], pairs[1][path], 1e-5)
    other = {path: leaf + 1 for path, leaf in eager.snapshot(eager.paths("params")[""]).items()}
    assert_close(*(backend.apply("", other, (x,), {}, training=False) for backend in (eager, compiled)))
    assert_close(*(gradient(backend, partial(mean, backend), other)["0.weight"] for backend in (eager, compiled)))


def test_a_module_in_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inner = norm()
        twin = norm()
        twin.load_state_dict(inner.state_dict())
        backend, plain = bound(nn.parallel.DistributedDataParallel(inner), SGD(0.1)), bound(twin, SGD(0.1))
        assert backend.paths("params") == plain.paths("params")
        x = torch.randn(6, 4)

        def loss(one: Backend, update: bool) -> Any:
            return call(one, x, update=update).pow(3).mean()

        for update in (True, False, True):
            for one in (backend, plain):
                one.update(gradient(one, partial(loss, one, update)), True)
        for a, b in zip(inner.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        with pytest.raises(GradientError, match="not averaged over processes"):
            gradient(backend, lambda: call(backend, x).mean(), {"1.bias": torch.ones(3)})
        assert backend.apply("", {}, (x,), {}, training=False).shape == (6, 3)
    finally:
        torch.distributed.destroy_process_group()


# -- checkpoints


def grouped(*rates: float, kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> lc.Learner:
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(2, 2) for _ in rates])
    groups = [{"params": list(one.parameters()), "lr": rate} for one, rate in zip(layers, rates, strict=True)]
    data = [(torch.ones(3, 2), torch.zeros(3, 2))] * 2, None
    return lc.Learner(layers, lc.losses.mse, optimizer=kind(groups), data=data, default_callbacks=False)


def rates_of(learner: lc.Learner) -> list[float]:
    return [group["lr"] for group in learner.optimizer[""].param_groups]


def test_every_parameter_group_keeps_its_own_rate(tmp_path: Path) -> None:
    whole, first, second = grouped(0.1, 0.001), grouped(0.1, 0.001), grouped(0.5, 0.5)
    whole.fit(2)
    first.fit(1)
    path = first.save(tmp_path / "x")
    assert rates_of(first) == [0.1, 0.001]
    second.load(path)
    assert rates_of(second) == [0.1, 0.001]
    second.fit(1)
    np.testing.assert_equal(second.export_weights(), whole.export_weights())


def test_a_rate_is_set_in_all_groups_of_an_optimizer_and_in_one_of_several_optimizers() -> None:
    learner = grouped(0.1, 0.001)
    assert learner.hyper.learning_rate == 0.1
    with pytest.warns(UserWarning, match=r"had a learning_rate of 0\.1, 0\.001, and all have 0\.5 now"):
        learner.hyper.learning_rate = 0.5
    assert rates_of(learner) == [0.5, 0.5]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    optimizers = {name: torch.optim.SGD(model[name].parameters(), 0.1) for name in model}
    learner = lc.Learner(model, lc.losses.mse, optimizer=optimizers)
    learner.hyper["body.learning_rate"] = 0.001
    assert [one.param_groups[0]["lr"] for one in optimizers.values()] == [0.001, 0.1]


def test_other_groups_and_kinds_are_refused(tmp_path: Path) -> None:
    first = grouped(0.1, 0.001)
    first.fit(1)
    path = first.save(tmp_path / "x")
    other = grouped(0.3, 0.4, kind=torch.optim.AdamW)
    with pytest.raises(CheckpointError, match="AdamW here, Adam in the checkpoint"):
        other.load(path)
    single = grouped(0.1, 0.001)
    single.optimizer[""].add_param_group({"params": [], "lr": 0.7})
    with pytest.raises(CheckpointError, match=r"param_groups\[2\]\.learning_rate: not there"):
        single.load(path)
    assert rates_of(other) == [0.3, 0.4] and rates_of(single) == [0.1, 0.001, 0.7]
    assert not single.optimizer[""].state and not other.optimizer[""].state


def test_every_misfit_of_a_state_is_named() -> None:
    backend = weights(optimizer=lc.Adam(0.1))
    backend.update({"w": torch.ones(2)}, True)
    before = backend.export_optimizers()
    wrong = {**before, "0.w.exp_avg": np.zeros((3,), "f4"), "0.w.exp_avg_sq": np.zeros((2,), "f2"), "1.w.x": np.ones(1)}
    with pytest.raises(ValueError, match=r"(?s)exp_avg: shape \[3\].*exp_avg_sq: dtype float16.*1\.w\.x: no optimizer"):
        backend.import_optimizers(wrong)
    np.testing.assert_equal(backend.export_optimizers(), before)


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


def test_an_average_of_half_precision_is_kept_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(model.weight)
    learner = lc.Learner(
        model,
        lc.losses.mse,
        torch.optim.SGD(model.parameters(), 0.25),
        data=([(np.ones((4, 1), np.float32),) * 2] * 300, None),
        callbacks=[lc.AveragedWeights(0.999)],
        default_callbacks=False,
    )
    learner.fit(2)
    average, weight = 0.0, 0.0
    for _ in range(600):
        weight += 0.5 * (1 - weight)
        average = 0.999 * average + 0.001 * weight
    kept = learner.shared.averaged_params["weight"]
    assert kept.dtype == torch.float32
    assert kept.item() == pytest.approx(average, rel=1e-3)
    learner.params.value = learner.shared.averaged_params
    assert model.weight.dtype == torch.bfloat16


def test_numpy_arrays_in_operators_say_what_to_write() -> None:
    class Weighted(lc.TrainingPhase):
        def __init__(self) -> None:
            self.table = np.ones(3)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.y = self.table * learner.model(state.xs)

    learner = lc.Learner(torch.nn.Linear(3, 3), lc.losses.mse)
    with pytest.raises(TypeError, match=r"numpy\.ndarray") as caught:
        learner.run_step(Weighted(), {"xs": np.ones((2, 3), np.float32)})
    assert "write learner.xp.asarray(self.table)" in "".join(caught.value.__notes__)
