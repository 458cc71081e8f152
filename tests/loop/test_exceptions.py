"""An exception anywhere closes every open scope once, propagates as it is, and leaves the learner usable.

The first part is exhaustive: every event of every phase, every place of the callback, every source of an exception, and
eight kinds. The second part runs random schedules of cancels and errors against a model of the rules.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loopcore as lc
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


class Custom(BaseException):
    """Not even an Exception."""


class Seam(lc.Event):
    """A moment that only `Extra` has."""


KINDS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("boom"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "StopIteration": lambda: StopIteration("boom"),
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit(3),
    "MemoryError": MemoryError,
    "Custom": lambda: Custom("boom"),
    "ExceptionGroup": lambda: ExceptionGroup("boom", [ValueError("inner")]),
}


class Extra(lc.AbstractTrainingPhase):
    """A phase of one's own, with an event of one's own."""

    data_key = "extra"

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"xs": batch[0], "ys": batch[1]}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            handle(Seam())
            handle(lc.BackwardBegin())
            return state.loss

        learner.minimize(objective)


STEP = (lc.StepBegin, lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd, lc.StepEnd)
HEARD: dict[str | None, tuple[type[lc.Event], ...]] = {
    "training": (lc.EpochBegin, *STEP, lc.EpochEnd),
    "validation": (lc.EpochBegin, lc.StepBegin, lc.LossBegin, lc.StepEnd, lc.EpochEnd),
    "extra": (lc.EpochBegin, *STEP, Seam, lc.EpochEnd),
    None: (lc.FitBegin, lc.FitEnd),
}
MOMENTS = [(event, phase) for phase, events in HEARD.items() for event in events]
SOURCES = ("iter", "next", "unpack", "forward", "loss", "update")
PLACES = [
    (source, phase) for source in SOURCES for phase in HEARD if phase and (source, phase) != ("update", "validation")
]


class Bomb:
    """Raises one exception at one place, the second time the loop comes by (or the first, where it comes by once)."""

    def __init__(self, error: BaseException, place: tuple[Any, str | None], after: int) -> None:
        self.error, self.place, self.left = error, place, after
        self.phase: str | None = None
        self.went_off = False

    def pass_by(self, what: Any) -> None:
        if self.place != (what, self.phase) or self.went_off:
            return
        self.left -= 1
        if self.left < 0:
            self.went_off = True
            raise self.error


class Listener(lc.Callback):
    """Writes down all it hears; may hold the bomb."""

    def __init__(self, bomb: Bomb | None = None) -> None:
        self.bomb = bomb
        self.events: list[tuple[type[lc.Event], str | None, str | None]] = []

    @lc.on(lc.Event)
    def hear(self, learner: Any, phase: Any, event: lc.Event) -> None:
        name = None if phase is None else phase.name
        self.events.append((type(event), name, getattr(event, "outcome", None)))
        if self.bomb is not None:
            self.bomb.phase = name
            self.bomb.pass_by(type(event))


class AFirst(Listener):
    """Hears every event before all others."""

    run_before = (lc.Callback,)


class ZLast(Listener):
    """Hears every event after all others."""

    run_after = (lc.Callback,)


POSITIONS: dict[str, type[Listener]] = {"first": AFirst, "middle": Listener, "last": ZLast}


class Batches:
    """Two batches an epoch, with the bomb in ``iter`` and ``next``."""

    def __init__(self, bomb: Bomb, phase: str) -> None:
        self.bomb, self.phase = bomb, phase

    def __iter__(self) -> Iterator[Any]:
        self.bomb.phase = self.phase
        self.bomb.pass_by("iter")
        return _Batches(self)


class _Batches:
    def __init__(self, batches: Batches) -> None:
        self.batches, self.given = batches, 0

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Any:
        self.given += 1
        if self.given > 2:
            raise StopIteration
        self.batches.bomb.phase = self.batches.phase
        self.batches.bomb.pass_by("next")
        return BATCH


def learner_with(bomb: Bomb, callbacks: list[lc.Callback]) -> lc.Learner:
    def forward(params: Any, xs: Any) -> Any:
        bomb.pass_by("forward")
        return xs * params["w"]

    def loss_fn(y_pred: Any, ys: Any) -> Any:
        bomb.pass_by("loss")
        return lc.losses.mse(y_pred, ys)

    def with_bomb(kind: type[lc.Phase]) -> lc.Phase:
        class Guarded(kind):  # type: ignore[valid-type,misc]
            def unpack(self, batch: Any) -> Any:
                bomb.phase = self.name
                bomb.pass_by("unpack")
                return super().unpack(batch)

        phase: lc.Phase = Guarded()
        return phase

    phases = [with_bomb(kind) for kind in (lc.TrainingPhase, lc.ValidationPhase, Extra)]
    data = {phase.name: Batches(bomb, phase.name) for phase in phases}
    arguments: dict[str, Any] = {"model": (forward, {"w": np.zeros(1)}), "loss_fn": loss_fn, "data": data}
    callbacks = [*callbacks, lc.Recorder(), lc.Metrics(), lc.StopOnNaNLoss()]
    learner = toy_learner(callbacks, phases=phases, default_callbacks=False, **arguments)
    update = learner.backend.update

    def guarded_update(grads: Any, apply: Any) -> Any:
        bomb.pass_by("update")
        return update(grads, apply)

    learner.backend.update = guarded_update  # type: ignore[method-assign]
    return learner


@pytest.fixture(scope="module")
def reference() -> tuple[float, list[float | None], list[float | None]]:
    """Weight and losses of an undisturbed epoch."""
    learner = learner_with(Bomb(ValueError(), ("never", None), 0), [])
    learner.fit(1)
    return learner.params.value["w"].item(), learner.history["loss"], learner.history["extra_loss"]


def closed_once(events: list[tuple[type[lc.Event], str | None, str | None]]) -> list[tuple[str, str | None]]:
    """Check that begins and ends match like brackets; the scopes that failed, innermost first."""
    open_scopes: list[tuple[str, str | None]] = []
    failed: list[tuple[str, str | None]] = []
    for event, phase, outcome in events:
        scope = event.__name__.removesuffix("Begin").removesuffix("End")
        if event in (lc.FitBegin, lc.EpochBegin, lc.StepBegin):
            open_scopes.append((scope, phase))
        elif event in (lc.FitEnd, lc.EpochEnd, lc.StepEnd):
            assert open_scopes.pop() == (scope, phase)
            failed += [(scope, phase)] if outcome == "failed" else []
            assert outcome in ("completed", "failed")
    assert not open_scopes
    return failed


def check(learner: lc.Learner, bomb: Bomb, listeners: list[Listener], expected: list[str], reference: Any) -> None:
    """Fit into the bomb, look at what is left, and fit again."""
    initial = learner.export_weights()
    with pytest.raises(BaseException) as caught:
        learner.fit(2)
    assert caught.value is bomb.error
    for listener in listeners:
        assert [scope for scope, _ in closed_once(listener.events)] == expected
        assert listener.events == listeners[0].events
    runs = learner.runs
    assert (runs._depth, runs._open_epochs, runs.runner, runs.fitting, runs.training) == (0, 0, None, False, False)
    assert learner.result is not None and learner.result.status == "interrupted"
    completed = [
        phase for event, phase, outcome in listeners[0].events if (event, outcome) == (lc.StepEnd, "completed")
    ]
    for phase in ("training", "validation", "extra"):
        assert learner.shared.history[phase].steps == completed.count(phase)
    learner.import_weights(initial)
    assert learner.fit(1).status == "completed"
    weight, losses, extra = reference
    assert learner.params.value["w"].item() == weight
    assert learner.history["loss"][-1:] == losses and learner.history["extra_loss"][-1:] == extra


SCOPES = ("Step", "Epoch", "Fit")
OUTER = {
    lc.FitBegin: 2,
    lc.FitEnd: 3,
    lc.EpochBegin: 1,
    lc.EpochEnd: 2,
    lc.StepEnd: 1,
}  # scopes that are not open, or done


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("event", "phase"), MOMENTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_from_a_callback(event: type[lc.Event], phase: str | None, position: str, kind: str, reference: Any) -> None:
    bomb = Bomb(KINDS[kind](), (event, phase), after=0 if phase is None else 1)
    listeners = [make(bomb if name == position else None) for name, make in POSITIONS.items()]
    learner = learner_with(bomb, list(listeners))
    order = [callback for callback in learner.callbacks if isinstance(callback, Listener)]
    assert [type(callback) for callback in order] == [AFirst, Listener, ZLast]
    check(learner, bomb, listeners, list(SCOPES[OUTER.get(event, 0) :]), reference)
    name, where = POSITIONS[position].__name__, f" of phase {phase!r}" if phase else ""
    assert bomb.error.__notes__ == [f"raised by callback {name} at {event.__name__}{where}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("source", "phase"), PLACES)
def test_from_data_and_body(source: str, phase: str, kind: str, reference: Any) -> None:
    if (source, kind) == ("next", "StopIteration"):
        kind = "ValueError"  # a StopIteration of next() says that the epoch is over
    bomb = Bomb(KINDS[kind](), (source, phase), after=1)
    listeners = [make(bomb) for make in POSITIONS.values()]
    learner = learner_with(bomb, list(listeners))
    within = source in ("forward", "loss", "update")
    check(learner, bomb, listeners, list(SCOPES[0 if within else 1 :]), reference)
    assert not getattr(bomb.error, "__notes__", None)


def test_a_second_exception_is_noted_on_the_first() -> None:
    one, two = ValueError("first"), KeyError("second")
    listeners = [AFirst(Bomb(one, (lc.StepEnd, "training"), 0)), ZLast(Bomb(two, (lc.StepEnd, "training"), 0))]
    with pytest.raises(ValueError) as caught:
        toy_learner(list(listeners)).fit(1)
    assert caught.value is one
    assert one.__notes__[-1] == "then also raised: KeyError: 'second'"
    assert [scope for scope, _ in closed_once(listeners[0].events)] == ["Epoch", "Fit"]


def test_a_warning_that_is_an_error_closes_the_step_too() -> None:
    """A handler that waits for an event that never comes is warned about after the step: still within it."""
    listener, late = Listener(), lc.FunctionCallback(lambda learner, phase: None, Seam)
    learner = toy_learner([listener, late])
    with pytest.raises(UserWarning, match="listens to Seam"):
        learner.fit(1)
    assert [scope for scope, _ in closed_once(listener.events)] == ["Step", "Epoch", "Fit"]
    assert learner.runs._depth == 0 and learner.fit(1).status == "completed"


def test_a_phase_that_fails_to_start_its_carry_closes_the_step() -> None:
    class Fails(Extra):
        carries = ("hidden",)
        data_key = "training"

        def start(self, learner: Any, state: Any) -> None:
            raise ValueError("no start")

    listener = Listener()
    learner = toy_learner([listener], phases=[Fails()])
    with pytest.raises(ValueError, match="no start"):
        learner.fit(1)
    assert [scope for scope, _ in closed_once(listener.events)] == ["Epoch", "Fit"], "no StepBegin was heard"
    assert learner.runs._depth == 0 and learner.runs.runner is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_a_learner_alive_after_an_exception(kind: str) -> None:
    bomb = Bomb(KINDS[kind](), (lc.LossBegin, "training"), 0)
    learner = learner_with(bomb, [Listener(bomb)])
    with pytest.raises(type(bomb.error)):
        learner.fit(1)
    bomb.error = ValueError()
    gone = weakref.ref(learner)
    del learner
    gc.collect()
    assert gone() is None


# ---- random schedules against a model of the rules

ACTIONS: dict[str, Callable[[], BaseException]] = {
    "step": lambda: lc.CancelStepException("s"),
    "epoch": lambda: lc.CancelEpochException("e"),
    "fit": lambda: lc.CancelFittingException("f"),
    "error": lambda: ValueError("x"),
}
RANK = {None: -1, "step": 0, "epoch": 1, "fit": 2, "error": 3}
Schedule = dict[tuple[str, int], str]  # (first or last callback, index of the event) -> what it raises
INNER = {
    "training": ("StepBegin", "LossBegin", "BackwardBegin", "BackwardEnd"),
    "validation": ("StepBegin", "LossBegin"),
}


class Actor(lc.Callback):
    """Raises what the schedule says."""

    def __init__(self, who: str, schedule: Schedule) -> None:
        self.who, self.schedule, self.heard = who, schedule, 0

    @lc.on(lc.Event)
    def act(self, learner: Any, phase: Any) -> None:
        action = self.schedule.get((self.who, self.heard))
        self.heard += 1
        if action is not None:
            raise ACTIONS[action]()


class FirstActor(Actor):
    """Acts before all others."""

    run_before = (lc.Callback,)


class LastActor(Actor):
    """Acts after all others."""

    run_after = (lc.Callback,)


@dataclass
class Model:
    """What the rules say, without any of the code."""

    schedule: Schedule
    steps: int
    trace: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=lambda: {"training": 0, "validation": 0})
    done: dict[str, int] = field(default_factory=lambda: {"training": 0, "validation": 0})
    attempts: dict[str, int] = field(default_factory=lambda: {"training": 0, "validation": 0})
    means: dict[str, list[float | None]] = field(default_factory=lambda: {"training": [], "validation": []})
    rounds: int = 0
    number: int = 0  # of the round that runs
    weight: float = 0.0

    def fire(self, event: str, phase: str | None, outcome: str | None = None) -> str | None:
        index = len(self.trace)
        self.trace.append((event, phase, outcome))
        return self.merge(self.schedule.get(("first", index)), self.schedule.get(("last", index)))

    @staticmethod
    def merge(one: str | None, two: str | None) -> str | None:
        return two if RANK[two] > RANK[one] else one

    @staticmethod
    def outcome(raised: str | None, begun: bool = True) -> str:
        if raised is None:
            return "completed"
        return "failed" if raised == "error" else "cancelled" if begun else "skipped"

    def step(self, phase: str, losses: list[float]) -> str | None:
        self.attempts[phase] += 1
        loss, begun, raised = (self.weight - 1) ** 2, False, None
        for event in INNER[phase]:
            raised = self.fire(event, phase)
            if raised is not None:
                break
            begun = True
        else:
            if phase == "training":
                self.weight -= 0.1 * 2 * (self.weight - 1)
        outcome = self.outcome(raised, begun)
        self.done[phase] += outcome == "completed"
        losses += [loss] if outcome == "completed" else []
        raised = self.merge(None if raised == "step" else raised, self.fire("StepEnd", phase, outcome))
        return None if raised == "step" else raised

    def epoch(self, phase: str) -> tuple[str | None, bool]:
        losses: list[float] = []
        raised = self.fire("EpochBegin", phase)
        begun = raised is None
        raised = "error" if raised == "step" else raised
        if begun:
            for _ in range(self.steps):
                raised = self.step(phase, losses)
                if raised is not None:
                    break
        outcome = self.outcome(raised, begun)
        if outcome == "completed":
            self.epochs[phase] += 1
        if outcome == "completed" or (outcome == "cancelled" and losses):
            gap = [None] * (self.number - 1 - len(self.means[phase]))
            self.means[phase] += [*gap, sum(losses) / len(losses) if losses else None]
        raised = self.merge(None if raised == "epoch" else raised, self.fire("EpochEnd", phase, outcome))
        raised = {"step": "error", "epoch": None}.get(raised or "", raised)
        return raised, outcome == "completed"

    def fit(self, epochs: int) -> str:
        raised = self.misused(self.fire("FitBegin", None))
        for _ in range(epochs):
            completed = 0
            self.number += 1
            for phase in ("training", "validation"):
                if raised is None:
                    raised, whole = self.epoch(phase)
                    completed += whole and raised in (None, "fit")  # whose end stops the fit is completed all the same
            self.rounds += completed == 2
        merged = self.misused(self.merge(raised, self.fire("FitEnd", None, self.outcome(raised))))
        raised = raised if merged == "fit" else merged
        return {None: "completed", "fit": "stopped", "error": "error"}[raised]

    @staticmethod
    def misused(raised: str | None) -> str | None:
        return "error" if raised in ("step", "epoch") else raised


schedules = st.dictionaries(
    st.tuples(st.sampled_from(["first", "last"]), st.integers(0, 45)), st.sampled_from(list(ACTIONS)), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(schedule=schedules, epochs=st.integers(0, 3), steps=st.integers(1, 3))
def test_random_schedules_follow_the_model(schedule: Schedule, epochs: int, steps: int) -> None:
    trace = lc.testing.Trace()
    callbacks = [FirstActor("first", schedule), trace, LastActor("last", schedule), lc.Recorder(), lc.Metrics()]
    data = ([BATCH] * steps, [BATCH] * steps)
    learner = toy_learner(callbacks, data=data, default_callbacks=False, quiet=False)
    model = Model(schedule, steps)
    expected = model.fit(epochs)
    try:
        result = learner.fit(epochs)
        assert (result.status, result.epochs) == (expected, model.rounds)
    except (ValueError, lc.errors.CancelScopeError):
        assert expected == "error"
    assert trace.events == model.trace
    assert (learner.runs._depth, learner.runs.runner, learner.runs.fitting) == (0, None, False)
    np.testing.assert_allclose(learner.params.value["w"].item(), model.weight, rtol=1e-12, atol=1e-15)
    for phase, prefix in (("training", ""), ("validation", "val_")):
        counts = learner.shared.history[phase]
        assert (counts.epochs, counts.steps, counts.attempts) == (
            (model.epochs[phase], model.done[phase], model.attempts[phase])
        )
        found = learner.history[f"{prefix}loss"] if model.means[phase] else []
        np.testing.assert_allclose(np.array(found, float), np.array(model.means[phase], float), rtol=1e-9, atol=1e-15)
    learner.callbacks.set(lc.Recorder(), lc.Metrics())
    assert learner.fit(1).status == "completed", "the learner is usable afterwards"
