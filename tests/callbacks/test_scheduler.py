"""Callbacks that follow schedules: names, counts, several optimizers; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loopcore as lc
from loopcore import schedules
from loopcore.errors import CallbackError, ConflictError, UnknownMetricError
from loopcore.testing import toy_learner

constant = lc.schedules.constant
BATCH = (np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))


def layers(callback: lc.Callback, optimizers: Mapping[str, Any] | None = None) -> lc.Learner:
    """Two layers, "0" and "1", and an optimizer for each."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    each = optimizers or {"0": lc.SGD(1.0), "1": lc.SGD(1.0)}
    return lc.Learner(model, lc.losses.mse, each, ([BATCH] * 2, None), callbacks=[callback], default_callbacks=False)


def both() -> tuple[lc.Scheduler, lc.Scheduler, lc.Learner]:
    rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(0.8, 0.0, 8)})
    weight = lc.Scheduler({"kl": lambda epoch: 10.0 * epoch}, unit="epoch")
    return rate, weight, lc.testing.toy_learner([rate, weight], hyper={"kl": 0.0}, steps=2)


def test_two_schedulers_count_for_themselves(tmp_path: Path) -> None:
    rate, weight, learner = both()
    learner.fit(2)
    assert (rate.count, weight.count) == (4, 2)
    np.testing.assert_allclose(rate.values("learning_rate"), [0.8, 0.7, 0.6, 0.5])
    assert weight.values("kl") == [0.0, 0.0, 10.0, 10.0]
    *others, other = both()
    other.load(learner.save(tmp_path / "x.safetensors"))
    other.fit(1)
    assert [one.count for one in others] == [6, 3]
    np.testing.assert_allclose(others[0].values("learning_rate"), [0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert others[1].values("kl") == [0.0, 0.0, 10.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize("name", ["learning_rate", "0.learning_rate"])
def test_two_schedulers_of_one_value_conflict(name: str) -> None:
    two = [lc.Scheduler({one: constant(0.1)}) for one in ("learning_rate", name)]
    with pytest.raises(ConflictError, match="keep one Scheduler"):
        lc.testing.toy_learner(two)


@pytest.mark.parametrize("order", list(permutations(["0.learning_rate", "1.learning_rate", "learning_rate"], 2)))
def test_the_schedule_of_one_optimizer_counts_in_any_order(order: tuple[str, ...]) -> None:
    values = {"learning_rate": 0.5, "0.learning_rate": 0.25, "1.learning_rate": 0.125}
    learner = layers(lc.Scheduler({name: constant(values[name]) for name in order}))
    learner.fit(1)
    general = 0.5 if "learning_rate" in order else 1.0
    for name in ("0.learning_rate", "1.learning_rate"):
        assert learner.hyper[name] == (values[name] if name in order else general)


def test_a_prefix_may_have_numbers() -> None:
    scheduler = lc.Scheduler({lc.LearningRate("0"): lc.schedules.linear(1.0, 0.0, 2)})
    learner = layers(scheduler)
    learner.fit(1)
    assert scheduler.values(lc.LearningRate("0")) == [1.0, 0.5]
    with pytest.raises(CallbackError, match="names joined by dots"):
        layers(lc.FunctionCallback(lambda learner, phase: None, lc.StepEnd, reads=("step.0",)))


def test_the_optimizer_momentum_stands_for_its_hyperparameter() -> None:
    scheduler = lc.Scheduler({lc.Momentum: constant(0.5)})
    learner = lc.testing.toy_learner([scheduler], optimizer=lc.Momentum(0.1))
    learner.fit(1)
    assert learner.hyper.momentum == 0.5
    assert scheduler.values(lc.Momentum) == scheduler.values("momentum") == [0.5] * len(scheduler.values("momentum"))


@pytest.mark.parametrize("key", [lc.SGD, lc.Momentum(0.1), 3, None, ("critic", "momentum")])
def test_keys_that_name_nothing(key: Any) -> None:
    with pytest.raises(CallbackError, match=r"\"momentum\""):
        lc.Scheduler({key: constant(0.5)})


def test_one_hyperparameter_twice() -> None:
    with pytest.raises(CallbackError, match="'learning_rate' twice"):
        lc.Scheduler({lc.LearningRate: constant(0.5), "learning_rate": constant(0.25)})


def test_the_weights_are_those_of_a_run_by_hand() -> None:
    """A schedule that only writes a number somewhere would leave them those of a constant rate."""
    rate = schedules.linear(0.4, 0.0, 8)
    learner = lc.testing.toy_learner(callbacks=[lc.Scheduler({lc.LearningRate: rate})], steps=4)
    learner.fit(2)
    w = 0.0
    for step in range(8):
        w -= rate(step) * 2 * (w - 1.0)
    assert float(learner.params.value["w"][0]) == pytest.approx(w, rel=1e-12)
    assert learner.hyper.learning_rate == rate(7)


class Skips(lc.Callback):
    @lc.on(lc.StepBegin, lc.AbstractTrainingPhase)
    def skip(self, learner: Any, phase: Any) -> None:
        if learner.attempt in (1, 2):
            raise lc.CancelStepException("not this one")


def test_a_skipped_step_does_not_count() -> None:
    for first in (True, False):
        scheduler = lc.Scheduler({"learning_rate": schedules.linear(1.0, 0.0, 10)})
        callbacks = [Skips(), scheduler] if first else [scheduler, Skips()]
        learner = lc.testing.toy_learner(callbacks=callbacks, steps=5)
        learner.fit(1)
        assert scheduler.count == 3 and learner.hyper.learning_rate == pytest.approx(0.8)


def test_the_count_goes_on_through_fits_and_is_part_of_the_state() -> None:
    first, second = (lc.Scheduler({"learning_rate": schedules.linear(1.0, 0.0, 100)}) for _ in range(2))
    learner = lc.testing.toy_learner(callbacks=[first], steps=4)
    learner.fit(1)
    learner.fit(1)
    assert first.count == 8 and first.values("learning_rate") == pytest.approx([1 - n / 100 for n in range(8)])
    second.load_state_dict(first.state_dict())
    resumed = lc.testing.toy_learner(callbacks=[second], steps=1)
    resumed.fit(1)
    assert resumed.hyper.learning_rate == pytest.approx(0.92)


def test_epochs_and_user_defined_scalars() -> None:
    seen: list[float] = []
    note = lc.FunctionCallback(lambda learner, _: seen.append(learner.hyper["kl"]), lc.StepEnd, reads=("hyper.kl",))
    scheduler = lc.Scheduler({lc.HyperParameter("kl"): schedules.linear(0.0, 1.0, 4)}, unit="epoch")
    lc.testing.toy_learner(callbacks=[scheduler, note], hyper={"kl": 9.0}, steps=2).fit(3)
    assert seen == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]


def test_updates_are_counted_where_some_are_withheld() -> None:
    class EverySecond(lc.Callback):
        writes = ("step.apply",)

        @lc.on(lc.BackwardEnd)
        def withhold(self, learner: Any, phase: Any) -> None:
            learner.step.apply = learner.attempt % 2 == 1

    scheduler = lc.Scheduler({"learning_rate": schedules.linear(1.0, 0.0, 10)}, unit="update")
    lc.testing.toy_learner(callbacks=[scheduler, EverySecond()], steps=6).fit(1)
    assert scheduler.count == 3


def test_what_cannot_be_scheduled_says_so_when_the_learner_is_built() -> None:
    with pytest.raises(AttributeError, match="there is no hyperparameter 'lr'"):
        lc.testing.toy_learner(callbacks=[lc.Scheduler({"lr": schedules.constant(1.0)})])
    scheduler: Any = lc.Scheduler
    for arguments, said in (
        (({},), "takes a dict"),
        (({"learning_rate": 0.1},), r"schedules\.constant\(0\.1\)"),
        (({"learning_rate": schedules.constant(1.0)}, "batch"), "unit='batch'"),
        (({"learning_rate": type("StepLR", (), {"get_last_lr": lambda self: [0.1]})()},), r"write lc\.TorchScheduler"),
    ):
        with pytest.raises(CallbackError, match=said):
            scheduler(*arguments)


def test_two_schedulers_of_one_name_are_a_conflict() -> None:
    pair = [lc.Scheduler({"learning_rate": schedules.constant(value)}) for value in (0.1, 0.2)]
    with pytest.raises(CallbackError, match=r"hyper\.learning_rate"):
        lc.testing.toy_learner(callbacks=pair)


class Plateau:
    """As torch's ReduceLROnPlateau."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def step(self, value: float) -> None:
        self.seen.append(value)


Plateau.__name__ = "ReduceLROnPlateau"


def test_a_plateau_follows_its_metric() -> None:
    plateau = Plateau()
    callback = lc.TorchScheduler(plateau, "epoch", monitor="loss")
    learner = lc.testing.toy_learner(callbacks=[callback])
    learner.fit(3)
    assert plateau.seen == learner.history["loss"]
    with pytest.raises(CallbackError, match="monitor"):
        lc.TorchScheduler(Plateau(), "epoch")
    with pytest.raises(UnknownMetricError, match="loss"):
        lc.testing.toy_learner(callbacks=[lc.TorchScheduler(Plateau(), "epoch", monitor="nothing")]).fit(1)


ONES = (np.ones((4, 1)), np.ones((4, 1)))


def by_hand(rates: list[float]) -> float:
    """The weight of the toy after steps of SGD with these rates: the gradient is 2 (w - 1)."""
    weight = 0.0
    for rate in rates:
        weight -= rate * 2 * (weight - 1)
    return weight


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
        [rates, CancelStep(lc.StepBegin, 1)], phases=[lc.TrainingPhase(), Second()], data=([ONES] * 3, None)
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
