"""Defects of FluxTraining.jl's Scheduler, EarlyStopping and throttle (S-1, S-3 to S-9, S-12); the rest of the rows S
are in test_moving_and_throttling.py.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError, EventError
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def by_hand(rates: list[float]) -> float:
    """The weight of the toy after steps of SGD with these rates: the gradient is 2 (w - 1)."""
    weight = 0.0
    for rate in rates:
        weight -= rate * 2 * (weight - 1)
    return weight


class Losses(lc.ValidationPhase):
    """Its losses are these, epoch by epoch."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]


class CancelStep(lc.Callback):
    """Cancels one step, before or after the scheduler hears its begin."""

    def __init__(self, event: type[lc.Event], number: int) -> None:
        self.number = number
        self.listeners = (lc.FunctionCallback(lambda learner, phase: None, event, lc.TrainingPhase).listeners[0],)

    def call(self, learner: Any, phase: Any) -> None:
        if learner.attempt == self.number:
            raise lc.CancelStepException


def test_a_schedule_changes_what_is_trained() -> None:  # S-1
    """A schedule had no effect on what was trained; its test could not fail."""
    schedule = lc.schedules.linear(0.4, 0.0, 6)
    learner = toy_learner([lc.Scheduler({lc.LearningRate: schedule})], steps=3)
    learner.fit(2)
    rates = [float(schedule(step)) for step in range(6)]
    assert learner.params.value["w"].item() == pytest.approx(by_hand(rates), rel=1e-12)
    assert abs(by_hand(rates) - by_hand([0.1] * 6)) > 0.05, "a constant rate would be noticed"


def test_every_completed_step_has_its_value_of_the_schedule() -> None:  # S-3
    """After a cancelled step, or with two training phases, the values were pushed at an index that was there."""

    class Second(lc.TrainingPhase):
        @property
        def name(self) -> str:
            return "second"

    rates = lc.Scheduler({lc.LearningRate: lc.schedules.linear(1.0, 0.0, 100)})
    learner = toy_learner(
        [rates, CancelStep(lc.StepBegin, 1)], phases=[lc.TrainingPhase(), Second()], data=([BATCH] * 3, None)
    )
    learner.fit(2)
    counts = [
        round((1 - value) * 100) for phase in ("training", "second") for value in rates.values("learning_rate", phase)
    ]
    assert sorted(counts) == list(range(2 * (3 * 2 - 1))), "every completed step has a value of its own"
    assert len(rates.values("learning_rate")) == learner.shared.history["training"].steps


@pytest.mark.parametrize("event", [lc.StepBegin, lc.BackwardEnd, lc.LossBegin])
def test_skipped_steps_do_not_count(event: type[lc.Event]) -> None:
    """Whether a skipped step advanced the schedule hung on the order of the callbacks."""
    schedule = lc.schedules.linear(0.4, 0.0, 6)
    learner = toy_learner([lc.Scheduler({lc.LearningRate: schedule}), CancelStep(event, 1)], steps=4)
    learner.fit(1)
    rates = [float(schedule(step)) for step in range(3)]
    assert learner.params.value["w"].item() == pytest.approx(by_hand(rates), rel=1e-12)


def test_the_step_of_a_schedule_is_part_of_its_state() -> None:
    """It was not saved, and every ``init!`` set it back to 1."""
    schedule = lc.schedules.linear(0.4, 0.0, 8)
    first, second = (lc.Scheduler({lc.LearningRate: schedule}) for _ in range(2))
    learner = toy_learner([first], steps=4)
    learner.fit(1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    learner.callbacks.replace(first, second)
    learner.fit(1)
    rates = [float(schedule(step)) for step in range(8)]
    assert learner.params.value["w"].item() == pytest.approx(by_hand(rates), rel=1e-12)


def test_hyperparameters_are_named_as_they_are_declared() -> None:  # S-5
    """Names of hyperparameters hung on what the user had imported, and fell back to an access of nothing."""
    scheduler = lc.Scheduler(
        {lc.HyperParameter("kl_weight"): lc.schedules.constant(0.5), lc.LearningRate: lambda _: 0.1}
    )
    assert scheduler.writes == ("hyper.kl_weight", "hyper.learning_rate", "shared.hyper_step")
    learner = toy_learner([scheduler], hyper={"kl_weight": 0.0}, steps=1)
    learner.fit(1)
    assert learner.hyper.kl_weight == 0.5 and scheduler.values(lc.HyperParameter("kl_weight")) == [0.5]
    assert list(learner.shared.hyper_step["training"]) == ["kl_weight", "learning_rate"]


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


def test_a_throttle_checks_its_arguments_and_keeps_its_count(monkeypatch: pytest.MonkeyPatch) -> None:  # S-12
    """``freq=0`` ran once, an abstract event never matched, the wall clock counted, and the counter was not saved."""
    heard: list[str] = []
    note: Any = lambda **options: lc.FunctionCallback(lambda learner, phase: heard.append(phase.name), **options)  # noqa: E731
    wrong: Any
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(CallbackError, match="every"):
            lc.throttle(note(event=lc.StepEnd), lc.StepEnd, every=wrong)
    with pytest.raises(EventError):
        lc.throttle(note(event=lc.StepEnd), lc.StepEnd(), every=2)  # type: ignore[arg-type]

    toy_learner([lc.throttle(note(event=lc.StepEnd), lc.events.EndEvent, every=2)], steps=5).fit(1)
    assert len(heard) == 2, "a base class of the event counts its events"

    heard.clear()
    first, second = (lc.throttle(note(event=lc.StepEnd), lc.StepEnd, every=3) for _ in range(2))
    toy_learner([first], steps=2).fit(1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    toy_learner([second], steps=1).fit(1)
    assert len(heard) == 1, "two before and one after"

    heard.clear()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that was set back ten years
    now = iter(np.arange(0.0, 100.0, 0.4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    toy_learner([lc.throttle(note(event=lc.StepEnd), lc.StepEnd, seconds=1.0)], steps=7, default_callbacks=False).fit(1)
    assert len(heard) == 3, "steps 1, 4 and 7"
