"""The TensorFlow adapter: compiled programs, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import TraceError
from tests.tensorflow_adapter.calls import X, Y, dense, learner_of, tf


def test_xla_compiles_the_same_step() -> None:
    losses = []
    for compile in ("auto", "xla", False):
        learner = learner_of(dense(), lc.Adam(0.05), compile=compile)
        phase = lc.TrainingPhase()
        losses.append([float(learner.run_step(phase, (X, Y)).loss) for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)


def test_numbers_of_python_never_retrace() -> None:
    class Weighted(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                loss = learner.loss_fn(learner.model(state.xs), state.ys)
                return loss * state.weight * learner.hyper.scale

            learner.minimize(objective)

    learner, phase = learner_of(dense(), hyper={"scale": 1.0}), Weighted()
    for number in range(6):
        learner.hyper.scale = 0.5 + number
        learner.hyper.learning_rate = 0.1 / (1 + number)
        learner.run_step(phase, {"xs": X, "ys": Y, "weight": 0.25 * number})
    assert learner.backend.traces == 1


def test_a_tensor_of_another_trace_is_an_error_that_says_where_to_keep_it() -> None:
    kept: list[Any] = []

    class Leaks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.sum(state.xs) + (kept[-1] if kept else 0.0)
            kept.append(state.loss)

    learner, phase = learner_of(dense()), Leaks()
    learner.run_step(phase, (X, Y))
    with pytest.raises(TraceError, match=r"kept\[-1\].*an earlier compiled step left behind"):
        learner.run_step(phase, (X[:4], Y[:4]))


def test_nothing_symbolic_stays_behind() -> None:
    quiet = [lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
    learner = learner_of(dense(), default_callbacks=True, callbacks=quiet, data=([(X, Y)], None))
    learner.fit(1)
    kept = [*vars(learner.shared).values(), *vars(learner.step).values(), learner.attempt]
    assert not any(tf.is_tensor(value) and tf.is_symbolic_tensor(value) for value in kept)


def test_a_step_that_is_cut_compiles_its_parts() -> None:
    heard: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(1), lc.BackwardEnd)
    learner, phase = learner_of(dense(), lc.Adam(0.01), callbacks=[note]), lc.TrainingPhase()
    plain = learner_of(dense(), lc.Adam(0.01), compile=False)
    for _ in range(4):
        cut, eager = (one.run_step(phase, (X, Y)) for one in (learner, plain))
        np.testing.assert_allclose(float(cut.loss), float(eager.loss), rtol=1e-6)
    assert len(heard) == 4 and learner.backend.traces == 0
    assert learner.runs.runner_of(phase).plan.kind == "split"


def test_a_step_that_does_not_fire_what_is_heard_is_one_program() -> None:
    heard: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(1), lc.BackwardEnd)
    learner, phase = learner_of(dense(), callbacks=[note]), lc.ValidationPhase()
    learner.run_step(phase, (X, Y))
    assert learner.backend.traces == 1 and learner.runs.runner_of(phase).plan.kind == "fused"

    def body(learner: Any, handle: Any, state: Any) -> None:
        phase.step(learner, handle, state)
        handle(lc.BackwardEnd())

    lc.run_step(body, learner, phase, xs=X, ys=Y)  # another body of the same phase may fire it
    assert len(heard) == 1 and learner.backend.traces == 1
