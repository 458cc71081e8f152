"""What the tests of the NumPy adapter share: small models, and the protocol's calls in short."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import autograd.differential_operators
import autograd.numpy
import numpy as np

from loopcore import optimizers as specs
from loopcore.backend import DrawKey
from loopcore_numpy import Backend

diff: Any = autograd.differential_operators
KEY = DrawKey(1, 2, 3)
xp, losses = Backend.xp, Backend.losses
Point = namedtuple("Point", "x y")  # a user's own type, without annotations
same = np.testing.assert_array_equal
close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def array(*values: float, dtype: Any = np.float64) -> Any:
    return np.array(values, dtype)


def bound(model: Any, *trained: tuple[Any, tuple[str, ...]]) -> Backend:
    backend = Backend()
    backend.bind({"": model})
    backend.attach(trained)
    return backend


def dot(params: Any, x: Any) -> Any:
    return xp.sum(params["w"] * x)


def linear(w: Any = (1.0, 2.0)) -> Backend:
    return bound((dot, {"w": np.array(w)}))


def call(backend: Backend, *args: Any, model: str = "", training: bool = True, keep: bool = True, **kwargs: Any) -> Any:
    return backend.forward(model, args, kwargs, training=training, update_state=keep)


def gradient(backend: Backend, objective: Callable[[], Any], *paths: str, **scope: Any) -> Any:
    """The gradient of one scalar with respect to one group of paths."""
    return backend.gradient(objective, [paths or backend.paths("params")[""]], None, [scope])[0][0]


def counting(params: Any, state: Any, x: Any) -> Any:
    return params["w"] * x, {"n": state["n"] + 1, "mean": 0.5 * state["mean"] + 0.5 * xp.mean(params["w"] * x)}


def stateful() -> Backend:
    return bound((counting, {"w": array(2.0)}, {"n": 0, "mean": np.zeros(())}), (specs.SGD(0.1), ("w",)))


def numeric(fn: Callable[[Any], Any], x: Any, step: float = 1e-5) -> Any:
    """Central differences of a scalar function."""
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        out[index] = (fn(high) - fn(low)) / (2 * step)
    return out
