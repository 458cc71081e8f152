"""Metrics: means weighted by samples, values by name, and what is computed once an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights, ragged
from loopcore.testing.conformance.subject import Subject

PAIRS = ragged(5, 5, 2)
W = mlp_weights()


def measured(backend: Subject, *metrics: Any, **options: Any) -> lc.Learner:
    """A learner that has validated the initial weights once."""
    defaults: dict[str, Any] = {"data": (None, PAIRS), "phases": [lc.ValidationPhase()], "reads": ()}
    learner = make_learner(backend.mlp(W), **{**defaults, "callbacks": [lc.Metrics(*metrics)], **options})
    assert learner.fit(1).status == "completed"
    return learner


def weighted(values: list[float]) -> float:
    return float(np.average(values, weights=[len(x) for x, _ in PAIRS]))


def all_errors() -> Array:
    return np.concatenate([oracle.mlp(W, x) - y for x, y in PAIRS])


def test_the_loss_is_weighted_by_samples(backend: Subject) -> None:
    learner = measured(backend)
    backend.close(learner.history["val_loss"], [np.mean(all_errors() ** 2)])
    plain = [oracle.mse(oracle.mlp(W, x), y) for x, y in PAIRS]
    assert abs(np.mean(plain) - np.mean(all_errors() ** 2)) > 1e-3  # the problem tells the two means apart
    backend.close(learner.history.steps("val_loss"), plain)


def test_functions_of_the_predictions(backend: Subject) -> None:
    def spread(y_pred: Any, ys: Any) -> Any:
        return lc.losses.mse((y_pred - ys) ** 2, 0 * ys, reduction="sum")

    learner = measured(backend, lc.losses.mae, lc.Metric(spread, "quartic"))
    assert list(learner.history) == ["val_loss", "val_mae", "val_quartic"]
    backend.close(learner.history["val_mae"], [np.mean(np.abs(all_errors()))])
    by_step = [((oracle.mlp(W, x) - y) ** 4).sum() for x, y in PAIRS]
    backend.close(learner.history["val_quartic"], [weighted(by_step)])


def test_values_by_name(backend: Subject) -> None:
    class Named(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.largest = learner.xp.max(learner.xp.abs(state.y_pred))

    learner = measured(backend, "largest", phases=[Named()])
    backend.close(learner.history["val_largest"], [weighted([np.abs(oracle.mlp(W, x)).max() for x, _ in PAIRS])])


def test_a_weight_of_ones_own(backend: Subject) -> None:
    class Weighted(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.weight = learner.xp.sum(state.xs * state.xs)

    learner = measured(backend, phases=[Weighted()])
    losses = [oracle.mse(oracle.mlp(W, x), y) for x, y in PAIRS]
    backend.close(learner.history["val_loss"], [np.average(losses, weights=[(x * x).sum() for x, _ in PAIRS])])


def test_metrics_of_a_whole_epoch(backend: Subject) -> None:
    def median(y_pred: Array, ys: Array) -> float:
        assert type(y_pred) is type(ys) is np.ndarray
        return float(np.median(np.abs(y_pred - ys)))

    learner = measured(backend, lc.Metric(median, over="epoch"))
    backend.close(learner.history["val_median"], [np.median(np.abs(all_errors()))])


def test_metrics_on_the_host(backend: Subject) -> None:
    def median(y_pred: Array, ys: Array) -> float:
        assert type(y_pred) is type(ys) is np.ndarray
        return float(np.median(y_pred - ys))

    learner = measured(backend, lc.Metric(median, host=True))
    backend.close(learner.history["val_median"], [weighted([np.median(oracle.mlp(W, x) - y) for x, y in PAIRS])])


class Largest:
    """An object that accumulates, as torchmetrics and nnx have them."""

    def __init__(self) -> None:
        self.value, self.epochs = 0.0, 0

    def update(self, y_pred: Any, ys: Any) -> None:
        self.value = max(self.value, float(np.asarray(abs(y_pred - ys)).max()))

    def compute(self) -> float:
        return self.value

    def reset(self) -> None:
        self.value = 0.0
        self.epochs += 1


class Both(Largest):
    """Returns several numbers."""

    def compute(self) -> Any:
        return {"largest": self.value, "epochs": self.epochs}


def test_objects_that_accumulate(backend: Subject) -> None:
    learner = measured(backend, Largest())
    learner.fit(1)
    backend.close(learner.history["val_Largest"], [np.abs(all_errors()).max()] * 2)


def test_objects_that_return_several_numbers(backend: Subject) -> None:
    learner = measured(backend, lc.Metric(Both(), "extremes"))
    learner.fit(1)
    backend.close(learner.history["val_largest"], [np.abs(all_errors()).max()] * 2)
    assert learner.history["val_epochs"] == [1.0, 2.0]


@pytest.mark.parametrize("one_hot", [False, True], ids=["labels", "one_hot"])
def test_accuracy(backend: Subject, one_hot: bool) -> None:
    labels = [np.arange(len(x)) % 2 for x, _ in PAIRS]
    data = [(x, np.eye(2)[ys] if one_hot else ys.astype("int16")) for (x, _), ys in zip(PAIRS, labels, strict=True)]
    learner = measured(backend, lc.accuracy, data=(None, data), loss_fn=lc.losses.cross_entropy)
    hits = [oracle.mlp(W, x).argmax(axis=-1) == ys for (x, _), ys in zip(PAIRS, labels, strict=True)]
    backend.close(learner.history["val_accuracy"], [np.concatenate(hits).mean()], rtol=1e-7)  # float32 everywhere


def test_one_metric_for_one_phase(backend: Subject) -> None:
    metric = lc.Metric(lc.losses.mae, phase=lc.AbstractValidationPhase)
    learner = measured(backend, metric, data=(PAIRS, PAIRS), phases=None)
    assert list(learner.history) == ["loss", "val_loss", "val_mae"]


def test_steps_that_were_not_completed_do_not_count(backend: Subject) -> None:
    class SkipSecond(lc.Callback):
        def __init__(self) -> None:
            self.steps = 0

        @lc.on(lc.LossBegin, lc.ValidationPhase)
        def skip(self, learner: Any, phase: Any) -> None:
            self.steps += 1
            if self.steps == 2:
                raise lc.CancelStepException

    learner = measured(backend, callbacks=[lc.Metrics(), SkipSecond()])
    errors = np.concatenate([oracle.mlp(W, x) - y for x, y in (PAIRS[0], PAIRS[2])])
    backend.close(learner.history["val_loss"], [np.mean(errors**2)])


def test_history_of_training_by_hand(backend: Subject) -> None:
    learner = measured(backend, lc.losses.mae, data=(PAIRS, None), phases=None)
    learner.fit(1)
    weights, loss, mae = dict(W), [], []
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    for x, y in 2 * PAIRS:
        error = oracle.mlp(weights, x) - y
        loss.append(np.mean(error**2))
        mae.append(np.mean(np.abs(error)))
        optimizer.update(oracle.mse_gradient(weights, x, y))
    backend.close(learner.history["loss"], [weighted(loss[:3]), weighted(loss[3:])])
    backend.close(learner.history["mae"], [weighted(mae[:3]), weighted(mae[3:])])


def test_metrics_wait_for_nothing_within_a_step(backend: Subject) -> None:
    counts: list[int] = []

    class Count(lc.Callback):
        @lc.on(lc.StepBegin)
        def begin(self, learner: Any, phase: Any) -> None:
            counts.append(inner.backend.transfers)

    quiet = [lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
    callbacks = [*quiet, lc.Recorder(), lc.Metrics(lc.losses.mae), Count()]
    inner = make_learner(backend.mlp(W), data=(8 * PAIRS, None), callbacks=callbacks)
    inner.fit(1)
    assert counts == [counts[0]] * 24
    inner.export_weights()
    assert inner.backend.transfers > counts[0]  # so the counter does count


def test_the_smooth_loss_is_the_closed_form(backend: Subject) -> None:
    """FluxTraining's gives the newest value a weight of 0.98, and begins at 0."""
    learner = measured(backend, lc.SmoothLoss(0.9), data=(None, PAIRS * 4))
    losses = np.array([oracle.mse(oracle.mlp(W, x), y) for x, y in PAIRS * 4])
    expected = [
        0.1 / (1 - 0.9**t) * sum(0.9 ** (t - i) * losses[i - 1] for i in range(1, t + 1))
        for t in range(1, len(losses) + 1)
    ]
    backend.close(learner.history.steps("val_smooth_loss"), expected)
    backend.close(learner.history["val_smooth_loss"], expected[-1:])
    learner.fit(1)
    all_losses = [*losses, *losses]
    t = len(all_losses)
    last = 0.1 / (1 - 0.9**t) * sum(0.9 ** (t - i) * all_losses[i - 1] for i in range(1, t + 1))
    backend.close(learner.history["val_smooth_loss"][-1], last)


@pytest.mark.parametrize("k", [1, 2])
def test_top_k_accuracy(backend: Subject, k: int) -> None:
    labels = [np.arange(len(x)) % 2 for x, _ in PAIRS]
    data = [(x, ys) for (x, _), ys in zip(PAIRS, labels, strict=True)]
    learner = measured(backend, lc.top_k_accuracy(k), lc.accuracy, data=(None, data), loss_fn=lc.losses.cross_entropy)
    accuracies = learner.history[f"val_top_{k}_accuracy"]
    assert accuracies == (learner.history["val_accuracy"] if k == 1 else [1.0])
