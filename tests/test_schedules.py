"""Schedules by closed forms, and callbacks that follow them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopcore as lc
from loopcore import schedules
from loopcore.errors import CallbackError, UnknownMetricError

SIZES = st.floats(0.01, 10)
LENGTHS = st.integers(1, 100)
STEPS = st.integers(0, 200)


@given(SIZES, SIZES, LENGTHS, STEPS)
def test_closed_forms(a: float, b: float, length: int, step: int) -> None:
    share = min(step / length, 1)
    close = pytest.approx
    assert schedules.constant(a)(step) == a
    assert schedules.linear(a, b, length)(step) == close(a + (b - a) * share)
    assert schedules.polynomial(a, b, length, 2.5)(step) == close(b + (a - b) * (1 - share) ** 2.5)
    assert schedules.cosine(a, b, length)(step) == close(b + (a - b) * (1 + math.cos(math.pi * share)) / 2)
    assert schedules.exponential(a, 0.9, length)(step) == close(a * 0.9 ** (step / length))
    assert schedules.steps(a, 0.5, length)(step) == close(a * 0.5 ** (step // length))
    assert schedules.scale(schedules.constant(a), b)(step) == close(a * b)
    assert schedules.shift(schedules.linear(a, b, length), 7)(step + 7) == close(a + (b - a) * share)
    warm = schedules.warmup(schedules.linear(a, b, length), 10)
    assert warm(step) == close(a * step / 10 if step < 10 else a + (b - a) * min((step - 10) / length, 1))


@given(SIZES, st.integers(4, 1000), st.floats(0.1, 0.9))
def test_one_cycle_goes_up_and_down_once(peak: float, length: int, rise: float) -> None:
    schedule = lc.one_cycle(peak, length, rise=rise)
    values = [schedule(step) for step in range(length + 5)]
    top = int(np.argmax(values))
    assert schedule(rise * length) == pytest.approx(peak) and schedule(0) == pytest.approx(peak / 25)
    assert values[length] == pytest.approx(peak / 25e4) == values[-1]
    assert all(a <= b for a, b in pairwise(values[: top + 1]))
    assert all(a >= b for a, b in pairwise(values[top:]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.linear(1, 0, 0),
        lambda: schedules.steps(1, 0.5, 0),
        lambda: lc.one_cycle(1, 10, rise=1.0),
        lambda: schedules.sequence(schedules.constant(1), at=(3,)),
        lambda: schedules.sequence(*[schedules.constant(1)] * 3, at=(5, 5)),
    ],
)
def test_what_makes_no_schedule(make: Any) -> None:
    with pytest.raises(ValueError, match=r"length|every|rise|at="):
        make()


# -- the callback


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
