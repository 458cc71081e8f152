"""What the tests of the TensorFlow adapter share: small models, and learners in short."""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras as typed_keras
import numpy as np
import tensorflow as typed_tf

import loopcore as lc

keras: Any = typed_keras
tf: Any = typed_tf
DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(8, 3)).astype("f4"), DRAW.normal(size=(8, 2)).astype("f4")


def learner_of(model: Any, optimizer: Any = None, **options: Any) -> Any:
    options = {"default_callbacks": False, **options}
    return lc.Learner(model, lc.losses.mse, lc.SGD(0.1) if optimizer is None else optimizer, **options)


def dense(seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])


class Net(tf.Module):  # type: ignore[misc]
    """Variables in attributes, a list and a dict; one counts calls while training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = tf.Variable(tf.ones((3, 4)) / 3)
        self.rest = [tf.Variable(tf.ones((4, 2)) / 4), {"bias": tf.Variable(tf.zeros(2))}]
        self.calls = tf.Variable(0, trainable=False)
        self.same = self.first

    def __call__(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1)
        return tf.tanh(x @ self.first) @ self.rest[0] + self.rest[1]["bias"]
