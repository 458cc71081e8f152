"""The NumPy adapter: gradients of functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from autograd.tracer import isbox

from loopcore.errors import GradientError, LossError
from tests.numpy_adapter.calls import array, bound, call, close, gradient, linear, numeric, same, xp


def test_grad_of_one_and_of_several_arguments() -> None:
    backend = linear()
    close(backend.grad(lambda x: xp.sum(x**2), [])(array(1, 2)), array(2, 4))
    first, second = backend.grad(lambda x, tree: xp.sum(x * tree["a"][0]), [])(
        array(1, 2), {"a": [array(3, 4)], "n": None}
    )
    close(first, array(3, 4))
    close(second["a"][0], array(1, 2))
    assert second["n"] is None
    close(backend.grad(lambda x, scale: scale * xp.sum(x**2), [])(array(1.0), scale=3.0), array(6))


def test_grad_takes_python_floats_and_gives_zeros() -> None:
    first, second = linear().grad(lambda x, y: x * x, [])(3.0, np.ones(2, np.float32))
    assert first == 6.0 and first.shape == ()
    same(second, np.zeros(2))
    assert second.dtype == np.float32


def test_grad_inside_an_objective_as_for_gradient_penalties() -> None:
    backend = bound((lambda p, x: xp.sum(xp.square(x @ p["w"])), {"w": array(1, 2)}))
    x = np.array([[3.0, 4.0], [1.0, 1.0]])

    def penalty() -> Any:
        slope = backend.grad(lambda x: call(backend, x), [])(x)
        return xp.mean((xp.linalg.vector_norm(slope, axis=-1) - 1.0) ** 2)

    def by_hand(w: Any) -> Any:
        return np.mean((2 * np.abs(x @ w) * np.sqrt(w @ w) - 1) ** 2)

    close(gradient(backend, penalty)["w"], numeric(by_hand, array(1, 2)), rtol=1e-8)


def test_grad_of_boxes_and_scopes() -> None:
    backend, scope = linear(), dict[str, Any]()

    def cube(x: Any) -> Any:
        scope["x"] = x
        return xp.sum(x**3)

    def objective() -> Any:
        slope = backend.grad(cube, [scope])(backend.get(["w"])["w"])
        assert isbox(scope["x"])
        return xp.sum(slope)

    [[found]] = backend.gradient(objective, [("w",)], None, [scope])
    close(found["w"], array(6, 12))
    assert not isbox(scope["x"])
    with pytest.raises(ZeroDivisionError):
        backend.grad(lambda x: cube(x) + 1 // 0, [scope])(array(1.0))
    assert not isbox(scope["x"])


def test_grad_errors() -> None:
    backend = linear()

    def labelled(x: Any, labels: Any) -> Any:
        return xp.sum(x)

    with pytest.raises(GradientError, match=r"argument 1 of .*labelled holds int64.*close over it"):
        backend.grad(labelled, [])(array(1.0), np.arange(2))
    with pytest.raises(GradientError, match=r"argument 0 .* holds a int"):
        backend.grad(labelled, [])(1, array(1.0))
    with pytest.raises(GradientError, match="depends on none of its arguments"):
        backend.grad(lambda x: 1.0, [])(array(1.0))
    with pytest.raises(LossError, match=r"shape \(2,\)"):
        backend.grad(lambda x: x, [])(array(1, 2))
    with pytest.raises(LossError, match="returned nothing"):
        backend.grad(lambda x: None, [])(array(1, 2))
