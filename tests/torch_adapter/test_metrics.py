"""Metrics of torchmetrics are taken as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import nn
from torchmetrics import classification

import loopcore as lc

PHASES = [lc.ValidationPhase()]


def test_metrics_of_torchmetrics() -> None:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    xs = draw.normal(size=(50, 4)).astype(np.float32)
    ys = draw.integers(3, size=50)
    model = nn.Linear(4, 3)
    objects: list[Any] = [
        lc.Metric(classification.MulticlassAccuracy(3, average="micro"), "theirs"),
        lc.Metric(classification.MulticlassAUROC(3), "auroc"),
        lc.Metric(torchmetrics.MeanMetric(), "mean_loss", args=("loss",)),
    ]
    data = (None, list(lc.data.batches((xs, ys), 20)))
    learner = lc.Learner(
        model, lc.losses.cross_entropy, None, data, phases=PHASES, callbacks=[lc.Metrics(lc.accuracy, *objects)]
    )
    learner.fit(1)
    history: Any = learner.history
    np.testing.assert_allclose(history["val_theirs"], history["val_accuracy"], rtol=1e-6)
    by_batch = [nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y)).item() for x, y in data[1]]
    np.testing.assert_allclose(history["val_mean_loss"], [np.mean(by_batch)], rtol=1e-5)
    auroc = classification.MulticlassAUROC(3)(model(torch.tensor(xs)), torch.tensor(ys))
    np.testing.assert_allclose(history["val_auroc"], [float(auroc)], rtol=1e-6)


def test_collections_give_several_numbers() -> None:
    both: Any = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])
    xs = np.ones((8, 2), np.float32)
    model = nn.Linear(2, 1)
    learner = lc.Learner(
        model, lc.losses.mse, data=(None, [(xs, xs[:, :1])]), phases=PHASES, callbacks=[lc.Metrics(both)]
    )
    learner.fit(1)
    history: Any = learner.history
    error = abs(float(model(torch.ones(2)).detach()) - 1)
    np.testing.assert_allclose(history["val_MeanSquaredError"], [error**2], rtol=1e-5)
    np.testing.assert_allclose(history["val_MeanAbsoluteError"], [error], rtol=1e-5)
