"""Values noted by functions, profiles, devices, and callbacks under a condition."""

from __future__ import annotations

import pstats
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import BackendError, CallbackError, ConflictError, EventError, MissingRequirementError


def loss(**options: Any) -> lc.Traces:
    return lc.Traces({"loss": lambda learner: float(learner.step.loss)}, reads=("step.loss",), **options)


def attempts(**options: Any) -> lc.Traces:
    return lc.Traces({"attempt": lambda learner: learner.attempt}, **options)


BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_traces_are_kept_by_phase_and_bounded() -> None:
    """Row M-10: the vectors of traces had no bound."""
    traces = [loss(size=4), attempts(phase=lc.Phase, size=4)]
    learner = lc.testing.toy_learner(traces, data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(3)
    noted = learner.shared.traces
    assert list(noted["training"]["attempt"].values) == [5, 6, 7, 8] and noted["training"]["attempt"].count == 9
    assert list(noted["validation"]["attempt"].values) == [2, 3, 4, 5] and "loss" not in noted["validation"]
    steps = learner.history.steps("loss")[-4:]
    np.testing.assert_allclose(list(noted["training"]["loss"].values), steps)


def test_a_trace_of_a_cancelled_step_is_none() -> None:
    class Cancel(lc.Callback):
        @lc.on(lc.StepBegin)
        def begin(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 1:
                raise lc.CancelStepException

    learner = lc.testing.toy_learner([attempts(), Cancel()], steps=3)
    learner.fit(1)
    assert list(learner.shared.traces["training"]["attempt"].values) == [0, 2]


def test_traces_are_logged_once_and_by_kind() -> None:
    logger = lc.loggers.MemoryLogger()
    array = lc.Traces({"weights": lambda learner: learner.params.value["w"]}, lc.EpochEnd, reads=("params",))
    text = lc.Traces({"text": lambda learner: lc.loggers.Text("hello")}, lc.EpochEnd, lc.ValidationPhase)
    data = [BATCH] * 2, [BATCH]
    learner = lc.testing.toy_learner([loss(), array, text, lc.LogTraces(logger)], data=data)
    learner.fit(2)
    assert [step for step, _ in logger.entries["trace/loss"]] == [1, 2, 3, 4]
    assert [value for _, value in logger.entries["trace/val_text"]] == ["hello", "hello"]
    assert len(logger.entries["trace/weights"]) == 2
    with pytest.raises(MissingRequirementError, match="Traces"):
        lc.testing.toy_learner([lc.LogTraces(logger)])


def test_a_trace_that_reads_what_it_does_not_say() -> None:
    undeclared = lc.Traces({"loss": lambda learner: learner.step.loss})
    with pytest.raises(lc.AccessError, match=r"step\.loss"):
        lc.testing.toy_learner([undeclared]).fit(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lc.Traces({}), "by name"),
        (lambda: lc.Traces(print), r"not <built-in"),  # type: ignore[arg-type]
        (lambda: lc.Traces({"one": 1}), "'one': 1"),  # type: ignore[dict-item]
        (lambda: loss(size=0), "at least 1"),
        (lambda: lc.Profiler("here", steps=0), "at least 1"),
        (lambda: lc.ConditionalCallback(print, bool), "an instance"),  # type: ignore[arg-type]
        (lambda: lc.ConditionalCallback(lc.Recorder(), True), "a function"),  # type: ignore[arg-type]
        (lambda: lc.ConditionalCallback(lc.Recorder(), lambda learner, phase: True, lc.LossBegin), "does not listen"),
    ],
)
def test_arguments_that_make_no_sense(make: Any, said: str) -> None:
    with pytest.raises(CallbackError, match=said):
        make()


def test_two_traces_of_one_name() -> None:
    with pytest.raises(ConflictError, match=r"Traces.*shared\.traces"):
        lc.testing.toy_learner([loss(), loss(event=lc.BackwardEnd)])
    other = lc.Traces({"loss": lambda learner: 0.0}, phase=lc.AbstractValidationPhase)
    lc.testing.toy_learner([loss(), other])


def test_a_checkpoint_does_not_hold_them(tmp_path: Path) -> None:
    first, second = (lc.testing.toy_learner([loss()], steps=2) for _ in range(2))
    first.fit(1)
    path = first.save(tmp_path / "x.safetensors")
    second.load(path)
    assert not second.shared.traces
    first.fit(1)
    noted = first.shared.traces["training"]["loss"]
    first.load(path)
    assert first.shared.traces["training"]["loss"] is noted and noted.count == 4
    assert len(first.history["loss"]) == 1


# -- profiles and devices


def test_a_profile_is_of_the_steps_it_says(tmp_path: Path) -> None:
    calls: list[int] = []

    def watched(y_pred: Any, ys: Any) -> Any:
        calls.append(1)
        return lc.losses.mse(y_pred, ys)

    profiler = lc.Profiler(tmp_path, skip=1, steps=2)
    learner = lc.testing.toy_learner([profiler], loss_fn=watched, steps=5)
    learner.fit(1)
    learner.fit(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-1", "fit-2"], "nothing is written over"
    stats = pstats.Stats(str(tmp_path / "fit-1" / "profile.pstats")).stats  # type: ignore[attr-defined]
    found = [row[1] for (_, _, name), row in stats.items() if name == "watched"]
    assert found == [2] and len(calls) == 10


def test_a_profile_ends_with_its_fit(tmp_path: Path) -> None:
    learner = lc.testing.toy_learner([lc.Profiler(tmp_path, skip=1, steps=100)], steps=2)
    learner.fit(1)
    assert (tmp_path / "fit-1" / "profile.pstats").exists()
    learner.fit(1)


def test_no_accelerator() -> None:
    assert lc.testing.toy_learner().accelerator is None
    with pytest.raises(BackendError, match=r"ToGPU\(required=False\)"):
        lc.testing.toy_learner([lc.ToGPU()])


# -- conditions


def test_a_condition_decides_on_whole_steps_and_keeps_the_rest() -> None:
    clipping = lc.GradientClipping(norm=0.5)
    asked: list[Any] = []

    def every_second(learner: Any, phase: Any) -> bool:
        asked.append(phase)
        return bool(learner.attempt % 2)

    wrapped = lc.ConditionalCallback(clipping, every_second, lc.BackwardEnd)
    learner = lc.testing.toy_learner([wrapped, lc.GradientAccumulation(1)], steps=2)
    names = [type(callback.identity()).__name__ for callback in learner.callbacks]
    assert names.index("GradientAccumulation") < names.index("GradientClipping")
    assert learner.callbacks.get(lc.GradientClipping) is clipping
    learner.fit(1)
    assert learner.params.value["w"] == pytest.approx(0.2 + 0.05)  # the second gradient, -1.6, is cut to -0.5
    assert len(asked) == 2


def test_a_condition_reads_what_it_declares() -> None:
    calls: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: calls.append(learner.attempt), lc.StepEnd, lc.TrainingPhase)

    def late(learner: Any, phase: Any) -> bool:
        return phase is not None and bool(learner.shared.history[phase].epochs)

    with pytest.raises(lc.AccessError, match=r"shared\.history"):
        lc.testing.toy_learner([lc.ConditionalCallback(note, late)]).fit(1)
    note = lc.FunctionCallback(lambda learner, phase: calls.append(learner.attempt), lc.StepEnd, lc.TrainingPhase)
    wrapped = lc.ConditionalCallback(note, late, reads=("shared.history",))
    lc.testing.toy_learner([wrapped], steps=2).fit(3)
    assert calls == [2, 3, 4, 5]


def test_who_does_not_hear_a_begin_has_nothing_to_end() -> None:
    metrics = lc.throttle(lc.Metrics(), lc.EpochBegin, every=2)
    learner = lc.testing.toy_learner([metrics], steps=2)
    learner.fit(4)
    assert [value is None for value in learner.history["loss"]] == [True, False, True, False]
    assert learner.history.step_numbers("loss") == [3, 4, 7, 8]

    seen: list[float] = []
    note = lc.FunctionCallback(
        lambda learner, phase: seen.append(learner.params.value["w"].item()),
        lc.StepEnd,
        lc.AbstractValidationPhase,
        reads=("params",),
    )
    average = lc.throttle(lc.AveragedWeights(None), lc.EpochBegin, every=2)
    learner = lc.testing.toy_learner([average, note], data=([BATCH], [BATCH]))
    learner.fit(2)
    np.testing.assert_allclose(seen, [0.2, (0.2 + 0.36) / 2])  # with the weights, and with their mean
    np.testing.assert_allclose(learner.params.value["w"], [0.36])


def test_a_step_that_accumulation_sleeps_through_updates_by_itself() -> None:
    accumulation = lc.throttle(lc.GradientAccumulation(2), lc.StepBegin, every=2)
    learner = lc.testing.toy_learner([accumulation], steps=4)
    learner.fit(1)
    assert learner.shared.accumulation == lc.Accumulated(batches=2, updates=1)
    losses = learner.history.steps("loss")
    np.testing.assert_allclose(losses, [1.0, 0.64, 0.64, 0.64**2])


def test_an_event_that_is_none() -> None:
    with pytest.raises(EventError, match="class of an event"):
        lc.ConditionalCallback(lc.Recorder(), lambda learner, phase: True, lc.StepEnd())  # type: ignore[arg-type]
