"""Ctrl-C, wherever it hits, and other threads: the learner fits, saves and predicts afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(2)
W = mlp_weights()
FILES = (  # what runs the loop
    *("scopes.py", "session.py", "fit.py", "dispatch.py", "plan.py", "runner.py", "base.py", "supervised.py"),
    *("averaging.py", "running_learner.py", "step_handlers.py"),
)


class At_line:  # noqa: N801 - read as a moment
    """Raises KeyboardInterrupt at the n-th line of the loop that runs within the block."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.where = ""

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename.replace("\\", "/")
        if "/loopcore/" not in file or "/loggers/" in file or file.rsplit("/", 1)[1] not in FILES:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line

    def __enter__(self) -> At_line:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *args: object) -> None:
        sys.settrace(self._before)


class Nested(lc.Callback):
    """Measures within training, and lets an interrupt of it pass."""

    @lc.on(lc.StepEnd, lc.TrainingPhase)
    def measure(self, learner: Any, phase: Any) -> None:
        """An epoch within the epoch."""
        learner.run_epoch(lc.ValidationPhase(), PAIRS[:1])


def interrupted(make: Callable[[], lc.Learner], step: int) -> int:
    """Interrupt a fit at every ``step``-th line, each time of a new learner; how many lines there were."""
    number = 1
    while True:
        learner = make()
        with At_line(number) as moment, suppress(KeyboardInterrupt):
            learner.fit(1)
        if not moment.where:
            return number
        runs = learner.runs
        state = (runs._depth, runs._open_epochs, runs.runner, runs.fitting, runs.training, runs._owner)
        assert state == (0, 0, None, False, False, None), moment.where
        if learner.result is not None and learner.result.status != "completed":  # that one was about to return
            assert learner.result.status == "interrupted", moment.where
        assert learner.fit(1).status == "completed", moment.where
        number += step


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_an_interrupt_at_any_line_leaves_a_learner_that_trains(backend: Subject, nested: bool, tmp_path: Path) -> None:
    def make() -> lc.Learner:
        callbacks = [lc.AveragedWeights(0.9), lc.StopOnNaNLoss(), *([Nested()] if nested else [])]
        learner = make_learner(backend.mlp(W), data=(PAIRS, PAIRS[:1]), callbacks=callbacks, compile=False, reads=())
        learners.append(learner)
        return learner

    learners: list[lc.Learner] = []
    assert interrupted(make, 31 if nested else 7) > 200
    learners[-1].save(tmp_path / "run.safetensors")
    learners[-1].predict([PAIRS[0][0]])


def test_the_weights_are_back_after_an_interrupt_in_validation(backend: Subject) -> None:
    def interrupt(learner: Any, phase: Any) -> None:
        raise KeyboardInterrupt

    at = At(lc.StepEnd, interrupt, lc.AbstractValidationPhase)
    learners = [
        make_learner(backend.mlp(W), data=data, callbacks=callbacks)
        for data, callbacks in (((PAIRS, PAIRS), [lc.AveragedWeights(0.9), at]), ((PAIRS, None), []))
    ]
    with pytest.raises(KeyboardInterrupt):
        learners[0].fit(1)
    assert learners[0].result is not None and learners[0].result.status == "interrupted"
    learners[1].fit(1)
    backend.close(backend.weights(learners[0]), backend.weights(learners[1]))


def test_a_handler_that_is_not_found_locks_nothing(backend: Subject) -> None:
    class Lost(lc.Callback):
        @lc.on(lc.FitBegin)
        def begin(self, learner: Any, phase: Any) -> None:
            """Is taken away before it is called."""

    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[Lost()])
    begin = Lost.__dict__["begin"]
    del Lost.begin
    for _ in range(2):
        with pytest.raises(AttributeError, match="begin"):
            learner.fit(1)
    Lost.begin = begin  # type: ignore[method-assign]
    assert learner.fit(1).status == "completed"


@pytest.mark.parametrize("what", ["step", "fit", "epoch", "predict"])
def test_another_thread_is_refused_while_a_step_runs(backend: Subject, what: str) -> None:
    raised: list[BaseException] = []
    calls: dict[str, Callable[[lc.Learner], Any]] = {
        "step": lambda learner: learner.run_step(lc.TrainingPhase(), PAIRS[0]),
        "fit": lambda learner: learner.fit(1),
        "epoch": lambda learner: learner.run_epoch(lc.TrainingPhase()),
        "predict": lambda learner: learner.predict([PAIRS[0][0]]),
    }

    def other() -> None:
        try:
            calls[what](learner)
        except BaseException as error:
            raised.append(error)

    def start(learner: Any, phase: Any) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[At(lc.StepEnd, start, only=0)])
    same = make_learner(backend.mlp(W), data=(PAIRS, None))
    learner.run_step(lc.TrainingPhase(), PAIRS[0])
    assert [type(error) for error in raised] == [lc.errors.OtherThreadError]
    assert "make a Learner for each thread" in str(raised[0])
    same.run_step(lc.TrainingPhase(), PAIRS[0])
    backend.close(backend.weights(learner), backend.weights(same))
    other()  # and afterwards it may
    assert len(raised) == 1
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(raised) == 1, raised
