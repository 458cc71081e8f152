"""The defects of FluxTraining.jl's metrics and printers (M-1 to M-10), one regression test for each."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner


def batch(size: int, target: float) -> tuple[Any, Any]:
    return np.ones((size, 1)), np.full((size, 1), target)


class Total:
    """An object that accumulates."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sum = 0.0

    def update(self, y_pred: Any, ys: Any) -> None:
        self.sum += float(np.sum(ys))

    def compute(self) -> float:
        return self.sum


class Count:
    """A metric that does everything itself, without a base class."""

    reads = ("step.xs",)
    phase = None

    def reset(self) -> None:
        self.rows = 0

    def step(self, learner: Any, phase: Any) -> None:
        self.rows += len(learner.step.xs)

    def epoch_value(self) -> float:
        return self.rows


def test_the_value_of_an_epoch_is_a_mean_over_samples() -> None:  # M-1
    """The value of an epoch was the mean of batch means: wrong when the last batch is smaller."""
    learner = toy_learner(data=(None, [batch(3, 1.0), batch(1, 5.0)]), phases=[lc.ValidationPhase()])
    learner.fit(1)
    assert learner.history["val_loss"] == [(3 * 1.0 + 25.0) / 4]


def test_a_metric_without_a_step_has_no_value() -> None:  # M-2
    """A metric without a step in an epoch reported a fresh statistic, 0.0."""
    only = lc.Metric(Total(), "total", phase=lc.AbstractValidationPhase)
    learner = toy_learner([lc.Metrics(only, Count())], data=([batch(4, 1.0)], [batch(4, 1.0)]))
    learner.fit(1)
    assert list(learner.history) == ["loss", "Count", "val_loss", "val_total", "val_Count"]
    with lc.run_epoch(learner, lc.ValidationPhase()):
        pass
    assert learner.epoch is not None and learner.epoch.metrics == {
        "val_loss": None,
        "val_total": None,
        "val_Count": None,
    }
    assert learner.history["val_total"] == [4.0] == learner.history["val_Count"], "a measurement by hand is no round"


def test_phases_and_learners_have_statistics_of_their_own() -> None:  # M-3
    """One statistic served all phases, and two learners with one metric mixed their numbers."""
    learner = toy_learner([lc.Metrics(Total())], data=([batch(4, 1.0)], [batch(2, 3.0)]))
    learner.fit(2)
    assert (learner.history["Total"], learner.history["val_Total"]) == ([4.0, 4.0], [6.0, 6.0])
    for mine in (Total(), Count(), lc.SmoothLoss()):
        first = toy_learner([lc.Metrics(mine)])
        with pytest.raises(lc.errors.CallbackError, match="for another Metrics"):
            toy_learner([lc.Metrics(mine)])
        assert first.fit(1).status == "completed"


@pytest.mark.parametrize("mine", [Total, Count])
def test_a_metric_of_an_epoch_within_an_epoch(mine: type[Any]) -> None:
    def validate(learner: Any, phase: Any) -> None:
        learner.run_epoch(lc.ValidationPhase(), [batch(4, 1.0)])

    nested = lc.FunctionCallback(validate, lc.StepEnd, lc.TrainingPhase)
    with pytest.raises(lc.errors.CallbackError, match=r"give each its object, Metric\(\.\.\., phase=\.\.\.\)"):
        toy_learner([lc.Metrics(mine()), nested]).fit(1)
    apart = [lc.Metric(mine(), kind.__name__, phase=kind) for kind in (lc.TrainingPhase, lc.ValidationPhase)]
    nested = lc.FunctionCallback(validate, lc.StepEnd, lc.TrainingPhase)
    learner = toy_learner([lc.Metrics(*apart), nested], steps=2)
    learner.fit(1)
    assert learner.history["TrainingPhase"] == [8.0] and learner.history["val_ValidationPhase"] == [4.0]
    assert learner.history.within("val_ValidationPhase") == [(1, 1, 4.0), (1, 2, 4.0)]


def test_the_smooth_loss_is_an_average_without_bias() -> None:  # M-4
    """``SmoothLoss`` gave the newest value a weight of 0.98, and began with a bias towards 0."""
    learner = toy_learner([lc.Metrics(lc.SmoothLoss(0.9))], steps=5)
    learner.fit(2)
    losses = np.array(learner.history.steps("loss"))
    assert losses[0] == 1.0 == learner.history.steps("smooth_loss")[0]
    weights = 0.9 ** np.arange(10)[::-1]
    assert learner.history["smooth_loss"][-1] == pytest.approx(weights @ losses / weights.sum())
    assert losses[-1] < 0.02 < learner.history.steps("smooth_loss")[-1]


def test_the_smooth_loss_goes_on_after_a_stop() -> None:
    metrics = lc.Metrics(lc.SmoothLoss(0.9))
    toy_learner([metrics], steps=5).fit(1)
    resumed = lc.Metrics(lc.SmoothLoss(0.9))
    resumed.load_state_dict(metrics.state_dict())
    learner = toy_learner([resumed], steps=1)
    learner.fit(1)
    losses = np.array([*(0.64 ** np.arange(5)), 1.0])
    weights = 0.9 ** np.arange(6)[::-1]
    assert learner.history["smooth_loss"] == pytest.approx([weights @ losses / weights.sum()])


def test_the_loss_may_be_named_though_it_is_always_there() -> None:  # M-5
    """``Metrics(Loss())`` was an error, since a Loss is always there."""
    learner = toy_learner([lc.Metrics(lc.accuracy, lc.Loss())], data=([batch(4, 1.0)], None))
    assert [metric.name for metric in learner.callbacks.get(lc.Metrics).metrics] == ["loss", "accuracy"]  # type: ignore[union-attr]


def test_a_phase_may_have_no_loss() -> None:  # M-6
    """A phase without a loss was an error."""

    class Silent(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.y_pred = learner.model(state.xs)

    learner = toy_learner(phases=[Silent()], data=(None, [batch(4, 1.0)]))
    assert learner.fit(1).status == "completed" and list(learner.history) == []


def test_the_printer_keeps_its_columns_and_shows_no_old_value() -> None:  # M-7
    """The printer's columns had no order, and a metric without a value showed its last one."""
    out = io.StringIO()
    metrics = lc.Metrics("late", lc.Metric(lc.losses.mae, "mae"))

    class Late(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            if learner.shared.late:
                state.late = state.loss

    learner = toy_learner([metrics, lc.MetricsPrinter(file=out)], phases=[Late()], steps=1)
    learner.shared.late = True
    learner.fit(1)
    learner.shared.late = False
    learner.fit(1)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert rows[0] == ["epoch", "loss", "late", "mae"]
    assert rows[-1][2] == "-" and rows[-1][1] == "0.64"


def test_the_length_of_an_epoch_is_that_of_its_data() -> None:  # M-8
    """The progress bar asked the learner's data for its length, not the data that was given, and needed one."""
    lengths: list[Any] = []
    look = lc.FunctionCallback(lambda learner, phase: lengths.append(learner.epoch.length), lc.EpochBegin)
    learner = toy_learner([look], steps=8)
    learner.run_epoch(lc.TrainingPhase(), [batch(4, 1.0)] * 3)
    learner.run_epoch(lc.TrainingPhase(), (one for one in [batch(4, 1.0)] * 2))
    assert lengths == [3, None]


@pytest.mark.parametrize("target", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_fit(target: float) -> None:  # M-9
    """An infinite loss passed, and the stop was an exception."""
    learner = toy_learner(target=target)
    with np.errstate(all="ignore"):
        result = learner.fit(1)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")


def test_the_series_of_steps_has_a_bound() -> None:  # M-10
    """Series of steps grew without a bound."""
    learner = toy_learner(steps=20_000)
    learner.fit(1)
    assert len(learner.history.steps("loss")) == 16_384
    assert learner.shared.metrics_step["training"]["loss"].count == 20_000


def test_metrics_interface_stays_open() -> None:
    """FluxTraining's ``AbstractMetric``: anybody's class, with values for steps too, and only what it declared."""

    class Steps(lc.AbstractMetric):
        reads = ("step.loss",)
        phase = lc.AbstractTrainingPhase

        def reset(self) -> None:
            self.seen: list[float] = []

        def step(self, learner: Any, phase: Any) -> None:
            self.seen.append(float(learner.step.loss))
            with pytest.raises(lc.AccessError, match=r"params"):
                _ = learner.params

        def step_value(self) -> float:
            return self.seen[-1]

        def epoch_value(self) -> float:
            return min(self.seen)

    learner = toy_learner([lc.Metrics(lc.Metric(Steps(), "best"), Count())], steps=3)
    learner.fit(1)
    assert learner.history["best"] == [pytest.approx(0.4096)]
    assert learner.history.steps("best") == pytest.approx([1.0, 0.64, 0.4096])
    assert learner.history["Count"] == [12.0]


def test_metrics_by_keyword() -> None:
    def error(*, guess: Any, truth: Any) -> Any:
        return lc.losses.mae(guess, truth)

    class Keyworded:
        def update(self, *, logits: Any, labels: Any) -> None:
            self.last = float(np.mean(labels - logits))

        def compute(self) -> float:
            return self.last

        def reset(self) -> None:
            self.last = -1.0

    by_name = lc.Metric(error, args={"guess": "y_pred", "truth": "ys"})
    learner = toy_learner([lc.Metrics(by_name, Keyworded())], steps=2)
    learner.fit(1)
    assert learner.history["error"] == [pytest.approx(0.9)] and learner.history["Keyworded"] == [pytest.approx(0.8)]
