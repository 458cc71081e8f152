"""Steps that leave no trace, and profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import loopcore as lc
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)


def test_a_rehearsal_changes_nothing(any_plan: Subject) -> None:
    """Weights, the state of Adam, and random draws of the steps that follow are as if there had been none."""
    learners = [
        make_learner(any_plan.mlp(mlp_weights()), callbacks=[], data=(PAIRS, None), optimizer=lc.Adam(0.05))
        for _ in range(2)
    ]
    phase = lc.TrainingPhase()
    for learner in learners:
        learner.run_epoch(phase)
    state = learners[0].rehearse(phase, PAIRS[0])
    expected = learners[1].run_step(phase, PAIRS[0], reads=("step.y_pred",))
    any_plan.close({"y": learners[0].to_host(state.y_pred)}, {"y": learners[1].to_host(expected.y_pred)}, rtol=1e-6)
    learners[0].run_step(phase, PAIRS[0])
    for learner in learners:
        learner.run_epoch(phase)
    np.testing.assert_equal(any_plan.weights(learners[0]), any_plan.weights(learners[1]))


def test_a_profile_is_written(backend: Subject, tmp_path: Path) -> None:
    learner = make_learner(backend.mlp(mlp_weights()), callbacks=[], data=(PAIRS, None))
    learner.fit(1)
    with learner.profile(tmp_path / "here"):
        learner.fit(1)
    files = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert files and all(path.stat().st_size > 0 for path in files)
