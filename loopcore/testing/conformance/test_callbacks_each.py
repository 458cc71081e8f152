"""What holds for every callback that the package exports: plans, state, wrapping, and what a step costs."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import OUTPUTS, batches, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS, VALID = batches(4), batches(2, seed=9)
QUIET: dict[str, Any] = {"file": io.StringIO(), "quiet": True}
MAKERS: dict[type[lc.Callback], Callable[[Path], lc.Callback]] = {
    lc.AveragedWeights: lambda _: lc.AveragedWeights(0.9),
    lc.Checkpointer: lambda folder: lc.Checkpointer(folder, keep_top_k=1),
    lc.ConditionalCallback: lambda _: lc.ConditionalCallback(lc.GarbageCollect(), lambda learner, phase: True),
    lc.EarlyStopping: lambda _: lc.EarlyStopping(5, monitor="loss"),
    lc.Freeze: lambda _: lc.Freeze("hidden.*", epochs=1),
    lc.FunctionCallback: lambda _: lc.FunctionCallback(lambda learner, phase: None, lc.StepEnd),
    lc.GarbageCollect: lambda _: lc.GarbageCollect(),
    lc.GradientAccumulation: lambda _: lc.GradientAccumulation(3),
    lc.GradientClipping: lambda _: lc.GradientClipping(norm=0.1, value=0.05),
    lc.LabelSmoothing: lambda _: lc.LabelSmoothing(0.1, classes=OUTPUTS),
    lc.LogHistograms: lambda _: lc.LogHistograms(lc.loggers.MemoryLogger(), gradients=True),
    lc.LogHyperParams: lambda _: lc.LogHyperParams(lc.loggers.MemoryLogger()),
    lc.LogMetrics: lambda _: lc.LogMetrics(lc.loggers.MemoryLogger()),
    lc.LogTraces: lambda _: lc.LogTraces(lc.loggers.MemoryLogger()),
    lc.LogVisualization: lambda _: lc.LogVisualization(lambda learner: 1.0, lc.loggers.MemoryLogger(), name="one"),
    lc.MaxSteps: lambda _: lc.MaxSteps(1000),
    lc.MaxTime: lambda _: lc.MaxTime(1e6),
    lc.Metrics: lambda _: lc.Metrics(lc.losses.mae, lc.SmoothLoss()),
    lc.MetricsPrinter: lambda _: lc.MetricsPrinter(**QUIET),
    lc.MixUp: lambda _: lc.MixUp(0.4, classes=OUTPUTS),
    lc.Profiler: lambda folder: lc.Profiler(folder, skip=1, steps=2),
    lc.ProgressPrinter: lambda _: lc.ProgressPrinter(**QUIET),
    lc.Recorder: lambda _: lc.Recorder(),
    lc.SanityCheck: lambda _: lc.SanityCheck(),
    lc.Scheduler: lambda _: lc.Scheduler({lc.LearningRate: lc.one_cycle(0.1, 8)}),
    lc.StopOnNaNLoss: lambda _: lc.StopOnNaNLoss(),
    lc.ToDevice: lambda _: lc.ToDevice("cpu"),
    lc.ToGPU: lambda _: lc.ToGPU(required=False),
    lc.Traces: lambda _: lc.Traces({"attempt": lambda learner: learner.attempt}),
    lc.TorchScheduler: lambda _: lc.TorchScheduler(Idle(), "step"),
}
KINDS = pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)


class Idle:
    """A scheduler in the manner of torch that changes nothing."""

    def step(self) -> None:
        """Leave the learning rate as it is."""


def learner_of(backend: Subject, callback: lc.Callback, **options: Any) -> lc.Learner:
    callbacks = [callback]
    kinds = {type(callback.identity())}
    if lc.LogTraces in kinds:
        callbacks.append(MAKERS[lc.Traces](Path()))
    callbacks += [default for default in (lc.Recorder(), lc.Metrics()) if type(default) not in kinds]
    return make_learner(
        backend.mlp(mlp_weights()),
        callbacks=callbacks,
        data=(PAIRS, VALID),
        optimizer=lc.Momentum(0.05),
        reads=(),
        **options,
    )


def test_every_callback_is_here() -> None:
    exported = {value for name in lc.__all__ if isinstance(value := getattr(lc, name), type)}
    assert {kind for kind in exported if issubclass(kind, lc.Callback)} - {lc.Callback} == set(MAKERS)


@KINDS
def test_it_does_the_same_in_compiled_and_eager_steps(any_plan: Subject, kind: Any, tmp_path: Path) -> None:
    learners = [learner_of(any_plan, MAKERS[kind](tmp_path / str(mode)), compile=mode) for mode in ("auto", False)]
    for learner in learners:
        assert learner.fit(2).status == "completed"
    weights, expected = (any_plan.weights(learner) for learner in learners)
    any_plan.close(weights, expected, rtol=1e-4)
    assert [key for key in learners[0].history] == [key for key in learners[1].history]
    for key, values in learners[0].history.items():
        np.testing.assert_allclose(np.array(values, float), np.array(learners[1].history[key], float), rtol=1e-4)


@KINDS
def test_its_state_goes_through_json(any_plan: Subject, kind: Any, tmp_path: Path) -> None:
    first, second = MAKERS[kind](tmp_path), MAKERS[kind](tmp_path)
    learner_of(any_plan, first).fit(2)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert json.loads(json.dumps(second.state_dict())) == state


@KINDS
@pytest.mark.parametrize("epochs", [0, 1])
def test_it_goes_through_a_checkpoint(any_plan: Subject, kind: Any, epochs: int, tmp_path: Path) -> None:
    first, second = MAKERS[kind](tmp_path / "first"), MAKERS[kind](tmp_path / "second")
    learner, other = learner_of(any_plan, first), learner_of(any_plan, second)
    if epochs:
        learner.fit(epochs)
    other.load(learner.save(tmp_path / "x.safetensors"))
    assert json.dumps(second.state_dict()) == json.dumps(first.state_dict())  # as text, where NaN is like NaN
    assert other.fit(1).status == "completed"
    assert other.shared.history["training"].epochs == epochs + 1


@KINDS
def test_it_can_be_throttled(any_plan: Subject, kind: Any, tmp_path: Path) -> None:
    callback = MAKERS[kind](tmp_path)
    if not callback.listeners:  # nothing to throttle
        assert kind in (lc.ToDevice, lc.ToGPU)
        return
    wrapped = lc.throttle(callback, callback.listeners[0].event, when=lambda phase: True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner, plain = learner_of(any_plan, wrapped), learner_of(any_plan, MAKERS[kind](tmp_path / "plain"))
        assert learner.fit(2).status == plain.fit(2).status == "completed"
    assert learner.callbacks.get(type(callback.identity())) is callback.identity()
    any_plan.close(any_plan.weights(learner), any_plan.weights(plain), rtol=1e-6)


@KINDS
def test_it_copes_with_a_begin_it_does_not_hear(any_plan: Subject, kind: Any, tmp_path: Path) -> None:
    events = {listener.event for listener in MAKERS[kind](tmp_path).listeners}
    for event in sorted(events & {lc.FitBegin, lc.EpochBegin, lc.StepBegin}, key=lambda event: event.__name__):
        weights: list[Any] = []
        for mode in ("auto", False):
            wrapped = lc.throttle(MAKERS[kind](tmp_path / event.__name__ / str(mode)), event, every=2)
            learner = learner_of(any_plan, wrapped, compile=mode)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert learner.fit(3).status == "completed"
            weights.append(any_plan.weights(learner))
        any_plan.close(weights[0], weights[1], rtol=1e-4)


@KINDS
def test_it_causes_no_transfer_in_a_step(any_plan: Subject, kind: Any, tmp_path: Path) -> None:
    callback = MAKERS[kind](tmp_path)
    learner, phase = learner_of(any_plan, callback), lc.TrainingPhase()
    with lc.run_epoch(learner, phase):
        for pair in PAIRS:
            learner.run_step(phase, pair)
        if isinstance(callback, lc.StopOnNaNLoss):
            callback._next = float("inf")  # it may look ten times a second
        before = learner.backend.transfers
        for pair in PAIRS * 3:
            learner.run_step(phase, pair)
        assert learner.backend.transfers == before
