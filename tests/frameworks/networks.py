"""One small network in four frameworks, with the same weights, for tests that need several frameworks at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import autograd.numpy as anp
import jax.numpy as jnp
import keras as typed_keras
import numpy as np
import torch

Array = np.ndarray[Any, Any]
keras: Any = typed_keras
BACKENDS = ("numpy", "torch", "jax", "tensorflow")


def dense_weights(widths: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    """``hidden.weight``, ``hidden.bias``, ``out.weight``, ``out.bias`` of a network, in float64."""
    draw = np.random.default_rng(seed).normal
    inputs, width, outputs = widths
    return {
        "hidden.weight": draw(0, inputs**-0.5, (inputs, width)),
        "hidden.bias": np.zeros(width),
        "out.weight": draw(0, width**-0.5, (width, outputs)),
        "out.bias": np.zeros(outputs),
    }


def model_of(backend: str, weights: Mapping[str, Array], dtype: str = "float32") -> Any:
    """``out(tanh(hidden(x)))`` as users of a framework write it."""
    return globals()[f"_{backend}"]({name: np.asarray(value, dtype) for name, value in weights.items()})


def _forward(xp: Any) -> Any:
    def forward(params: Any, x: Any) -> Any:
        hidden = xp.tanh(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
        return hidden @ params["out"]["weight"] + params["out"]["bias"]

    return forward


def _nested(weights: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    return {
        layer: {name: weights[f"{layer}.{name}"].copy() for name in ("weight", "bias")} for layer in ("hidden", "out")
    }


def _numpy(weights: Mapping[str, Array]) -> Any:
    return _forward(anp), _nested(weights)


def _jax(weights: Mapping[str, Array]) -> Any:
    params = {layer: {k: jnp.asarray(v) for k, v in part.items()} for layer, part in _nested(weights).items()}
    return _forward(jnp), params


class _Torch(torch.nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(inputs, width)
        self.out = torch.nn.Linear(width, outputs)

    def forward(self, x: Any) -> Any:
        return self.out(torch.tanh(self.hidden(x)))


def _torch(weights: Mapping[str, Array]) -> Any:
    inputs, width = weights["hidden.weight"].shape
    model = _Torch(inputs, width, weights["out.weight"].shape[1]).to(torch.from_numpy(weights["hidden.bias"]).dtype)
    model.load_state_dict({name: torch.tensor(value.T) for name, value in weights.items()})
    return model


def _tensorflow(weights: Mapping[str, Array]) -> Any:
    inputs, width = weights["hidden.weight"].shape
    layers = [
        keras.layers.Dense(width, activation="tanh", name="hidden"),
        keras.layers.Dense(weights["out.weight"].shape[1], name="out"),
    ]
    model = keras.Sequential([keras.Input((inputs,)), *layers])
    model.set_weights([weights[f"{layer}.{name}"] for layer in ("hidden", "out") for name in ("weight", "bias")])
    return model
