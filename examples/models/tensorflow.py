"""Models of the examples in Keras, on its TensorFlow backend."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers


def regressor(inputs: int, seed: int = 0) -> Any:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(32, activation="relu"), layers.Dense(1)])
