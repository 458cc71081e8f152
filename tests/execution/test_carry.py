"""What a step hands on to the next one; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CarryError
from loopcore.testing import Trace, toy_learner


class Counts(lc.TrainingPhase):
    """Carries a value that its ``start`` may have forgotten."""

    carries: tuple[str, ...] = ("seen", "hidden")

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.hidden = state.hidden + state.seen
        super().step(learner, handle, state)


class StartsHalf(Counts):
    """Writes one of two."""

    def start(self, learner: Any, state: Any) -> None:
        state.seen = learner.xp.zeros(())


@pytest.mark.parametrize(("phase", "name"), [(Counts(), "seen"), (StartsHalf(), "hidden")])
def test_a_carry_that_nobody_started(phase: lc.Phase, name: str) -> None:
    trace = Trace()
    learner = toy_learner([trace], phases=[phase])
    with pytest.raises(CarryError) as caught:
        learner.fit(1)
    words = (
        f"{type(phase).__name__} carries '{name}', but no value was there: write state.{name} in start(self, learner"
    )
    assert words in str(caught.value)
    assert [event for event, _, _ in trace.events] == ["FitBegin", "EpochBegin", "EpochEnd", "FitEnd"]


def test_a_carry_that_the_body_deletes() -> None:
    class Deletes(StartsHalf):
        carries = ("seen",)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            del state.seen

    with pytest.raises(CarryError, match="Deletes carries 'seen', but its value is gone"):
        toy_learner(phases=[Deletes()]).fit(1)


def test_a_carry_may_come_with_the_batch() -> None:
    batch = {"xs": np.ones((4, 1)), "ys": np.ones((4, 1)), "seen": np.ones(()), "hidden": np.zeros(())}
    learner = toy_learner(phases=[Counts()], data=([batch] * 2, None))
    learner.fit(1)
    assert float(learner.step.hidden) == 2.0


class Recurrent(lc.AbstractTrainingPhase):
    """Carries a sum from step to step."""

    data_key = "training"
    carries = ("total",)

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"xs": batch}

    def start(self, learner: Any, state: Any) -> None:
        state.total = np.zeros(())

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.total = state.total + learner.xp.sum(state.xs)
        state.loss = state.total


def test_an_epoch_within_an_epoch_has_its_own_carry() -> None:
    """A nested epoch of the same phase starts its own carry and hands the outer one back."""
    phase, nested = Recurrent(), False

    def run(learner: Any, phase: Any) -> None:
        nonlocal nested
        if not nested:
            nested = True
            learner.run_epoch(phase, [np.ones(1)] * 5)
            nested = False

    callback = lc.FunctionCallback(run, lc.StepEnd)
    data = ([np.ones(1)] * 4, None)
    learner = toy_learner([callback, lc.Metrics()], phases=[phase], data=data, default_callbacks=False, quiet=False)
    learner.fit(2)
    assert learner.history["loss"] == [2.5, 2.5]
    assert [loss for _, _, loss in learner.history.within("loss")] == [3.0] * 8
    learner.run_step(phase, np.ones(1))
    learner.run_step(phase, np.ones(1))
    learner.fit(1)
    assert learner.history["loss"][-1] == 2.5, "an epoch starts anew, whatever single steps left behind"
