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


def both(backend: Subject, callbacks: Callable[[list[Any]], list[lc.Callback]], phase: Any = PHASE) -> list[Any]:
    """Three steps compiled and three eager: weights and what was seen, which agree. Returns what was seen."""
    found: list[tuple[Any, list[Any]]] = []
    for compile in ("auto", False):
        seen: list[Any] = []
        learner = make_learner(
            backend.mlp(mlp_weights()), callbacks=callbacks(seen), optimizer=lc.Adam(0.1), compile=compile, reads=()
        )
        here = phase()
        for pair in PAIRS:
            learner.run_step(here, pair)
        found.append((backend.weights(learner), seen))
    (weights, seen), (expected, eager) = found
    backend.close(weights, expected, rtol=1e-5)
    assert len(seen) == len(eager)
    for mine, other in zip(seen, eager, strict=True):
        backend.close(np.asarray(mine, float), np.asarray(other, float), rtol=1e-5)
    return seen


def test_each_event_has_its_own_values(any_plan: Subject) -> None:
    """In the order in which they are fired, parameters of before the update included."""

    def callbacks(seen: list[Any]) -> list[lc.Callback]:
        def note(learner: Any, phase: Any) -> None:
            state = learner.step
            seen.append(learner.to_host(state.y_pred).sum())
            seen.append(float(learner.to_host(state.loss)) if hasattr(state, "loss") else -1.0)
            seen.append(float(learner.to_host(learner.tree.global_norm(learner.params.value))))

        reads = ("step.y_pred", "step.loss", "params")
        return [At(event, note, reads=reads) for event in EVENTS]

    seen = both(any_plan, callbacks)
    first, second, third = (seen[3 * n : 3 * n + 3] for n in range(3))
    assert first[0] == second[0] == third[0] and first[2] == second[2] == third[2]
    assert first[1] == -1.0 and second[1] == third[1] > 0


@pytest.mark.parametrize("event", EVENTS)
def test_a_cancel_keeps_what_there_was(any_plan: Subject, event: type[lc.Event]) -> None:
    def callbacks(seen: list[Any]) -> list[lc.Callback]:
        def cancel(learner: Any, phase: Any) -> None:
            seen.append(learner.attempt)
            if learner.attempt == 1:
                raise lc.CancelStepException

        others = [At(one, lambda learner, _: seen.append(learner.attempt)) for one in EVENTS]
        return [At(event, cancel), *others]

    seen = both(any_plan, callbacks)
    place = EVENTS.index(event) + 1
    assert seen.count(1) == place + 1 and seen.count(0) == seen.count(2) == 4


CHANGES = [
    *((event, what) for event in EVENTS for what in ("hyper", "shared")),
    *((lc.BackwardEnd, what) for what in ("weights", "nested")),  # within an objective torch would refuse
]


@pytest.mark.parametrize(("event", "what"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_who_changes_something_all_the_same_is_heeded(any_plan: Subject, event: type[lc.Event], what: str) -> None:
    """Through a learner it holds, or in a nested step: from then on the event is a cut."""
    held: list[Any] = []

    def callbacks(seen: list[Any]) -> list[lc.Callback]:
        def change(learner: Any, phase: Any) -> None:
            (outer,) = held[-1:]
            seen.append(learner.attempt)
            if phase is not outer[1] or learner.attempt == 2:
                return
            if what == "weights":
                outer[0].params.value = outer[0].tree.scale(outer[0].params.value, 0.5)
            elif what == "nested":
                learner.run_step(Other(), PAIRS[0])
            elif what == "hyper":
                outer[0].hyper.learning_rate = 0.5 / (1 + learner.attempt)
            else:
                outer[0].shared.factor = 1.0 + learner.attempt

        return [At(event, change, PHASE), At(lc.StepBegin, lambda learner, _: None, PHASE)]

    class Held(lc.TrainingPhase):
        def setup(self, learner: Any) -> None:
            held.append((learner, self))

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            factor = getattr(learner.shared, "factor", 1.0)
            learner.params.value = learner.tree.scale(learner.params.value, factor)

    class Other(lc.AbstractTrainingPhase):
        """Nobody listens: its steps are one program, which uses up the arrays it gets where it may."""

        data_key = "other"
        unpack = lc.TrainingPhase.unpack
        step = lc.TrainingPhase.step

    found: list[Any] = []
    for compile in ("auto", False):
        seen: list[Any] = []
        learner = make_learner(
            any_plan.mlp(mlp_weights()), callbacks=callbacks(seen), phases=[Held()], compile=compile, reads=()
        )
        (phase,) = learner.phases
        for pair in PAIRS:
            learner.run_step(phase, pair)
        found.append((any_plan.weights(learner), seen))
    any_plan.close(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1] == found[1][1]


def test_an_error_of_the_body_comes_after_what_was_heard(any_plan: Subject) -> None:
    class Broken(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            raise ZeroDivisionError("of the body")

    heard: list[float] = []
    note = At(
        lc.LossBegin,
        lambda learner, _: heard.append(float(learner.to_host(learner.step.y_pred).sum())),
        reads=("step.y_pred",),
    )
    learner, phase = make_learner(any_plan.mlp(mlp_weights()), callbacks=[note], reads=()), Broken()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="of the body"):
            learner.run_step(phase, PAIRS[0])
    assert len(heard) == 2 and heard[0] == heard[1]


def test_looks_and_cuts_in_one_step(any_plan: Subject) -> None:
    """Events of both kinds before, at and after the cut, and an event that is fired twice."""

    class Twice(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            super().step(learner, handle, state)

    def callbacks(seen: list[Any]) -> list[lc.Callback]:
        def halve(learner: Any, phase: Any) -> None:
            learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)

        def norm(learner: Any, phase: Any) -> None:
            seen.append(float(learner.to_host(learner.tree.global_norm(learner.step.grads))))

        writer = At(lc.BackwardEnd, halve, writes=("step.grads",))
        looks = [
            At(
                event,
                lambda learner, _: seen.append(learner.to_host(learner.step.y_pred).sum()),
                reads=("step.y_pred",),
            )
            for event in EVENTS
        ]
        return [writer, *looks, At(lc.BackwardEnd, norm, reads=("step.grads",))]

    assert len(both(any_plan, callbacks, Twice)) == 3 * 2 * 4
