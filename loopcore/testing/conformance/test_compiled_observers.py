"""Host handlers that declare no writes: they hear each event with what it had, whatever runs as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(3)
EVENTS = (lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd)
PHASE = lc.TrainingPhase


def compare_plans(
    backend: Subject, callbacks: Callable[[list[Any]], list[lc.Callback]], phase: Any = PHASE
) -> list[Any]:
    """Three steps compiled and three eager: weights and what was seen, which agree. Returns what was seen."""
    results: list[tuple[Any, list[Any]]] = []
    for compile in ("auto", False):
        observations: list[Any] = []
        learner = make_learner(
            backend.mlp(mlp_weights()),
            callbacks=callbacks(observations),
            optimizer=lc.Adam(0.1),
            compile=compile,
            reads=(),
        )
        instance = phase()
        for pair in PAIRS:
            learner.run_step(instance, pair)
        results.append((backend.weights(learner), observations))
    (weights, observations), (expected, eager) = results
    backend.close(weights, expected, rtol=1e-5)
    assert len(observations) == len(eager)
    for value, other in zip(observations, eager, strict=True):
        backend.close(np.asarray(value, float), np.asarray(other, float), rtol=1e-5)
    return observations


def test_each_event_has_its_own_values(any_plan: Subject) -> None:
    """What a handler reads at an event is of that moment: no loss yet, parameters of before the update."""

    def callbacks(observations: list[Any]) -> list[lc.Callback]:
        def note(learner: Any, phase: Any) -> None:
            state = learner.step
            observations.append(learner.to_host(state.y_pred).sum())
            observations.append(float(learner.to_host(state.loss)) if hasattr(state, "loss") else -1.0)
            observations.append(float(learner.to_host(learner.tree.global_norm(learner.params.value))))

        reads = ("step.y_pred", "step.loss", "params")
        return [At(event, note, reads=reads) for event in EVENTS]

    observations = compare_plans(any_plan, callbacks)
    first, second, third = (observations[3 * n : 3 * n + 3] for n in range(3))
    assert first[0] == second[0] == third[0] and first[2] == second[2] == third[2]
    assert first[1] == -1.0 and second[1] == third[1] > 0


@pytest.mark.parametrize("event", EVENTS)
def test_a_cancel_keeps_what_there_was(any_plan: Subject, event: type[lc.Event]) -> None:
    def callbacks(observations: list[Any]) -> list[lc.Callback]:
        def cancel(learner: Any, phase: Any) -> None:
            observations.append(learner.attempt)
            if learner.attempt == 1:
                raise lc.CancelStepException

        counters = [At(other_event, lambda learner, _: observations.append(learner.attempt)) for other_event in EVENTS]
        return [At(event, cancel), *counters]

    observations = compare_plans(any_plan, callbacks)
    place = EVENTS.index(event) + 1
    assert observations.count(1) == place + 1 and observations.count(0) == observations.count(2) == 4


CHANGES = [
    *((event, target) for event in EVENTS for target in ("hyper", "shared")),
    *((lc.BackwardEnd, target) for target in ("weights", "nested")),  # within an objective torch would refuse
]


@pytest.mark.parametrize(("event", "target"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_who_changes_something_all_the_same_is_heeded(any_plan: Subject, event: type[lc.Event], target: str) -> None:
    """A handler that declares no writes changes something through a learner it holds, or in a nested step.

    From then on the step is cut at its event.
    """
    holders: list[Any] = []

    def callbacks(observations: list[Any]) -> list[lc.Callback]:
        def change(learner: Any, phase: Any) -> None:
            (outer,) = holders[-1:]
            observations.append(learner.attempt)
            if phase is not outer[1] or learner.attempt == 2:
                return
            if target == "weights":
                outer[0].params.value = outer[0].tree.scale(outer[0].params.value, 0.5)
            elif target == "nested":
                learner.run_step(Other(), PAIRS[0])
            elif target == "hyper":
                outer[0].hyper.learning_rate = 0.5 / (1 + learner.attempt)
            else:
                outer[0].shared.factor = 1.0 + learner.attempt

        return [At(event, change, PHASE), At(lc.StepBegin, lambda learner, _: None, PHASE)]

    class Held(lc.TrainingPhase):
        def setup(self, learner: Any) -> None:
            holders.append((learner, self))

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            factor = getattr(learner.shared, "factor", 1.0)
            learner.params.value = learner.tree.scale(learner.params.value, factor)

    class Other(lc.AbstractTrainingPhase):
        """Has no listener, so that its steps are one program; that may overwrite the arrays it is given."""

        data_key = "other"
        unpack = lc.TrainingPhase.unpack
        step = lc.TrainingPhase.step

    results: list[Any] = []
    for compile in ("auto", False):
        observations: list[Any] = []
        learner = make_learner(
            any_plan.mlp(mlp_weights()), callbacks=callbacks(observations), phases=[Held()], compile=compile, reads=()
        )
        (phase,) = learner.phases
        for pair in PAIRS:
            learner.run_step(phase, pair)
        results.append((any_plan.weights(learner), observations))
    any_plan.close(results[0][0], results[1][0], rtol=1e-5)
    assert results[0][1] == results[1][1]


def test_an_error_of_the_body_comes_after_what_was_heard(any_plan: Subject) -> None:
    class Broken(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            raise ZeroDivisionError("of the body")

    sums: list[float] = []
    note = At(
        lc.LossBegin,
        lambda learner, _: sums.append(float(learner.to_host(learner.step.y_pred).sum())),
        reads=("step.y_pred",),
    )
    learner, phase = make_learner(any_plan.mlp(mlp_weights()), callbacks=[note], reads=()), Broken()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="of the body"):
            learner.run_step(phase, PAIRS[0])
    assert len(sums) == 2 and sums[0] == sums[1]


def test_looks_and_cuts_in_one_step(any_plan: Subject) -> None:
    """Handlers that only read, before, at and after the event of one that writes; the events are fired twice a step."""

    class Twice(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            super().step(learner, handle, state)

    def callbacks(observations: list[Any]) -> list[lc.Callback]:
        def halve(learner: Any, phase: Any) -> None:
            learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)

        def norm(learner: Any, phase: Any) -> None:
            observations.append(float(learner.to_host(learner.tree.global_norm(learner.step.grads))))

        writer = At(lc.BackwardEnd, halve, writes=("step.grads",))
        looks = [
            At(
                event,
                lambda learner, _: observations.append(learner.to_host(learner.step.y_pred).sum()),
                reads=("step.y_pred",),
            )
            for event in EVENTS
        ]
        return [writer, *looks, At(lc.BackwardEnd, norm, reads=("step.grads",))]

    assert len(compare_plans(any_plan, callbacks, Twice)) == 3 * 2 * 4
