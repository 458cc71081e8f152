"""The callbacks that stop a fit; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import criteria
from loopcore.errors import CallbackError, UnknownMetricError
from loopcore.testing import toy_learner


class Scripted(lc.ValidationPhase):
    """Its loss is what the script says, epoch by epoch."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]


def learner_of(losses: list[float], *callbacks: lc.Callback) -> lc.Learner:
    batch = (np.ones((2, 1)), np.ones((2, 1)))
    phases = [lc.TrainingPhase(), Scripted(losses)]
    return lc.testing.toy_learner(callbacks=callbacks, data=([batch], [batch]), phases=phases)


def test_a_zig_zag_stops_when_the_best_is_too_long_ago() -> None:
    """FluxTraining's EarlyStopping(n) counts rises in a row: it never stops here."""
    losses = [1.0, 2.0, 1.5, 2.0, 1.5, 2.0, 1.5, 2.0]
    result = learner_of(losses, lc.EarlyStopping(3)).fit(8)
    assert (result.status, result.stopped_by, result.epochs) == ("stopped", "EarlyStopping", 4)
    assert result.reason == "val_loss is 2 after 4 epochs: NumberSinceBest(n=3, min_delta=0.0)"
    assert len(result.history["val_loss"]) == 4, "the last epoch is in the history"


def test_a_second_fit_begins_anew_unless_a_state_was_loaded() -> None:
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    stop = lc.EarlyStopping(2)
    learner = learner_of(losses, stop)
    assert learner.fit(3).status == "stopped"
    state = json.loads(json.dumps(stop.state_dict()))
    assert learner.fit(2).status == "completed", "not at once again"
    resumed = lc.EarlyStopping(3)
    resumed.load_state_dict(state)
    assert learner_of([4.0], resumed).fit(1).status == "stopped"


def test_what_is_better_may_be_larger() -> None:
    assert learner_of([1.0, 2.0, 3.0], lc.EarlyStopping(1, mode="max")).fit(3).status == "completed"
    assert learner_of([3.0, 2.0, 1.0], lc.EarlyStopping(1, mode="max")).fit(3).epochs == 2


def test_a_relative_criterion_of_what_should_be_large() -> None:
    stop = lc.EarlyStopping(criterion=criteria.GL(10), mode="max")
    assert learner_of([0.5, 0.9, 0.88, 0.7], stop).fit(4).epochs == 4, "0.7 is 22 % below the best"


def test_pq_sees_the_training_losses() -> None:
    stop = lc.EarlyStopping(criterion=criteria.PQ(0.1, k=2))
    assert learner_of([1.0, 1.0, 9.0, 9.0], stop).fit(4).stopped_by == "EarlyStopping"


def test_a_metric_that_nobody_measures() -> None:
    with pytest.raises(UnknownMetricError, match=r"val_los.*val_loss"):
        learner_of([1.0], lc.EarlyStopping(3, monitor="val_los")).fit(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lc.EarlyStopping(), "one of the two"),
        (lambda: lc.EarlyStopping(3, mode="least"), "mode='least'"),  # type: ignore[arg-type]
        (lambda: lc.EarlyStopping(criterion=criteria.InvalidValue), r"write criterion=InvalidValue\(\)"),  # type: ignore[arg-type]
        (lambda: lc.EarlyStopping(criterion=3), r"criterion=3 is none of .*: write criterion=lc\.criteria"),  # type: ignore[arg-type]
        (lambda: lc.EarlyStopping(0), r"EarlyStopping\(0\): patience is a whole number of epochs, at least 1"),
        (lambda: lc.EarlyStopping("val_loss"), r"EarlyStopping\('val_loss'\): .*EarlyStopping\(3, 'val_loss'\)"),  # type: ignore[arg-type]
        (lambda: lc.EarlyStopping(3, min_delta=-1), "min_delta=-1: a number, at least 0"),
        (lambda: lc.EarlyStopping(3, min_delta="a"), "min_delta='a'"),  # type: ignore[arg-type]
        (
            lambda: lc.EarlyStopping(criterion=criteria.Patience(2), min_delta=0.5),
            r"min_delta=0\.5 .*NumberSinceBest\(3, min_delta=0\.5\)",
        ),
        (lambda: lc.MaxSteps(0), "at least 1"),
        (lambda: lc.MaxTime(0), "above 0"),
    ],
)
def test_arguments_that_make_no_sense(make: Any, said: str) -> None:
    with pytest.raises(CallbackError, match=said):
        make()


def test_steps_are_counted_over_fits() -> None:
    limit = lc.MaxSteps(5)
    learner = lc.testing.toy_learner(callbacks=[limit], steps=4)
    assert learner.fit(1).status == "completed"
    assert learner.fit(5).reason == "5 training steps are completed"
    assert learner.fit(5).status == "stopped" and learner.shared.history["training"].steps == 5
    other = lc.MaxSteps(7)
    other.load_state_dict(limit.state_dict())
    learner = lc.testing.toy_learner(callbacks=[other], steps=4)
    assert learner.fit(1).status == "stopped" and learner.shared.history["training"].steps == 2


BATCH = (np.ones((4, 1)), np.ones((4, 1)))


class Losses(lc.ValidationPhase):
    """Its losses are these, epoch by epoch."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]


def test_only_validation_feeds_the_criterion() -> None:  # S-6
    """The guard for the phase was never true: every phase fed the criterion."""
    seen: list[float] = []

    class Watch(lc.criteria.Criterion):
        def update(self, loss: float) -> bool:
            seen.append(loss)
            return False

    stop = lc.EarlyStopping(criterion=Watch())
    learner = toy_learner([stop], phases=[lc.TrainingPhase(), Losses([3.0, 2.0])], data=([BATCH] * 2, [BATCH]))
    learner.fit(2)
    assert seen == [3.0, 2.0] == learner.history["val_loss"]


def test_each_fit_begins_with_new_patience() -> None:  # S-7
    """The state was never reset: a second fit stopped after its first epoch."""
    phases = [lc.TrainingPhase(), Losses([1.0, 2.0, 3.0, 9.0, 8.0, 7.0])]
    learner = toy_learner([lc.EarlyStopping(2)], phases=phases, data=([BATCH], [BATCH]))
    assert learner.fit(3).status == "stopped"
    assert learner.fit(3).status == "completed"


def test_patience_is_counted_from_the_best() -> None:  # S-8
    """Patience counted rises in a row, so that a zig-zag never stopped."""
    phases = [lc.TrainingPhase(), Losses([1.0, *[2.0, 1.5] * 10])]
    learner = toy_learner([lc.EarlyStopping(4)], phases=phases, data=([BATCH], [BATCH]))
    result = learner.fit(20)
    assert result.status == "stopped" and len(learner.history["val_loss"]) == 5


def test_any_metric_is_watched_in_either_direction() -> None:  # S-9
    """It watched the loss alone, and only for what is small."""
    rising = lc.Metric(lambda y_pred, ys: y_pred.mean(), "level")
    learner = toy_learner([lc.Metrics(rising), lc.EarlyStopping(1, "level", mode="max", min_delta=0.1)], steps=1)
    result = learner.fit(50)
    levels = [value or 0.0 for value in learner.history["level"]]
    assert result.status == "stopped" and levels[-1] < levels[-2] + 0.1 and levels[-2] >= levels[-3] + 0.1
