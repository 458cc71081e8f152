"""Models for the conformance suite that belong to no framework: one text for every backend, ``--models neutral``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from loopcore.learner.portable import random, xp

Array: TypeAlias = "np.ndarray[Any, Any]"
Weights: TypeAlias = Mapping[str, Array]

batch_norm_correction = 0
_KEPT, _EPSILON = 0.9, 1e-5


def linear(weights: Weights, dtype: str) -> Any:
    """``x @ weight + bias``."""
    return _dense, {name: np.array(value, dtype) for name, value in weights.items()}


def mlp(weights: Weights, dtype: str) -> Any:
    """``out(tanh(hidden(x)))``."""
    return _mlp, _layers(weights, dtype)


def batch_norm(weights: Weights, dtype: str) -> Any:
    """``out(norm(x))`` with running statistics."""
    layers = _layers(weights, dtype)
    state = {"norm": {name: layers["norm"].pop(name) for name in ("mean", "variance")}}
    return _batch_norm, layers, state


def dropout(weights: Weights, p: float, dtype: str) -> Any:
    """``out(drop(x))``."""

    def forward(params: Any, x: Any, training: bool) -> Any:
        if training:
            x = x * random.bernoulli(1 - p, x.shape) / (1 - p)
        return _dense(params["out"], x)

    return forward, _layers(weights, dtype)


def structured(weights: Weights, dtype: str) -> Any:
    """A dense layer that takes a keyword and returns a dict."""
    return _structured, _layers(weights, dtype)


def neutral(weights: Weights) -> dict[str, Array]:
    """The names here are those of the suite."""
    return dict(weights)


def _layers(weights: Weights, dtype: str) -> dict[str, dict[str, Array]]:
    layers: dict[str, dict[str, Array]] = {}
    for path, value in weights.items():
        layer, name = path.split(".")
        layers.setdefault(layer, {})[name] = np.array(value, dtype)
    return layers


def _dense(params: Any, x: Any) -> Any:
    return x @ params["weight"] + params["bias"]


def _mlp(params: Any, x: Any) -> Any:
    return _dense(params["out"], xp.tanh(_dense(params["hidden"], x)))


def _structured(params: Any, x: Any, *, scale: float) -> Any:
    y = _dense(params["out"], x)
    return {"plain": y, "scaled": scale * y}


def _batch_norm(params: Any, state: Any, x: Any, train: bool) -> Any:
    statistics = state["norm"]
    mean, variance = (xp.mean(x, axis=0), xp.var(x, axis=0)) if train else (statistics["mean"], statistics["variance"])
    if train:
        new = {"mean": mean, "variance": variance}
        state = {"norm": {name: _KEPT * statistics[name] + (1 - _KEPT) * new[name] for name in new}}
    normal = (x - mean) / xp.sqrt(variance + _EPSILON)
    return _dense(params["out"], normal * params["norm"]["scale"] + params["norm"]["offset"]), state
