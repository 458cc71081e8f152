"""Histograms of gradients: those that the last step of an epoch applied, for which the other steps pay nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

import loopcore as lc
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)


class Applied(lc.Callback):
    """Every gradient that was applied, by name, as NumPy arrays."""

    reads = ("params", "step.grads")

    def __init__(self) -> None:
        self.gradients: list[dict[str, Any]] = []

    @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
    def look(self, learner: Any, phase: Any) -> None:
        from loopcore.handles.parameters import named_leaves

        self.gradients.append(learner.to_host(named_leaves(learner.params, learner.step.grads)))


def learner_of(backend: Subject, *callbacks: lc.Callback, **options: Any) -> lc.Learner:
    callback_list = [lc.Recorder(), *callbacks]
    return make_learner(
        backend.mlp(mlp_weights()), callbacks=callback_list, data=(PAIRS, None), optimizer=lc.Momentum(0.05), **options
    )


def logged(logger: lc.loggers.MemoryLogger) -> dict[str, list[Any]]:
    return {name: [value.values for _, value in entries] for name, entries in logger.entries.items()}


def test_they_are_those_of_the_last_step(any_plan: Subject) -> None:
    logger, every = lc.loggers.MemoryLogger(), Applied()
    log, limit = lc.LogHistograms(logger, gradients=True), lc.GradientClipping(norm=0.01)
    learner_of(any_plan, log, limit).fit(2)
    learner_of(any_plan, every, limit).fit(2)
    histograms = logged(logger)
    last = [every.gradients[3], every.gradients[7]]
    assert {name for name in histograms if name.startswith("grads/")} == {f"grads/{name}" for name in last[0]}
    for name in last[0]:
        for logged_values, gradients in zip(histograms[f"grads/{name}"], last, strict=True):
            np.testing.assert_allclose(logged_values, np.ravel(gradients[name]), rtol=1e-4, atol=1e-7)
    total = [
        sum(float(np.sum(values[n] ** 2)) for name, values in histograms.items() if "grads/" in name) for n in (0, 1)
    ]
    np.testing.assert_allclose(total, 0.01**2, rtol=1e-3)  # as they were clipped


def test_accumulated_ones_are_those_of_the_window(any_plan: Subject) -> None:
    logger = lc.loggers.MemoryLogger()
    learner_of(any_plan, lc.LogHistograms(logger, gradients=True), lc.GradientAccumulation(4)).fit(1)
    window = tuple(np.concatenate(parts) for parts in zip(*PAIRS, strict=True))
    other = lc.loggers.MemoryLogger()
    learner = learner_of(any_plan, lc.LogHistograms(other, gradients=True))
    learner.data = {"training": [window]}
    learner.fit(1)
    histograms, expected = logged(logger), logged(other)
    for name in expected:
        if name.startswith("grads/"):
            np.testing.assert_allclose(histograms[name][0], expected[name][0], rtol=1e-4, atol=1e-6)


def test_other_steps_do_not_hand_them_back(any_plan: Subject) -> None:
    log = lc.LogHistograms(lc.loggers.MemoryLogger(), gradients=True)
    learner, phase = learner_of(any_plan, log), lc.TrainingPhase()
    states: list[Any] = []
    with lc.run_epoch(learner, phase, length=4):
        states += [learner.run_step(phase, pair) for pair in PAIRS]
    assert [hasattr(state, "last_grads") for state in states] == [False, False, False, True]
    assert "BackwardEnd" not in learner.explain()  # nobody cuts the step there
    with lc.run_epoch(learner, phase):  # without a length any may be the last
        assert hasattr(learner.run_step(phase, PAIRS[0]), "last_grads")
