"""The recorder counts completed epochs and steps; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import numpy as np

import loopcore as lc
from loopcore.history import History
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def test_the_recorder_counts_completed_epochs_and_steps() -> None:
    learner = toy_learner(data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(2)
    history = learner.shared.history
    assert dict(history) == {"training": (2, 6, 3, 6), "validation": (2, 4, 2, 4)}
    assert repr(history) == (
        "History({'training': Counts(epochs=2, steps=6, steps_epoch=3), "
        "'validation': Counts(epochs=2, steps=4, steps_epoch=2)})"
    )
    assert history[lc.TrainingPhase()] == history["training"] and lc.TrainingPhase() in history
    assert "testing" not in history and history["testing"] == (0, 0, 0, 0) and len(history) == 2


def test_a_recorder_that_joins_again_counts_anew() -> None:
    recorder, phase = lc.Recorder(), lc.TrainingPhase()
    learner = toy_learner([recorder], default_callbacks=False)
    with lc.run_epoch(learner, phase):
        learner.run_step(phase, BATCH)
    learner.callbacks.remove(recorder)
    learner.callbacks.add(recorder)
    learner.run_step(phase, BATCH)
    assert learner.shared.history[phase].steps == 1


def test_a_count_that_was_read_does_not_change() -> None:
    learner = toy_learner(steps=2)
    before = learner.shared.history["training"]
    learner.fit(1)
    assert before.steps == 0 and learner.shared.history["training"].steps == 2


def test_a_recorder_goes_on_where_counts_are() -> None:
    learner = toy_learner(steps=2)
    learner.fit(1)
    recorder = learner.callbacks.get(lc.Recorder)
    assert recorder is not None and recorder.state_dict() == {}
    learner.callbacks.replace(recorder, lc.Recorder())
    learner.fit(1)
    assert learner.shared.history["training"] == (2, 4, 2, 4)
    assert isinstance(learner.shared.history, History)


class Weighted(lc.TrainingPhase):
    """A phase that holds an array."""

    def __init__(self) -> None:
        self.weights = np.ones(3)


def test_counts_belong_to_the_phase_and_not_to_its_instance() -> None:  # T-15
    """Counts were kept by the instance of the phase: each new instance of one started again."""
    learner = toy_learner(phases=[Weighted()], steps=2)
    learner.fit(1)
    for _ in range(3):
        learner.run_epoch(Weighted())
    assert list(learner.shared.history) == ["training"]
    assert learner.shared.history[Weighted()] == (4, 8, 2, 8) == learner.shared.history["training"]
    assert len(learner.history["loss"]) == 4
