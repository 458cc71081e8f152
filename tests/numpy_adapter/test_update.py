"""The NumPy adapter: updates inside a step, by the formulas of the optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan, sqrt
from typing import Any

import numpy as np
import pytest

from loopcore import optimizers as specs
from loopcore.errors import GradientError, OptimizerError
from tests.numpy_adapter.calls import array, bound, close, same

DATA = np.random.default_rng(0)


def reference(spec: Any, w: float, grads: list[float]) -> Iterator[float]:
    """Weight by weight as the documentation of torch.optim writes the algorithms."""
    lr, velocity, m, v = spec.learning_rate, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        if isinstance(spec, specs.Adam):
            if isinstance(spec, specs.AdamW):
                w = w - lr * spec.weight_decay * w
            m = spec.beta1 * m + (1 - spec.beta1) * g
            v = spec.beta2 * v + (1 - spec.beta2) * g**2
            w = w - lr * (m / (1 - spec.beta1**t)) / (sqrt(v / (1 - spec.beta2**t)) + spec.epsilon)
        else:
            velocity = getattr(spec, "momentum", 0.0) * velocity + g
            w = w - lr * velocity
        yield w


@pytest.mark.parametrize(
    "spec",
    [
        specs.SGD(0.1), specs.Momentum(0.1, 0.8), specs.Adam(0.05), specs.Adam(0.1, 0.5, 0.7, 1e-3),
        specs.AdamW(0.05, weight_decay=0.3),
    ],
    ids=repr,
)  # fmt: skip
def test_optimizers_follow_their_formulas(spec: Any) -> None:
    start, grads = DATA.normal(size=3), DATA.normal(size=(12, 3))
    backend = bound({"w": start}, (spec, ("w",)))
    expected = [list(reference(spec, w, list(column))) for w, column in zip(start, grads.T, strict=True)]
    for step, grad in enumerate(grads):
        assert backend.update({"w": grad}, True) is True
        close(backend.get(["w"])["w"], [column[step] for column in expected])


@pytest.mark.parametrize("spec", [specs.SGD(0.1), specs.Momentum(0.1), specs.Adam(), specs.AdamW()], ids=repr)
def test_optimizers_keep_float32(spec: Any) -> None:
    backend = bound({"w": np.ones(2, np.float32), "s": np.float32(1)}, (spec, ("w", "s")))
    backend.update({"w": np.ones(2), "s": np.float64(1)}, True)
    assert {value.dtype for value in backend.get(["w", "s"]).values()} == {np.dtype(np.float32)}
    assert backend.get(["s"])["s"].shape == ()


def test_a_skipped_update_changes_nothing() -> None:
    spec, grads = specs.Adam(0.1), [0.3, -0.2]
    backend = bound({"w": np.zeros(1)}, (spec, ("w",)))
    for apply in (False, np.bool_(False), np.array(False)):
        assert backend.update({"w": array(nan)}, apply) is False
    backend.update({"w": array(grads[0])}, np.bool_(True))
    backend.update({"w": array(5)}, False)
    backend.update({"w": array(grads[1])}, np.array(True))
    close(backend.get(["w"])["w"], [[*reference(spec, 0.0, grads)][-1]])


def test_update_touches_only_the_optimizers_and_paths_of_its_gradients() -> None:
    adam = specs.Adam(0.1)
    backend = bound({"a": np.zeros(1), "b": np.zeros(1), "c": np.ones(1)}, (adam, ("a",)), (specs.SGD(1.0), ("b",)))
    backend.update({"b": array(1)}, True)
    backend.update({"a": array(0.3)}, True)
    with pytest.raises(OptimizerError, match="no optimizer trains c: leave these out"):
        backend.update({"b": array(1), "c": array(1)}, True)
    found = backend.get(["a", "b", "c"])
    close(found["a"], [*reference(adam, 0.0, [0.3])])  # its count began with its own first gradient
    same(found["b"], array(-1))
    same(found["c"], array(1))


def test_an_update_that_cannot_be_done_in_whole_is_not_begun() -> None:
    backend = bound({"a": np.zeros(1), "b": np.zeros(1)}, (specs.SGD(1.0), ("a",)), (specs.SGD(1.0), ("b",)))
    with pytest.raises(GradientError, match=r"gradient of 'b' has shape \(2,\), the parameter \(1,\)"):
        backend.update({"a": array(1), "b": array(1, 1)}, True)
    same(backend.get(["a"])["a"], array(0))
