"""The PyTorch adapter: arrays in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore_torch import Backend
from loopcore_torch.arrays import from_numpy, to_numpy
from tests.torch_adapter.calls import (
    bound,
    gradient,
    mlp,
    seeded,  # noqa: F401, used by all tests here
    w,
    weights,
)

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
