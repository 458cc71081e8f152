"""Random step bodies with random handlers, for the promise that the plan of a step never changes its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import loopcore as lc
from loopcore.errors import GradientError
from loopcore.testing.conformance.problems import batches, mlp_weights
from loopcore.testing.conformance.subject import Subject

VALUES = ("xs", "y_pred", "loss", "grads", "note")
STEPS = 2


class Midway(lc.Event):
    """An event of the bodies' own."""


EVENTS: tuple[type[lc.Event], ...] = (
    *(lc.StepBegin, lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd, Midway, lc.StepEnd),
)


@dataclass(frozen=True)
class Spec:
    """One handler: what it hears, reads and scales.

    Attributes:
        event: which it hears.
        traced: whether it is part of the program.
        reads: step values it notes (a host handler).
        writes: step values it multiplies by ``factor``.
        factor: near 1.
    """

    event: type[lc.Event]
    traced: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    factor: float


@dataclass(frozen=True)
class Case:
    """One step body, by its name in `BODIES`, and the handlers that listen to it."""

    body: str
    specs: tuple[Spec, ...]


def make_case(seed: int) -> Case:
    """Draw a body and its handlers from a seed."""
    draw = np.random.default_rng(seed)
    specs: list[Spec] = []
    for _ in range(draw.integers(0, 5)):
        event = EVENTS[draw.integers(len(EVENTS))]
        traced = bool(draw.random() < 0.4)
        reads = tuple(name for name in VALUES if draw.random() < 0.3)
        writes = tuple(name for name in VALUES if draw.random() < 0.25)
        specs.append(Spec(event, traced, reads, writes, float(draw.uniform(0.7, 1.3))))
    return Case(sorted(BODIES)[draw.integers(len(BODIES))], tuple(specs))


def objective_of(learner: Any, handle: Any, state: Any, model: Any, scale: float = 1.0) -> Callable[[], Any]:
    """An objective with an event at each seam. Part of it goes through a local, which no handler can replace."""

    def objective() -> Any:
        state.y_pred = local = model(state.xs)
        handle(lc.LossBegin())
        state.loss = scale * learner.losses.mse(state.y_pred, state.ys)
        handle(lc.BackwardBegin())
        return state.loss + 0.1 * learner.xp.mean(local * local)

    return objective


def one(learner: Any, handle: Any, state: Any) -> None:
    """The usual step."""
    learner.minimize(objective_of(learner, handle, state, learner.model.a))


def adversaries(learner: Any, handle: Any, state: Any) -> None:
    """Two models, two gradients, two updates; the second sees what the first became."""
    learner.minimize(objective_of(learner, handle, state, learner.model.a), learner.params.a)
    handle(Midway())
    state.note = learner.xp.mean(learner.model.a(state.xs))
    difference = lambda x: learner.model.b(x) - learner.model.a(x)  # noqa: E731
    learner.minimize(objective_of(learner, handle, state, difference), learner.params.b)


def _with_noise(learner: Any, noise: Any, x: Any) -> Any:
    return learner.model.a(x + 0.1 * noise)


def critics(learner: Any, handle: Any, state: Any) -> None:
    """Several steps of one model in a Python loop."""
    for number in range(2):
        noisy = partial(_with_noise, learner, learner.random.normal(state.xs.shape))
        learner.minimize(objective_of(learner, handle, state, noisy, 1.0 + number), learner.params.a)
    handle(Midway())
    learner.minimize(objective_of(learner, handle, state, learner.model.b), learner.params.b)


def nested(learner: Any, handle: Any, state: Any) -> None:
    """A gradient with respect to the inputs within an objective."""
    xp = learner.xp

    def objective() -> Any:
        slope = learner.grad(lambda x: xp.sum(learner.model.a(x)))(state.xs)
        state.y_pred = learner.model.a(state.xs)
        handle(lc.LossBegin())
        state.loss = learner.losses.mse(state.y_pred, state.ys)
        handle(lc.BackwardBegin())
        return state.loss + 0.1 * xp.mean(slope * slope)

    learner.minimize(objective, learner.params.a)


def sharp(learner: Any, handle: Any, state: Any) -> None:
    """Two gradients a step, the second elsewhere; the first is used again later, from a local."""
    tree = learner.tree
    first = learner.gradient(objective_of(learner, handle, state, learner.model.a), learner.params.a)
    handle(Midway())
    point = tree.map(lambda w, g: w + 0.05 * g, learner.params.a.value, first)
    second = learner.gradient(objective_of(learner, handle, state, learner.model.a, 2.0), learner.params.a, at=point)
    state.grads = tree.add(second, tree.scale(first, 0.1))
    handle(lc.BackwardEnd())
    learner.update(state.grads, learner.params.a, when=learner.xp.isfinite(state.loss))


def inward(learner: Any, handle: Any, state: Any) -> None:
    """Events within the inner one of two gradients, and within a function that is differentiated by its argument."""
    xp, tree = learner.xp, learner.tree

    def mean_of_b(x: Any) -> Any:
        state.note = xp.mean(learner.model.b(x))
        handle(Midway())
        return state.note

    def objective() -> Any:
        slopes = learner.gradient(objective_of(learner, handle, state, learner.model.a), learner.params.a)
        slope = learner.grad(mean_of_b)(state.xs)
        return tree.dot(slopes, slopes) + xp.mean(slope * slope)

    learner.minimize(objective)


BODIES: dict[str, Callable[[Any, Any, Any], None]] = {
    fn.__name__: fn for fn in (one, adversaries, critics, inward, nested, sharp)
}


class Acting(lc.Callback):
    """Does what a `Spec` says and notes what it saw."""

    def __init__(self, number: int, spec: Spec, observations: list[Any]) -> None:
        self.number, self.spec, self._observations = number, spec, observations
        self.reads = () if spec.traced else tuple(f"step.{name}" for name in spec.reads)
        self.traced_reads = tuple(f"step.{name}" for name in spec.reads) if spec.traced else ()
        self.writes = tuple(f"step.{name}" for name in spec.writes)
        handler = lc.FunctionCallback(self.act, spec.event, reads=self.reads, writes=self.writes, traced=spec.traced)
        self.listeners, self.call = handler.listeners, handler.call

    def resolve_conflict(self, other: lc.Callback) -> Any:
        """The handler with the lower number runs first."""
        return lc.RunFirst(self if self.number < getattr(other, "number", -1) else other)

    def act(self, learner: Any, phase: Any) -> None:
        """Note the values it reads, then scale those it writes."""
        step, spec = learner.step, self.spec
        if not spec.traced:
            values = {name: learner.to_host(getattr(step, name)) for name in spec.reads if hasattr(step, name)}
            self._observations.append((spec.event.__name__, self.number, values))
        for name in spec.writes:
            if hasattr(step, name):
                setattr(step, name, learner.tree.scale(getattr(step, name), spec.factor))


def run_case(backend: Subject, case: Case, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """Weights after some steps, and what the host handlers saw, in order."""
    observations: list[Any] = []

    class Body(lc.AbstractTrainingPhase):
        data_key = "training"

        def unpack(self, batch: Any) -> Any:
            return {"xs": batch[0], "ys": batch[1]}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            BODIES[case.body](learner, handle, state)

    learner = lc.Learner(
        {"a": backend.mlp(mlp_weights(1)), "b": backend.mlp(mlp_weights(2))},
        optimizer=lc.Momentum(0.1, 0.9),
        callbacks=[Acting(number, spec, observations) for number, spec in enumerate(case.specs)],
        default_callbacks=False,
        reads=("step.y_pred",),
        **options,
    )
    phase = Body()
    for batch in batches(STEPS):
        try:
            state = learner.run_step(phase, batch)
        except GradientError:  # a handler left a gradient nothing to go through, which has to happen in every plan
            observations.append(("step", "failed", {}))
            continue
        observations.append(
            ("step", state.outcome, {"loss": learner.to_host(state.loss), "y": learner.to_host(state.y_pred)})
        )
    return learner.export_weights(), observations
