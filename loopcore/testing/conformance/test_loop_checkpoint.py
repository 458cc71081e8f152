"""A run that is saved, loaded and gone on with is the run that was never interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CheckpointError
from loopcore.testing.conformance.problems import batches, dense_weights, make_learner, mlp_weights, norm_weights
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
    reference, first, second = (learner_of(backend, OPTIMIZERS[name], seed) for seed in (0, 0, 3))
    reference.hyper.learning_rate = first.hyper.learning_rate = 0.05
    reference.fit(4)
    first.fit(2)
    path = first.save(tmp_path / "run.safetensors")
    second.load(path)
    assert second.hyper.learning_rate == pytest.approx(0.05)
    second.fit(2)
    np.testing.assert_equal(second.export_weights(), reference.export_weights())
    np.testing.assert_equal(second.backend.export_optimizers(), reference.backend.export_optimizers())
    assert dict(second.shared.history) == dict(reference.shared.history)
    assert second.history["loss"] == reference.history["loss"]


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


def test_each_optimizer_keeps_its_own_hyperparameters(backend: Subject, tmp_path: Path) -> None:
    def new_learner(first: float, second: float) -> lc.Learner:
        rates = {"hidden": lc.Momentum(first), "out": lc.AdamW(second)}
        return make_learner(backend.mlp(mlp_weights()), optimizer=rates, data=(PAIRS, None))

    names = ("hidden.learning_rate", "hidden.momentum", "out.learning_rate", "out.weight_decay")
    reference, first, second = new_learner(0.1, 0.01), new_learner(0.1, 0.01), new_learner(0.5, 0.5)
    before = [first.hyper[name] for name in names]
    reference.fit(2)
    first.fit(1)
    path = first.save(tmp_path / "run.safetensors")
    assert [first.hyper[name] for name in names] == before
    second.load(path)
    assert [second.hyper[name] for name in names] == before
    second.fit(1)
    np.testing.assert_equal(second.export_weights(), reference.export_weights())


def test_noise_and_the_order_of_batches_go_on(backend: Subject, tmp_path: Path) -> None:
    def new_learner(seed: int) -> lc.Learner:
        arrays = [np.concatenate(part) for part in zip(*PAIRS, strict=True)]
        data = lc.data.batches(tuple(arrays), 4, shuffle=True), None
        callbacks = [lc.Recorder(), lc.Metrics()]
        model = backend.dropout(dense_weights(layer="out"), 0.5)
        return make_learner(model, optimizer=lc.Adam(0.01), data=data, callbacks=callbacks, seed=seed)

    reference, first, second, third = new_learner(3), new_learner(3), new_learner(4), new_learner(5)
    reference.fit(3)
    first.fit(1)
    second.load(first.save(tmp_path / "1"))
    second.fit(1)
    third.load(second.save(tmp_path / "2"))
    third.fit(1)
    np.testing.assert_equal(third.export_weights(), reference.export_weights())
    assert third.history.steps("loss") == reference.history.steps("loss")


def test_a_state_of_another_optimizer_is_refused(backend: Subject, tmp_path: Path) -> None:
    first, second = (learner_of(backend, kind(0.01)) for kind in (lc.Adam, lc.AdamW))
    first.fit(1)
    second.fit(1)
    weights, state = second.export_weights(), second.backend.export_optimizers()
    with pytest.raises(CheckpointError, match="AdamW here, Adam in the checkpoint"):
        second.load(first.save(tmp_path / "run.safetensors"))
    np.testing.assert_equal(second.export_weights(), weights)
    np.testing.assert_equal(second.backend.export_optimizers(), state)


class Refuses(lc.Callback):
    """Its state cannot be loaded."""

    run_after = (lc.Callback,)

    def state_dict(self) -> dict[str, Any]:
        """Return a state, so that one is saved."""
        return {"some": "thing"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse every state."""
        raise ValueError("never")


def test_a_load_that_fails_late_is_taken_back(backend: Subject, tmp_path: Path) -> None:
    def new_learner() -> lc.Learner:
        callbacks = [lc.Recorder(), lc.Metrics(), lc.AveragedWeights(0.9), Refuses()]
        model = backend.batch_norm(norm_weights())
        return make_learner(model, optimizer=lc.Adam(0.01), callbacks=callbacks, data=(PAIRS, None))

    first, second, untouched = new_learner(), new_learner(), new_learner()
    first.hyper.learning_rate = 0.5
    first.fit(2)
    for learner in (second, untouched):
        learner.fit(1)
    with pytest.raises(CheckpointError, match="Refuses refuses its state: ValueError: never"):
        second.load(first.save(tmp_path / "run.safetensors"))
    for learner in (second, untouched):
        learner.fit(1)
    np.testing.assert_equal(second.export_weights(), untouched.export_weights())
    np.testing.assert_equal(second.backend.export_optimizers(), untouched.backend.export_optimizers())
    averages = [learner.to_host(learner.shared.averaged_params) for learner in (second, untouched)]
    np.testing.assert_equal(averages[0], averages[1])
    assert second.history["loss"] == untouched.history["loss"]
    assert second.hyper.learning_rate == untouched.hyper.learning_rate
