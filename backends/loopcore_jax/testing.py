"""Models of this backend for the conformance suite: functions with parameters, as its users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Weights: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]

# JAX has float64 only where ``jax_enable_x64`` is set.
dtypes = ("float64", "float32") if jax.dtypes.canonicalize_dtype("float64") == "float64" else ("float32",)
batch_norm_correction = 0
# Batch normalisation of the suite: the share of the running statistics that stays, and what is added to the variance.
_MOMENTUM, _EPSILON = 0.9, 1e-5


def linear(weights: Weights, dtype: str) -> Any:
    """``x @ weight + bias``."""
    return _dense, arrays(dict(weights), dtype)


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

    def forward(params: Any, x: Any, training: bool, rng: Any) -> Any:
        if training:
            x = x * jax.random.bernoulli(rng, 1 - p, x.shape) / (1 - p)
        return _dense(params["out"], x)

    return forward, _layers(weights, dtype)


def structured(weights: Weights, dtype: str) -> Any:
    """A dense layer that takes a keyword and returns a dict."""
    return _structured, _layers(weights, dtype)


def arrays(tree: Any, dtype: str) -> Any:
    """Make a dict of arrays of a dict of numbers."""
    return {name: jnp.array(value, dtype) for name, value in tree.items()}


def neutral(weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    """The names here are those of the suite."""
    return dict(weights)


def is_plain(array: Any) -> bool:
    """Whether it belongs to no trace or gradient."""
    return not isinstance(array, Tracer)


def _layers(weights: Weights, dtype: str) -> dict[str, dict[str, Any]]:
    """Turn weights by path, such as ``hidden.weight``, into a dict of arrays for each layer."""
    layers: dict[str, dict[str, Any]] = {}
    for path, value in weights.items():
        layer, name = path.split(".")
        layers.setdefault(layer, {})[name] = jnp.array(value, dtype)
    return layers


def _dense(params: Any, x: Any) -> Any:
    return x @ params["weight"] + params["bias"]


def _mlp(params: Any, x: Any) -> Any:
    return _dense(params["out"], jnp.tanh(_dense(params["hidden"], x)))


def _structured(params: Any, x: Any, *, scale: float) -> Any:
    y = _dense(params["out"], x)
    return {"plain": y, "scaled": scale * y}


def _batch_norm(params: Any, state: Any, x: Any, train: bool) -> Any:
    statistics = state["norm"]
    mean, variance = (
        (jnp.mean(x, axis=0), jnp.var(x, axis=0)) if train else (statistics["mean"], statistics["variance"])
    )
    if train:
        new = {"mean": mean, "variance": variance}
        state = {"norm": {name: _MOMENTUM * statistics[name] + (1 - _MOMENTUM) * new[name] for name in new}}
    normal = (x - mean) / jnp.sqrt(variance + _EPSILON)
    return _dense(params["out"], normal * params["norm"]["scale"] + params["norm"]["offset"]), state
