"""Metrics of Keras are taken as they are."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import loopcore as lc

PHASES = [lc.ValidationPhase()]


def test_metrics_of_keras() -> None:
    draw = np.random.default_rng(0)
    xs = draw.normal(size=(50, 4)).astype(np.float32)
    ys = draw.integers(3, size=50)
    model: Any = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    objects: list[Any] = [
        lc.Metric(keras.metrics.SparseCategoricalAccuracy(), "theirs"),
        lc.Metric(keras.metrics.SparseTopKCategoricalAccuracy(2), "their_top_2"),
    ]
    pairs = list(lc.data.batches((xs, ys), 20))
    callbacks = [lc.Metrics(lc.accuracy, lc.top_k_accuracy(2), *objects)]
    learner = lc.Learner(model, lc.losses.cross_entropy, data=(None, pairs), phases=PHASES, callbacks=callbacks)
    learner.fit(2)
    history: Any = learner.history
    np.testing.assert_allclose(history["val_theirs"], history["val_accuracy"], rtol=1e-6)
    np.testing.assert_allclose(history["val_their_top_2"], history["val_top_2_accuracy"], rtol=1e-6)
