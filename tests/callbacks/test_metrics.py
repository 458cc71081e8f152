"""Metrics by step and by epoch, weights and objects that accumulate; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.callbacks import metrics as metrics_module
from loopcore.errors import CallbackError, DataError, LossError, SanityError
from loopcore.testing import toy_learner
from tests.refusals import refused

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_epoch_means_are_weighted_by_samples() -> None:
    sizes, targets = (4, 4, 1), (1.0, 2.0, 6.0)
    data = [(np.ones((n, 1)), np.full((n, 1), target)) for n, target in zip(sizes, targets, strict=True)]
    mae = lc.Metric(lc.losses.mae, "mae")
    learner = toy_learner([lc.Metrics(mae)], data=(None, data), phases=[lc.ValidationPhase()])
    learner.fit(1)
    assert learner.history["val_loss"] == [pytest.approx((4 * 1 + 4 * 4 + 1 * 36) / 9, rel=1e-15)]
    assert learner.history["val_mae"] == [pytest.approx((4 * 1 + 4 * 2 + 1 * 6) / 9, rel=1e-15)]
    assert learner.history.steps("val_mae") == [1.0, 2.0, 6.0]


def test_a_weight_in_the_state_replaces_the_number_of_samples() -> None:
    data = [{"xs": np.ones((4, 1)), "ys": np.full((4, 1), t), "weight": w} for t, w in ((1.0, 1.0), (2.0, 3.0))]
    learner = toy_learner(data=(None, data), phases=[lc.ValidationPhase()])
    learner.fit(1)
    assert learner.history["val_loss"] == [pytest.approx((1 * 1 + 3 * 4) / 4, rel=1e-15)]


class TwoLosses(lc.TrainingPhase):
    """Writes more values than the loss, one of them now and then."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        super().step(learner, handle, state)
        state.kl = learner.xp.sum(state.ys) * 0.5
        if learner.runs.attempt % 2:
            state.odd = learner.runs.attempt * 1.0


def test_a_string_averages_a_step_value_where_there_is_one() -> None:
    learner = toy_learner(
        [lc.Metrics("kl", "odd")], phases=[TwoLosses(), lc.ValidationPhase()], data=([BATCH] * 4,) * 2
    )
    learner.fit(1)
    assert learner.history["kl"] == [2.0] and learner.history["odd"] == [2.0]
    assert learner.history.steps("odd") == [1.0, 3.0]
    assert list(learner.history) == ["loss", "kl", "odd", "val_loss"]


def test_a_metric_for_one_kind_of_phase_is_left_out_elsewhere() -> None:
    only = lc.Metric(lc.losses.mae, "mae", phase=lc.AbstractValidationPhase)
    learner = toy_learner([lc.Metrics(only)], data=([BATCH], [BATCH]))
    learner.fit(2)
    assert list(learner.history) == ["loss", "val_loss", "val_mae"] and len(learner.history["val_mae"]) == 2


def test_a_metric_over_the_epoch_sees_everything_at_once() -> None:
    seen: list[tuple[Any, ...]] = []

    def largest(y_pred: Any, ys: Any) -> float:
        seen.append((y_pred.shape, ys.shape))
        return float(ys.max())

    data = [(np.ones((n, 1)), np.full((n, 1), float(n))) for n in (4, 2, 5)]
    learner = toy_learner([lc.Metrics(lc.Metric(largest, over="epoch"))], data=(data, None))
    learner.fit(2)
    assert seen == [((11, 1), (11, 1))] * 2 and learner.history["largest"] == [5.0, 5.0]


class Spread:
    """An object that accumulates, in the way of torchmetrics."""

    def __init__(self) -> None:
        self.resets = 0
        self.values: list[float] = []

    def update(self, y_pred: Any, ys: Any) -> None:
        self.values += np.asarray(ys).ravel().tolist()

    def compute(self) -> dict[str, float]:
        return {"low": min(self.values), "high": max(self.values)}

    def reset(self) -> None:
        self.resets += 1
        self.values = []


class KerasLike:
    """An object that accumulates, in the way of Keras: labels first."""

    def __init__(self) -> None:
        self.first: list[float] = []

    def update_state(self, y_true: Any, y_pred: Any) -> None:
        self.first.append(float(np.mean(y_true)))

    def result(self) -> float:
        return self.first[-1]

    def reset_state(self) -> None:
        self.first = []


KerasLike.__module__ = "keras.metrics"


def test_objects_that_accumulate() -> None:
    spread, keras = Spread(), KerasLike()
    data = [(np.ones((2, 1)), np.full((2, 1), target)) for target in (3.0, 7.0)]
    learner = toy_learner([lc.Metrics(spread, lc.Metric(keras, "mean"))], data=(data, None))
    learner.fit(2)
    assert (learner.history["low"], learner.history["high"]) == ([3.0, 3.0], [7.0, 7.0])
    assert spread.resets == 2 and learner.history["mean"] == [7.0, 7.0]


def test_functions_of_scikit_learn_get_the_labels_first() -> None:
    from sklearn.metrics import precision_score

    ys, xs = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0])
    metric = lc.Metric(precision_score, args=("xs", "ys"))  # 1 of the 1 predicted is right; 1 of the 3 labels is found
    learner = toy_learner([lc.Metrics(metric)], data=([(xs, ys)], None))
    learner.fit(1)
    assert learner.history["precision_score"] == [1.0]


def test_a_batch_without_samples_does_not_count() -> None:
    batch, empty = (np.ones((4, 1)), np.ones((4, 1))), (np.ones((0, 1)), np.ones((0, 1)))
    learner = toy_learner(data=([batch], [batch, empty]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        learner.fit(1)
    assert learner.history["val_loss"] == pytest.approx([0.64])


def test_pending_values_are_fetched_in_bulk_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, calm = toy_learner(steps=20), toy_learner(steps=20)
    calm.fit(2)
    monkeypatch.setattr(metrics_module, "_FLUSH", 3)
    learner.fit(2)
    assert learner.history["loss"] == pytest.approx(calm.history["loss"], rel=1e-14)
    assert learner.history.steps("loss") == calm.history.steps("loss")


def test_a_skipped_step_and_a_cancelled_epoch_have_no_value() -> None:
    count = 0

    def skip(learner: Any, phase: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise lc.CancelStepException("skip")
        if count == 9:
            raise lc.CancelEpochException("enough")

    learner = toy_learner([lc.FunctionCallback(skip, lc.BackwardEnd)], steps=4)
    learner.fit(3)
    assert len(learner.history["loss"]) == 2
    assert learner.history["loss"][0] == pytest.approx((1 + 0.8**2 + 0.8**4) / 3, rel=1e-12)
    assert len(learner.history.steps("loss")) == 7


def test_the_loss_is_always_first_and_may_be_renamed() -> None:
    assert [metric.name for metric in lc.Metrics(lc.accuracy).metrics] == ["loss", "accuracy"]
    assert [metric.name for metric in lc.Metrics(lc.accuracy, lc.Loss("nll")).metrics] == ["nll", "accuracy"]


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


def test_metrics_that_make_no_sense() -> None:
    words: tuple[str, ...] = ("two metrics are named 'accuracy'", "Metric(fn, name=...)")
    refused(errors.CallbackError, *words, action=lambda: lc.Metrics(lc.accuracy, lc.accuracy))
    refused(TypeError, "lambda has no name", "name='...'", action=lambda: lc.Metrics(lambda y_pred, ys: 1.0))
    refused(TypeError, "not 5", action=lambda: lc.Metrics(5))
    refused(ValueError, 'over is "step" or "epoch", not \'epochs\'', action=lambda: lc.Metric("kl", over="epochs"))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"metric 'kl' had no value in this fit: no phase wrote state\.kl"):
        toy_learner([lc.Metrics("kl")]).fit(1)
    shaped = lc.Metric(lambda y_pred, ys: y_pred, name="shaped")
    learner = toy_learner([lc.Metrics(shaped)])
    refused(errors.LossError, "'shaped'", "shape (4, 1)", "mean", action=lambda: learner.fit(1))


def by_class(y_pred: Any, ys: Any) -> Any:
    return np.array([0.25, 0.5, 1.0])


def matrix(y_pred: Any, ys: Any) -> Any:
    return np.arange(4).reshape(2, 2)


def curve(y_pred: Any, ys: Any) -> Any:
    return np.array([0.0, 1.0]), np.array([0.5])


def test_arrays_are_kept_and_logged_as_they_are(tmp_path: Path) -> None:
    memory, lines, rows = (
        lc.loggers.MemoryLogger(),
        lc.loggers.JSONLinesLogger(tmp_path),
        lc.loggers.CSVLogger(tmp_path),
    )
    metrics = lc.Metrics(*(lc.Metric(fn, over="epoch") for fn in (by_class, matrix, curve)))
    out = io.StringIO()
    learner = toy_learner([metrics, lc.LogMetrics(memory, lines, rows), lc.MetricsPrinter(file=out)])
    learner.fit(2)
    history: Any = learner.history
    assert history["by_class"] == [[0.25, 0.5, 1.0]] * 2
    assert history["matrix"] == [[[0.0, 1.0], [2.0, 3.0]]] * 2 and history["curve_1"] == [[0.5]] * 2
    assert json.loads(json.dumps(dict(learner.history))) == dict(learner.history)
    assert memory.entries["matrix"][0][1].shape == (2, 2)
    assert '"value": [0.25, 0.5, 1.0]' in lines.path.read_text() and "1,matrix/1/0,2.0" in rows.path.read_text()
    assert "matrix" not in out.getvalue() and [one.get_title(loc="left") for one in learner.history.plot().axes] == [
        "loss"
    ]
    other = toy_learner([metrics_of_arrays()])
    learner = toy_learner([metrics_of_arrays()])
    learner.fit(1)
    other.load(learner.save(tmp_path / "x"))
    assert dict(other.history) == dict(learner.history)
    with pytest.raises(CallbackError, match="monitor a number"):
        toy_learner([metrics_of_arrays(), lc.EarlyStopping(3, "by_class")]).fit(1)


def metrics_of_arrays() -> lc.Metrics:
    return lc.Metrics(*(lc.Metric(fn, over="epoch") for fn in (by_class, matrix)))


def broken(y_pred: Any, ys: Any) -> Any:
    raise ZeroDivisionError("broken")


def report(y_pred: Any, ys: Any) -> Any:
    return "precision recall"


class Broken(lc.AbstractMetric):
    reads = ("step.y_pred",)

    def step(self, learner: Any, phase: Any) -> None:
        self.seen = learner.step.y_pred.shape

    def epoch_value(self) -> float:
        raise ZeroDivisionError("broken")


@pytest.mark.parametrize(
    "make",
    [
        lambda: lc.Metric(broken, "mine"),
        lambda: lc.Metric(broken, "mine", host=True),
        lambda: lc.Metric(broken, "mine", over="epoch"),
        lambda: lc.Metric(by_class, "mine"),
        lambda: lc.Metric(by_class, "mine", host=True),
        lambda: lc.Metric(report, "mine", over="epoch"),
        lambda: lc.Metric(Broken(), "mine"),
    ],
)
def test_an_error_in_a_metric_names_it_and_is_found_before_the_first_step(make: Callable[[], lc.Metric]) -> None:
    with pytest.raises((ZeroDivisionError, LossError)) as caught:
        toy_learner([lc.Metrics(make())]).fit(1)
    assert "metric 'mine'" in "\n".join((str(caught.value), *getattr(caught.value, "__notes__", ())))
    learner = toy_learner([lc.Metrics(make()), lc.SanityCheck()])
    with pytest.raises(SanityError, match="metric 'mine' fails in phase 'training'"):
        learner.fit(1)
    assert learner.params.value["w"] == 0.0


def test_a_batch_whose_length_nobody_knows_asks_for_its_weight() -> None:
    class Mixed(lc.AbstractValidationPhase):
        data_key = "validation"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.losses.mse(state.x * 0, state.t)

    class Weighted(Mixed):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.weight = len(state.x)

    parts: list[Any] = [
        {"idx": np.zeros(1), "x": np.ones((size, 8)), "t": np.full((size, 8), target)}
        for size, target in ((10, 0.0), (2, 10.0))
    ]
    with pytest.raises(
        DataError, match=r"idx 1, x 2, t 2 \(a batch before it: idx 1, x 10, t 10\)\. Write state\.weight"
    ):
        toy_learner(data=(None, parts), phases=[Mixed()]).fit(1)
    alike = toy_learner(data=(None, [parts[0], {**parts[0], "t": np.full((10, 8), 10.0)}]), phases=[Mixed()])
    alike.fit(1)
    assert alike.history["val_loss"] == [pytest.approx(50.0)]
    weighted = toy_learner(data=(None, parts), phases=[Weighted()])
    weighted.fit(1)
    assert weighted.history["val_loss"] == [pytest.approx(200 / 12)]
    one_length = toy_learner(
        data=(None, [{k: v for k, v in part.items() if k != "idx"} for part in parts]), phases=[Mixed()]
    )
    one_length.fit(1)
    assert one_length.history["val_loss"] == weighted.history["val_loss"]
    opaque = [{"graph": object()}]

    class Opaque(Mixed):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.zeros(())

    with pytest.raises(DataError, match=r"graph \?\. Write state\.weight"):
        toy_learner(data=(None, opaque), phases=[Opaque()]).fit(1)
