"""Keras models for the conformance suite, on the framework that Keras was told to use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

Weights: TypeAlias = Mapping[str, "np.ndarray[Any, Any]"]

dtypes = ("float32",)  # on torch Keras multiplies float64 matrices in float32
batch_norm_correction = 0
# What the suite calls the arrays of a layer -> what Keras calls them.
_TO_KERAS = {
    **{"weight": "kernel", "scale": "gamma", "offset": "beta"},
    **{"mean": "moving_mean", "variance": "moving_variance"},
}
_FROM_KERAS = {keras_name: name for name, keras_name in _TO_KERAS.items()}


class Structured(keras.Model):  # type: ignore[misc]
    """Takes a keyword and returns a dict."""

    def __init__(self, outputs: int, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.out = keras.layers.Dense(outputs, name="out", dtype=dtype)

    def call(self, x: Any, scale: float) -> dict[str, Any]:
        """``(batch, inputs)`` -> two arrays ``(batch, outputs)``."""
        y = self.out(x)
        return {"plain": y, "scaled": scale * y}


def linear(weights: Weights, dtype: str) -> Any:
    """``x @ weight + bias``."""
    inputs, outputs = weights["weight"].shape
    layer = keras.layers.Dense(outputs, dtype=dtype)
    layer.build((None, inputs))
    return _filled(layer, weights)


def mlp(weights: Weights, dtype: str) -> Any:
    """``out(tanh(hidden(x)))``."""
    inputs, width = weights["hidden.weight"].shape
    hidden = keras.layers.Dense(width, activation="tanh", name="hidden", dtype=dtype)
    return _filled(_sequential(inputs, [hidden, _out(weights, dtype)], dtype), weights)


def batch_norm(weights: Weights, dtype: str) -> Any:
    """``out(norm(x))`` with running statistics."""
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="norm", dtype=dtype)
    return _filled(_sequential(len(weights["out.weight"]), [norm, _out(weights, dtype)], dtype), weights)


def dropout(weights: Weights, p: float, dtype: str) -> Any:
    """``out(drop(x))``."""
    drop = keras.layers.Dropout(p, name="drop", dtype=dtype)
    return _filled(_sequential(len(weights["out.weight"]), [drop, _out(weights, dtype)], dtype), weights)


def structured(weights: Weights, dtype: str) -> Any:
    """A dense layer that takes a keyword and returns a dict."""
    inputs, outputs = weights["out.weight"].shape
    model = Structured(outputs, dtype)
    model(np.zeros((1, inputs), dtype), scale=1.0)
    return _filled(model, weights)


def neutral(weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    """Return weights under the suite's names: Keras calls the parts of a layer by other ones."""
    renamed: dict[str, np.ndarray[Any, Any]] = {}
    for path, value in weights.items():
        head, _, name = path.rpartition(".")
        name = "offset" if name == "beta" else _FROM_KERAS.get(name, name)
        renamed[f"{head}.{name}" if head else name] = value
    return renamed


def _sequential(inputs: int, layers: list[Any], dtype: str) -> Any:
    """Return a ``keras.Sequential`` whose container computes in the dtype of its layers."""
    floatx = keras.config.floatx()
    keras.config.set_floatx(dtype)  # else the container casts to float32
    try:
        return keras.Sequential([keras.Input((inputs,), dtype=dtype), *layers])
    finally:
        keras.config.set_floatx(floatx)


def _out(weights: Weights, dtype: str) -> Any:
    """Return the dense layer that the models of the suite end with."""
    return keras.layers.Dense(weights["out.weight"].shape[1], name="out", dtype=dtype)


def _filled(layer: Any, weights: Weights) -> Any:
    """Assign weights of the suite to the variables of a layer, and return the layer."""
    # By the names of a layer and of its variable, without those of the models around them.
    variables = {"/".join(variable.path.split("/")[-2:]): variable for variable in layer.weights}
    for path, value in weights.items():
        head, _, name = path.rpartition(".")
        name = _TO_KERAS.get(name, name)
        variable = variables[f"{head}/{name}"] if head else next(v for v in layer.weights if v.path.endswith(name))
        variable.assign(value)
    return layer
