"""Models of the examples in Keras, on its TensorFlow backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras  # pyright: ignore[reportMissingImports]
from keras import layers  # pyright: ignore[reportMissingImports]

_OWN = {"weight": "kernel", "scale": "gamma", "offset": "beta", "mean": "moving_mean", "variance": "moving_variance"}


class Recurrent(keras.Model):  # type: ignore[misc]
    """A character model: symbols and a hidden state -> logits of the next symbols and the hidden state after them."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.embed = layers.Embedding(symbols, width, name="embed")
        self.cell = layers.GRU(width, return_sequences=True, return_state=True, name="cell")
        self.out = layers.Dense(symbols, name="out")

    def call(self, tokens: Any, hidden: Any) -> tuple[Any, Any]:
        outputs, last = self.cell(self.embed(tokens), initial_state=hidden)
        return self.out(outputs), last


def regressor(inputs: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(32, activation="relu"), layers.Dense(1)])


def generator(inputs: int, width: int, pixels: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> pixels ``(batch, pixels)`` in [0, 1]."""
    return _mlp(inputs, width, pixels, seed, activation="sigmoid")


def critic(pixels: int, width: int, seed: int = 0) -> Any:
    """``(batch, pixels)`` -> ``(batch, 1)``."""
    return _mlp(pixels, width, 1, seed)


def encoder(pixels: int, width: int, latent: int, seed: int = 0) -> Any:
    """``(batch, pixels)`` -> mean and logarithm of the variance, each ``(batch, latent)``."""
    mlp = _mlp(pixels, width, 2 * latent, seed)
    both = mlp.outputs[0]
    return keras.Model(mlp.inputs[0], (both[:, :latent], both[:, latent:]))


def decoder(latent: int, width: int, pixels: int, seed: int = 0) -> Any:
    """``(batch, latent)`` -> logits of pixels ``(batch, pixels)``."""
    return _mlp(latent, width, pixels, seed)


def normalised(inputs: int, width: int, outputs: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> features ``(batch, width)`` and ``(batch, outputs)``; with BatchNorm."""
    keras.utils.set_random_seed(seed)
    x = first = keras.Input((inputs,))
    for number in (1, 2):
        x = layers.Dense(width, name=f"hidden{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm{number}")(x)
        x = layers.ReLU()(x)
    return keras.Model(first, (x, layers.Dense(outputs, name="out")(x)))


def recurrent(symbols: int, width: int, seed: int = 0) -> Any:
    """``(batch, time)`` and ``(batch, width)`` -> logits ``(batch, time, symbols)`` and ``(batch, width)``."""
    keras.utils.set_random_seed(seed)
    model = Recurrent(symbols, width)
    model(np.zeros((1, 1), "int32"), np.zeros((1, width), "float32"))  # makes its weights
    return model


def _mlp(inputs: int, width: int, outputs: int, seed: int, activation: str | None = None) -> Any:
    """Two hidden layers, smooth so that a gradient of a gradient is as well."""
    keras.utils.set_random_seed(seed)
    x = first = keras.Input((inputs,))
    x = layers.Dense(width, activation="silu", name="hidden1")(x)
    x = layers.Dense(width, activation="silu", name="hidden2")(x)
    return keras.Model(first, layers.Dense(outputs, activation=activation, name="out")(x))


def own(present: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names all backends share -> names and shapes of these models, completed by the present ones."""
    found = dict(present)
    for path, array in weights.items():
        head, _, name = path.rpartition(".")
        found[f"{head}.{_OWN.get(name, name)}"] = array
    return found
