"""What a phase says of itself: its batch, its events, its body; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import NoDataError, UnpackError
from loopcore.events import STEP_EVENTS
from loopcore.testing import Trace, toy_learner
from tests.refusals import refused

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
PHASES = {"TrainingPhase": lc.TrainingPhase(), "ValidationPhase": lc.ValidationPhase()}


@pytest.mark.parametrize("name", STEP_EVENTS)
def test_each_phase_fires_the_events_of_its_table(name: str) -> None:  # T-10
    """Validation never fired LossBegin, although the documentation said so: one table must drive code and docs."""
    phase = {**PHASES, "PredictionPhase": lc.PredictionPhase()}[name]
    seen: list[tuple[type[lc.Event], set[str]]] = []

    class Watcher(lc.Callback):
        reads = ("step",)

        @lc.on(lc.Event)
        def watch(self, learner: Any, phase: Any, event: lc.Event) -> None:
            values = {value for _, names in STEP_EVENTS[name] for value in names if _has(learner.step, value)}
            seen.append((type(event), values))

    toy_learner([Watcher()], default_callbacks=False, quiet=False).run_step(phase, BATCH)
    expected: list[tuple[type[lc.Event], set[str]]] = []
    there: set[str] = set()
    for event, values in STEP_EVENTS[name]:
        there = there | set(values)
        expected.append((event, there))
    assert seen == expected


def _has(state: Any, name: str) -> bool:
    return getattr(state, name, None) is not None


def test_a_batch_with_other_parts_is_an_error() -> None:  # T-12
    """``xs, ys = batch`` dropped surplus parts without a word."""
    for parts in (1, 3):
        learner = toy_learner(data=([BATCH, (np.ones((4, 1)),) * parts], None))
        with pytest.raises(UnpackError, match=rf"one with {parts} parts: nothing is dropped silently"):
            learner.fit(1)


class NoKey(lc.AbstractTrainingPhase):
    """A phase that does not say which data it runs on."""


def test_a_phase_without_data_or_body_says_what_it_lacks() -> None:  # T-16
    """A custom phase without a data iterator gave a MethodError, a missing key a bare KeyError."""
    learner = toy_learner()
    with pytest.raises(NoDataError, match=r"NoKey has data_key = None.*set data_key, call run_epoch\(phase, data\)"):
        learner.run_epoch(NoKey())
    with pytest.raises(NoDataError, match=r"'validation', which the learner does not have \(it has: 'training'\)"):
        learner.run_epoch(lc.ValidationPhase())
    with pytest.raises(TypeError, match="NoKey has no step body: define step"):
        learner.run_epoch(NoKey(), [{"xs": np.ones(1)}])
    with pytest.raises(UnpackError, match=r"NoKey got a batch of type tuple.*define unpack"):
        learner.run_epoch(NoKey(), [BATCH])
    with pytest.raises(TypeError, match="a phase is an instance of a subclass of Phase"):
        learner.run_epoch(lc.TrainingPhase, [BATCH])  # type: ignore[arg-type]
    assert learner.fit(1).status == "completed"


XS = np.ones((4, 1))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((XS,), ("takes batches (xs, ys)", "with 1 parts", "unpack(self, batch)")),
        ((XS, XS, XS), ("with 3 parts", "nothing is dropped silently")),
        (XS, ("of type ndarray", "yield pairs")),
        ("batch", ("of type str",)),
        (None, ("of type NoneType",)),
        (5, ("of type int",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_that_does_not_unpack(batch: Any, words: tuple[str, ...]) -> None:
    trace = Trace()
    learner = toy_learner([trace], data=([batch], None))
    refused(errors.UnpackError, "TrainingPhase", *words, action=lambda: learner.fit(1))
    assert [name for name, _, _ in trace.events] == ["FitBegin", "EpochBegin", "EpochEnd", "FitEnd"]


@pytest.mark.parametrize("returned", [BATCH, None, XS], ids=["tuple", "nothing", "array"])
def test_an_unpack_that_returns_no_names(returned: Any) -> None:
    phase = type("Bare", (lc.TrainingPhase,), {"unpack": lambda self, batch: returned})()
    words: tuple[str, ...] = ("Bare.unpack returned a", type(returned).__name__, '{"xs": xs, "ys": ys}')
    refused(errors.UnpackError, *words, action=lambda: toy_learner(phases=[phase]).fit(1))


@pytest.mark.parametrize("name", ["outcome", "apply", "updated"])
def test_a_part_with_a_reserved_name(name: str) -> None:
    learner = toy_learner(data=([{"xs": XS, "ys": XS, name: XS}], None))
    refused(errors.DataError, f"a part named {name}", "rename it", action=lambda: learner.fit(1))


def test_a_part_that_is_absent() -> None:
    learner = toy_learner(data=([{"xs": XS, 0: XS}], None))
    refused(AttributeError, "the step has no value 'ys'", "it has 0, xs", action=lambda: learner.fit(1))
