"""The NumPy adapter: weights."""

from __future__ import annotations

import numpy as np
import pytest

from loopcore import optimizers as specs
from tests.numpy_adapter.calls import array, bound, close, dot, gradient, linear, same, stateful, xp


def test_references_and_snapshots_survive_updates() -> None:
    backend = bound((dot, {"w": np.ones(2)}), (specs.SGD(1.0), ("w",)))
    before, copy = backend.get(["w"])["w"], backend.snapshot(["w"])["w"]
    backend.update({"w": np.ones(2)}, True)
    same(before, np.ones(2))
    same(copy, np.ones(2))
    backend.snapshot(["w"])["w"][:] = 9
    same(backend.get(["w"])["w"], np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        before[:] = 3


def test_set_copies_and_adapts_the_dtype() -> None:
    backend = bound((dot, {"w": np.ones(2, np.float32)}))
    mine = array(3, 4)
    backend.set({"w": mine})
    mine[:] = 0
    found = backend.get(["w"])["w"]
    same(found, array(3, 4))
    assert found.dtype == np.float32
    backend.set({"w": found})  # of the same dtype
    assert backend.get(["w"])["w"] is not found
    backend = stateful()
    backend.set({"n": np.array(7.0)})
    assert backend.get(["n"])["n"].dtype == np.int64


def test_inside_an_objective_get_and_snapshot_are_differentiated() -> None:
    backend = linear()
    found = gradient(backend, lambda: xp.sum(backend.get(["w"])["w"] * backend.snapshot(["w"])["w"]))
    close(found["w"], array(2, 4))
