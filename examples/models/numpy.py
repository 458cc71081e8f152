"""Models of the examples in NumPy: functions with parameters, differentiated by autograd as all of that backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy
from numpy.random import Generator, default_rng

np: Any = autograd.numpy  # its functions are made when it is imported, where type checkers do not see them

Params = dict[str, Any]
Model = tuple[Callable[..., Any], Params]


def regressor(inputs: int, seed: int = 0) -> Model:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    draw = default_rng(seed)

    def forward(params: Params, x: Any) -> Any:
        return _dense(params["out"], np.maximum(_dense(params["hidden"], x), 0))

    return forward, {"hidden": _layer(draw, inputs, 32), "out": _layer(draw, 32, 1)}


def _layer(draw: Generator, inputs: int, outputs: int) -> Params:
    return {"weight": draw.normal(0, inputs**-0.5, (inputs, outputs)), "bias": np.zeros(outputs)}


def _dense(layer: Params, x: Any) -> Any:
    return x @ layer["weight"] + layer["bias"]
