"""Schedules against torch's, and those of torch as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

import loopcore as lc
from loopcore import schedules
from loopcore.errors import CallbackError, ConflictError


def rates(make: Any, rate: float, steps: int) -> list[float]:
    """The learning rate that torch uses for each of some steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
    scheduler = make(optimizer)
    found: list[float] = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def same(mine: schedules.Schedule, theirs: list[float]) -> None:
    np.testing.assert_allclose([mine(step) for step in range(len(theirs))], theirs, rtol=1e-6, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 2), st.integers(2, 60), st.floats(0.1, 0.9))
def test_those_of_torch(rate: float, length: int, factor: float) -> None:
    same(schedules.steps(rate, factor, length), rates(lambda o: torch_schedules.StepLR(o, length, factor), rate, 100))
    places = [length, 2 * length]
    multi = rates(lambda o: torch_schedules.MultiStepLR(o, places, factor), rate, 100)
    same(schedules.steps(rate, factor, places), multi)
    same(schedules.exponential(rate, factor), rates(lambda o: torch_schedules.ExponentialLR(o, factor), rate, 30))
    line = rates(lambda o: torch_schedules.LinearLR(o, factor, 1.0, length), rate, 100)
    same(schedules.linear(rate * factor, rate, length), line)
    bent = rates(lambda o: torch_schedules.PolynomialLR(o, length, 2.0), rate, length + 1)
    same(schedules.polynomial(rate, 0.0, length, 2.0), bent)
    half = rates(lambda o: torch_schedules.CosineAnnealingLR(o, length, 0.001), rate, length + 1)
    same(schedules.cosine(rate, 0.001, length), half)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 2), st.integers(20, 80))
def test_one_cycle_is_that_of_torch(peak: float, steps: int) -> None:
    """torch counts to the last step, and turns at a step."""
    theirs = rates(
        lambda o: torch_schedules.OneCycleLR(o, peak, total_steps=steps, pct_start=0.25, cycle_momentum=False),
        peak,
        steps - 1,
    )
    length, up = steps - 1, 0.25 * steps - 1
    same(lc.one_cycle(peak, length, rise=up / length), theirs)


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_scheduler_of_torch_is_taken_as_it_is(unit: Any) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    callback = lc.TorchScheduler(torch_schedules.ExponentialLR(optimizer, 0.5), unit)
    batch = (np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))
    options: dict[str, Any] = {"callbacks": [callback], "default_callbacks": False}
    learner = lc.Learner(model, lc.losses.mse, optimizer, ([batch] * 3, None), **options)
    learner.fit(2)
    assert learner.hyper.learning_rate == {"step": 0.5**6, "epoch": 0.25}[unit]


def test_a_window_is_one_step_of_a_scheduler_of_torch() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    callbacks = [lc.TorchScheduler(torch_schedules.ExponentialLR(optimizer, 0.5), "step"), lc.GradientAccumulation(2)]
    batch = (np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))
    unsized = type("Unsized", (), {"__iter__": lambda self: iter([batch] * 5)})()
    for data in ([batch] * 5, unsized):
        optimizer.param_groups[0]["lr"] = 1.0
        learner = lc.Learner(model, lc.losses.mse, optimizer, (data, None), callbacks=callbacks)
        learner.fit(1)
        assert learner.hyper.learning_rate == 0.5**3
        learner.callbacks.remove(*callbacks)


def test_a_plateau_of_torch() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    plateau = torch_schedules.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
    optimizer.param_groups[0]["lr"] = 1e-30  # nothing gets better
    callback = lc.TorchScheduler(plateau, "epoch", monitor="val_loss")
    batch = [(np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))]
    quiet = [callback, lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
    plateau.eps = 0.0
    learner = lc.Learner(model, lc.losses.mse, optimizer, (batch, batch), callbacks=quiet)
    learner.fit(5)
    assert learner.hyper.learning_rate == 0.25e-30


@pytest.mark.parametrize("given", [lc.SGD(1.0), "another"])
def test_a_scheduler_of_an_optimizer_that_trains_nothing(given: Any) -> None:
    model = torch.nn.Linear(3, 2)
    mine = torch.optim.SGD(model.parameters(), 1.0)
    optimizer = torch.optim.SGD(model.parameters(), 1.0) if given == "another" else given
    callback = lc.TorchScheduler(torch_schedules.ExponentialLR(mine, 0.5), "epoch")
    with pytest.raises(CallbackError, match=r"ExponentialLR.*it has SGD: pass the same object"):
        lc.Learner(model, lc.losses.mse, optimizer, callbacks=[callback])


def two_layers() -> tuple[torch.nn.ModuleDict, dict[str, Any], Any]:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 2)})
    optimizers = {name: torch.optim.SGD(model[name].parameters(), 1.0) for name in model}
    batch = (np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))
    model.forward = lambda x: model["b"](model["a"](x))
    return model, optimizers, ([batch] * 3, None)


def test_schedulers_of_torch_for_two_optimizers() -> None:
    model, optimizers, data = two_layers()
    halves = lc.TorchScheduler(torch_schedules.ExponentialLR(optimizers["a"], 0.5), "step")
    thirds = lc.TorchScheduler(torch_schedules.StepLR(optimizers["b"], 2, 0.1), "epoch")
    weight = lc.Scheduler({"kl": lambda step: step})
    learner = lc.Learner(
        model, lc.losses.mse, optimizers, data, callbacks=[halves, weight, thirds], hyper={"kl": 0.0},
        default_callbacks=False,
    )  # fmt: skip
    learner.fit(2)
    assert halves.values("a.learning_rate") == [0.5**k for k in range(6)]
    assert thirds.values("b.learning_rate") == [1.0] * 6
    assert learner.hyper["a.learning_rate"] == 0.5**6 and learner.hyper["b.learning_rate"] == 0.1
    rates = learner.shared.hyper_step["training"]
    assert set(rates) == {"a.learning_rate", "b.learning_rate", "kl"}


def test_schedulers_of_one_optimizer_conflict() -> None:
    model, optimizers, data = two_layers()
    one, other = (lc.TorchScheduler(torch_schedules.StepLR(optimizers["a"], 1), "step") for _ in range(2))
    with pytest.raises(ConflictError, match="TorchScheduler"):
        lc.Learner(model, lc.losses.mse, optimizers, data, callbacks=[one, other])
    with pytest.raises(ConflictError, match="Scheduler"):
        lc.Learner(
            model, lc.losses.mse, optimizers, data,
            callbacks=[one, lc.Scheduler({"a.learning_rate": lambda step: 0.1})],
        )  # fmt: skip
