"""Values noted by functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError, ConflictError, MissingRequirementError


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
