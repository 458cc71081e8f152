"""The PyTorch adapter: weights and trees of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import Tensor, nn

from loopcore.errors import (
    UnknownModelError,
)
from loopcore.optimizers import SGD
from loopcore_torch import Backend
from tests.torch_adapter.calls import (
    Tied,
    assert_close,
    bound,
    call,
    gradient,
    mlp,
    seeded,  # noqa: F401, used by all tests here
    w,
    weights,
)

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
