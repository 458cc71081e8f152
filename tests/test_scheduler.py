"""Several schedulers, schedules for single optimizers, and the names they go by."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loopcore as lc
from loopcore.errors import CallbackError, ConflictError

constant = lc.schedules.constant
BATCH = (np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))


def layers(callback: lc.Callback, optimizers: Mapping[str, Any] | None = None) -> lc.Learner:
    """Two layers, "0" and "1", and an optimizer for each."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    each = optimizers or {"0": lc.SGD(1.0), "1": lc.SGD(1.0)}
    return lc.Learner(model, lc.losses.mse, each, ([BATCH] * 2, None), callbacks=[callback], default_callbacks=False)


# -- several schedulers


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


# -- single optimizers


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


# -- names


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
