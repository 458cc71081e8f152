"""A run that is saved, loaded and gone on with is the run that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CheckpointError
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights, norm_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(6)
OPTIMIZERS = {"sgd": lc.SGD(0.1), "momentum": lc.Momentum(0.1), "adamw": lc.AdamW(0.01)}


def learner_of(backend: Subject, optimizer: Any, seed: int = 0) -> lc.Learner:
    callbacks = [lc.Recorder(), lc.Metrics(), lc.StopOnNaNLoss()]
    return make_learner(
        backend.batch_norm(norm_weights(seed)), optimizer=optimizer, callbacks=callbacks, data=(PAIRS, None)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_is_not_to_have_stopped(backend: Subject, name: str, tmp_path: Path) -> None:
    whole, first, second = (learner_of(backend, OPTIMIZERS[name], seed) for seed in (0, 0, 3))
    whole.hyper.learning_rate = first.hyper.learning_rate = 0.05
    whole.fit(4)
    first.fit(2)
    path = first.save(tmp_path / "run.safetensors")
    second.load(path)
    assert second.hyper.learning_rate == pytest.approx(0.05)
    second.fit(2)
    np.testing.assert_equal(second.export_weights(), whole.export_weights())
    np.testing.assert_equal(second.backend.export_optimizers(), whole.backend.export_optimizers())
    assert dict(second.shared.history) == dict(whole.shared.history)
    assert second.history["loss"] == whole.history["loss"]


def test_each_optimizer_keeps_its_rate(backend: Subject, tmp_path: Path) -> None:
    """Saving changes none of them, and loading gives each its own back."""

    def make() -> lc.Learner:
        models = {"a": backend.mlp(mlp_weights()), "b": backend.mlp(mlp_weights(1))}
        return make_learner(models, optimizer={"a": lc.SGD(0.5), "b": lc.AdamW(0.25)})

    first, second = make(), make()
    first.hyper["b.learning_rate"] = 0.125
    second.hyper.learning_rate = 2.0
    second.load(first.save(tmp_path / "run.safetensors"))
    for learner in (first, second):
        assert (learner.hyper["a.learning_rate"], learner.hyper["b.learning_rate"]) == (0.5, 0.125)


def test_an_optimizer_of_another_kind(backend: Subject, tmp_path: Path) -> None:
    """Adam's state has the names and shapes of AdamW's."""
    first, second = (learner_of(backend, optimizer) for optimizer in (lc.Adam(0.1), lc.AdamW(0.1)))
    first.fit(1)
    path = first.save(tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match="the optimizer is AdamW here, Adam there"):
        second.load(path)


def test_what_does_not_fit_changes_nothing(backend: Subject, tmp_path: Path) -> None:
    first = learner_of(backend, lc.Momentum(0.1))
    first.fit(1)
    path = first.save(tmp_path / "run.safetensors")
    other = make_learner(backend.mlp(mlp_weights()), optimizer=lc.Momentum(0.1), data=(PAIRS, None))
    other.fit(1)
    weights, state = other.export_weights(), other.backend.export_optimizers()
    with pytest.raises(CheckpointError, match=r"nothing was loaded"):
        other.load(path)
    np.testing.assert_equal(other.export_weights(), weights)
    np.testing.assert_equal(other.backend.export_optimizers(), state)


def test_weights_alone_go_anywhere(backend: Subject, tmp_path: Path) -> None:
    first, second = (learner_of(backend, lc.SGD(0.1), seed) for seed in (0, 3))
    second.load_model(first.save_model(tmp_path / "model.safetensors"))
    np.testing.assert_equal(second.export_weights(), first.export_weights())
    with pytest.raises(CheckpointError, match="load_model"):
        second.load(tmp_path / "model.safetensors")
