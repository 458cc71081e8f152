"""Models of the examples in NumPy: functions with parameters, differentiated by autograd as all of that backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import autograd.numpy as anp
from numpy.random import Generator, default_rng

np: Any = anp  # its functions are made at run time, where a type checker does not see them
Params = dict[str, Any]


def regressor(inputs: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> ``(batch, 1)``."""

    def forward(params: Params, x: Any) -> Any:
        return _dense(params["out"], np.maximum(_dense(params["hidden"], x), 0))

    draw = default_rng(seed)
    return forward, {"hidden": _layer(draw, inputs, 32), "out": _layer(draw, 32, 1)}


def generator(inputs: int, width: int, pixels: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> pixels ``(batch, pixels)`` in [0, 1]."""
    return lambda params, z: _sigmoid(_mlp(params, z)), _layers(inputs, width, pixels, seed)


def critic(pixels: int, width: int, seed: int = 0) -> Any:
    """``(batch, pixels)`` -> ``(batch, 1)``."""
    return _mlp, _layers(pixels, width, 1, seed)


def encoder(pixels: int, width: int, latent: int, seed: int = 0) -> Any:
    """``(batch, pixels)`` -> mean and logarithm of the variance, each ``(batch, latent)``."""

    def forward(params: Params, x: Any) -> tuple[Any, Any]:
        both = _mlp(params, x)
        return both[:, :latent], both[:, latent:]

    return forward, _layers(pixels, width, 2 * latent, seed)


def decoder(latent: int, width: int, pixels: int, seed: int = 0) -> Any:
    """``(batch, latent)`` -> logits of pixels ``(batch, pixels)``."""
    return _mlp, _layers(latent, width, pixels, seed)


def normalised(inputs: int, width: int, outputs: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> features ``(batch, width)`` and ``(batch, outputs)``; with BatchNorm."""
    params, state = _layers(inputs, width, outputs, seed), {}
    for norm in ("norm1", "norm2"):
        params[norm] = {"scale": np.ones(width, "float32"), "offset": np.zeros(width, "float32")}
        state[norm] = {"mean": np.zeros(width, "float32"), "variance": np.ones(width, "float32")}

    def forward(params: Params, state: Params, x: Any, training: bool) -> tuple[Any, Params]:
        new = {}
        for number in (1, 2):
            x = _dense(params[f"hidden{number}"], x)
            x, new[f"norm{number}"] = _norm(params[f"norm{number}"], state[f"norm{number}"], x, training)
            x = np.maximum(x, 0)
        return (x, _dense(params["out"], x)), new

    return forward, params, state


def recurrent(symbols: int, width: int, seed: int = 0) -> Any:
    """``(batch, time)`` and ``(batch, width)`` -> logits ``(batch, time, symbols)`` and ``(batch, width)``."""
    draw = default_rng(seed)
    params: Params = {name: _layer(draw, width, width) for name in ("gate_in", "gate", "new_in", "new")}
    params |= {
        "embed": {"weight": draw.normal(0, 1, (symbols, width)).astype("float32")},
        "out": _layer(draw, width, symbols),
    }

    def forward(params: Params, tokens: Any, hidden: Any) -> tuple[Any, Any]:
        steps = []
        for time in range(tokens.shape[1]):
            x = params["embed"]["weight"][tokens[:, time]]
            gate = _sigmoid(_dense(params["gate_in"], x) + _dense(params["gate"], hidden))
            new = np.tanh(_dense(params["new_in"], x) + _dense(params["new"], hidden))
            hidden = gate * hidden + (1 - gate) * new
            steps.append(hidden)
        return _dense(params["out"], np.stack(steps, axis=1)), hidden

    return forward, params


def own(present: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names all backends share, which are the ones here, completed by the present ones."""
    return {**present, **weights}


def _layer(draw: Generator, inputs: int, outputs: int) -> Params:
    weight = draw.normal(0, inputs**-0.5, (inputs, outputs))
    return {"weight": weight.astype("float32"), "bias": np.zeros(outputs, "float32")}


def _layers(inputs: int, width: int, outputs: int, seed: int) -> Params:
    draw = default_rng(seed)
    sizes = {"hidden1": (inputs, width), "hidden2": (width, width), "out": (width, outputs)}
    return {name: _layer(draw, *size) for name, size in sizes.items()}


def _dense(layer: Params, x: Any) -> Any:
    return x @ layer["weight"] + layer["bias"]


def _sigmoid(x: Any) -> Any:
    return (np.tanh(x / 2) + 1) / 2


def _mlp(params: Params, x: Any) -> Any:
    """Two hidden layers, smooth so that a gradient of a gradient is as well."""
    for name in ("hidden1", "hidden2"):
        x = _dense(params[name], x)
        x = x * _sigmoid(x)
    return _dense(params["out"], x)


def _norm(layer: Params, kept: Params, x: Any, training: bool) -> tuple[Any, Params]:
    mean, variance = (np.mean(x, axis=0), np.var(x, axis=0)) if training else (kept["mean"], kept["variance"])
    if training:
        kept = {"mean": 0.9 * kept["mean"] + 0.1 * mean, "variance": 0.9 * kept["variance"] + 0.1 * variance}
    return (x - mean) / np.sqrt(variance + 1e-5) * layer["scale"] + layer["offset"], kept
