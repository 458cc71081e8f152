"""Metrics of flax.nnx are taken as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

import loopcore as lc

PHASES = [lc.ValidationPhase()]


def test_metrics_of_nnx() -> None:
    draw = np.random.default_rng(0)
    xs = draw.normal(size=(50, 4)).astype(np.float32)
    ys = draw.integers(3, size=50)
    objects: list[Any] = [
        lc.Metric(nnx.metrics.Accuracy(), "theirs"),
        lc.Metric(nnx.metrics.Average("loss"), "mean_loss", args={"loss": "loss"}),
    ]
    pairs = list(lc.data.batches((xs, ys), 20))
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    learner = lc.Learner(
        model, lc.losses.cross_entropy, data=(None, pairs), phases=PHASES, callbacks=[lc.Metrics(lc.accuracy, *objects)]
    )
    learner.fit(2)
    history: Any = learner.history
    np.testing.assert_allclose(history["val_theirs"], history["val_accuracy"], rtol=1e-6)
    np.testing.assert_allclose(history["val_mean_loss"], 2 * [np.mean(history.steps("val_loss")[:3])], rtol=1e-5)


def test_several_at_once() -> None:
    make: Any = nnx.MultiMetric
    both = make(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    metric = lc.Metric(both, "both", args={"logits": "y_pred", "labels": "ys", "loss": "loss"})
    xs = np.ones((8, 2), np.float32)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    learner = lc.Learner(
        model,
        lc.losses.cross_entropy,
        data=(None, [(xs, np.zeros(8, np.int64))]),
        phases=PHASES,
        callbacks=[lc.Metrics(lc.Loss("own_loss"), lc.accuracy, metric)],
    )
    learner.fit(1)
    history: Any = learner.history
    np.testing.assert_allclose(history["val_loss"], history["val_own_loss"], rtol=1e-6)
    assert "val_accuracy" in learner.history
