"""The NumPy adapter: arrays in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autograd.tracer import isbox

from tests.numpy_adapter.calls import Point, array, bound, call, close, gradient, linear, same, xp


class Foreign:
    """An array of another framework."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class Capsule:
    """An array that only speaks dlpack."""

    def __dlpack__(self, **options: Any) -> Any:
        return np.arange(3.0).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return np.arange(3.0).__dlpack_device__()


def test_convert() -> None:
    backend = bound({"w": np.ones(1, np.float32)})
    batch = {"x": np.ones((2, 2)), "y": np.arange(2, dtype=np.uint8), "ok": np.array([True]), "half": np.float16(1),
             "own": np.ones(2, np.float32), "foreign": Foreign([1.5]), "ints": [Foreign([1])], "n": 3, "f": 0.5,
             "text": "a", "bytes": b"a", "none": None, "class": Foreign, "point": Point(np.ones(1), 2)}  # fmt: skip
    found = backend.convert(batch)
    kinds = {"x": "float32", "y": "uint8", "ok": "bool", "half": "float32", "own": "float32", "foreign": "float32"}
    assert {name: str(found[name].dtype) for name in kinds} == kinds
    assert found["ints"][0].dtype == np.int64 and type(found["point"]) is Point and found["point"].x.dtype == np.float32
    assert all(found[name] is batch[name] for name in ("n", "f", "text", "bytes", "none", "class"))
    same(backend.convert(Capsule()), np.arange(3.0))
    for value in batch.values():
        if isinstance(value, np.ndarray):
            value[...] = 0
    assert found["x"].all() and found["own"].all() and found["ok"].all() and found["y"][1] == 1


def test_convert_returns_what_does_not_change() -> None:
    backend = linear()
    for tree in ({"a": [1, (2.0, None)]}, [1, "a"], (), {}, "text", None, Point(1, 2), object()):
        assert backend.convert(tree) is tree
    assert backend.convert(array(1.0)) is not array(1.0)


def test_convert_of_boxes_keeps_the_gradient() -> None:
    backend = bound({"w": array(1, 2, dtype=np.float32)})

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        wide = xp.astype(w, np.float64)
        assert backend.convert({"w": w})["w"] is w and backend.convert(wide).dtype == np.float32
        return xp.sum(backend.convert(wide) * 3.0)

    close(gradient(backend, objective)["w"], array(3, 3))


def test_concrete_is_plain_and_read_only() -> None:
    backend, seen = linear(), dict[str, Any]()
    mine = np.ones(2)

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen["tree"] = backend.concrete({"w": [w], "sum": xp.sum(w), "mine": mine, "n": 1})
        return xp.sum(w)

    gradient(backend, objective)
    tree = seen["tree"]
    assert not any(map(isbox, backend.tree_leaves(tree))) and tree["sum"] == 3 and tree["n"] == 1
    for view in (tree["w"][0], tree["mine"]):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5
    mine[0] = 2  # only the view is read-only
    assert tree["mine"][0] == 2
    untouched = {"n": 1, "s": "a", "scalar": np.float64(1)}
    assert backend.concrete(untouched) is untouched


def test_adopt_keeps_unchanged_leaves_and_converts_replaced_ones() -> None:
    backend = bound({"w": array(1, 2, dtype=np.float32)})

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        old = {"a": w * 2.0, "b": w * 3.0, "sum": xp.sum(w), "frozen": np.ones(2, np.float32)}
        old["stopped"] = backend.stop_gradient(old["a"])  # the same memory, but a constant
        read = backend.concrete(old)
        kept = backend.adopt(old, read)
        assert all(kept[name] is old[name] for name in old)
        more = backend.adopt(old, {"b": read["b"], "new": [read["a"], np.ones(2)]})
        assert more["b"] is old["b"] and more["new"][1].dtype == np.float32
        changed = backend.adopt(old["a"], read["a"] * 1)
        assert not isbox(changed) and backend.adopt(old["b"], read["b"]) is old["b"]
        return xp.sum(kept["a"] + changed)

    close(gradient(backend, objective)["w"], array(2, 2))


def test_what_an_open_objective_differentiates() -> None:
    backend = linear()
    seen: list[Any] = []

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.append({"a": [w * 2, np.ones(2)]})
        assert backend.is_differentiated(w) and backend.is_differentiated(seen[0])
        assert not any(map(backend.is_differentiated, (np.ones(2), {"a": 1.0}, None, "a", backend.concrete(w))))
        return xp.sum(w)

    scope: dict[str, Any] = {}
    backend.gradient(lambda: scope.setdefault("loss", objective()), [("w",)], None, [scope])
    assert not backend.is_differentiated(scope["loss"]) and not backend.is_differentiated(backend.get(["w"]))


def test_to_host_copies_and_counts() -> None:
    backend = linear()
    mine = {"a": np.ones(2), "b": [np.float32(1), 3, "s"], "c": None}
    found = backend.to_host(mine)
    mine["a"][:] = 0  # type: ignore[index]
    same(found["a"], np.ones(2))
    assert backend.transfers == 2 and type(found["b"][0]) is np.ndarray and found["b"][1:] == [3, "s"]
    seen: list[Any] = []

    def objective() -> Any:
        seen.append(backend.to_host(backend.get(["w"])))
        return call(backend, array(1, 1))

    gradient(backend, objective)
    assert not isbox(seen[0]["w"]) and backend.transfers == 3


def test_small_queries() -> None:
    backend = linear()
    assert backend.is_ready(array(1.0)) and backend.scope().__enter__() is None
    assert backend.is_array(array(1.0)) and backend.is_array(np.float32(1)) and backend.is_array(np.bool_(True))
    assert not any(backend.is_array(value) for value in (1.0, True, None, "a", [np.ones(1)], np.str_("a")))
    assert backend.signature(np.ones((2, 3), np.int8)) == ((2, 3), np.dtype(np.int8))
    assert backend.signature(np.float32(1)) == ((), np.dtype(np.float32))
    seen: list[Any] = []

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.append((backend.is_array(w), backend.signature(w), backend.tree_leaves({"b": w, "a": None})))
        return xp.sum(w)

    gradient(backend, objective)
    assert seen[0][:2] == (True, ((2,), np.dtype(np.float64)))
    assert seen[0][2][0] is None and isbox(seen[0][2][1])


def test_trees() -> None:
    backend = linear()
    tree = {"b": [1, 2], "a": Point(3, None)}
    assert backend.tree_leaves(tree) == [3, None, 1, 2]
    assert backend.tree_map(lambda x, y: (x, y), tree, tree)["a"] == Point((3, 3), (None, None))
    assert backend.tree_map(np.negative, array(1.0)) == -1


def test_stop_gradient_opens_everything() -> None:
    backend = linear()

    def inner(x: Any) -> Any:
        assert not any(map(isbox, backend.tree_leaves(backend.stop_gradient({"x": [x]}))))
        return xp.sum(x * backend.stop_gradient(x))

    found = gradient(
        backend, lambda: xp.sum(backend.grad(inner, [])(backend.get(["w"])["w"]) * backend.get(["w"])["w"])
    )
    close(found["w"], array(1, 2))
