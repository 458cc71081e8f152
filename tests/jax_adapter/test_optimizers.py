"""The JAX adapter: optimizers of optax, their hyperparameters and states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import loopcore as lc
from loopcore.errors import CheckpointError, OptimizerError
from loopcore_jax import Backend
from tests.jax_adapter.calls import GRADS, Nnx, X, Y, bound, dense, dense_params, learner_of, stepped


@pytest.mark.parametrize(
    ("spec", "native"),
    [
        (lc.SGD(0.1), optax.sgd(0.1)),
        (lc.Momentum(0.1, 0.8), optax.sgd(0.1, 0.8)),
        (lc.Adam(0.1, 0.8, 0.95, 1e-6), optax.adam(0.1, 0.8, 0.95, 1e-6)),
        (lc.AdamW(0.1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
    ],
)
def test_a_spec_is_the_optimizer_of_optax(spec: Any, native: Any) -> None:
    ours, theirs = stepped(bound(spec)), stepped(bound(native))
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5)
        assert (value != np.asarray(dense_params()[path])).any()


def test_hyperparameters_are_found_anywhere_in_a_chain() -> None:
    inner = optax.inject_hyperparams(optax.adamw)(learning_rate=0.5, weight_decay=0.25)
    backend = bound(optax.chain(optax.clip(1.0), inner))
    assert backend.hyper_names(0) == ("learning_rate", "momentum", "weight_decay")
    assert [backend.get_hyper(0, name) for name in ("learning_rate", "weight_decay")] == [0.5, 0.25]
    backend.set_hyper(0, "learning_rate", 0.0)
    np.testing.assert_array_equal(stepped(backend)["w"], dense_params()["w"])
    assert backend.hyper_values()["0.learning_rate"] == 0.0


def test_a_baked_in_learning_rate_is_an_error_only_for_who_asks() -> None:
    learner = learner_of((dense, dense_params()), optax.adam(0.1))
    assert learner.fit(1).status == "completed"
    assert learner.backend.hyper_values() == {}  # type: ignore[attr-defined]
    with pytest.raises(OptimizerError, match="inject_hyperparams"):
        learner.hyper.learning_rate = 0.01
    with pytest.raises(OptimizerError, match=r"lc\.Adam"):
        _ = learner.hyper.learning_rate


def test_a_schedule_of_optax_runs_and_cannot_be_set() -> None:
    backend = bound(optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 2)))
    assert backend.get_hyper(0, "learning_rate") == 1.0
    moved = stepped(backend)
    np.testing.assert_allclose(moved["b"], -1.5 * np.array([1.0, -2.0]), rtol=1e-6)
    assert backend.get_hyper(0, "learning_rate") == 0.0
    with pytest.raises(OptimizerError, match="schedule"):
        backend.set_hyper(0, "learning_rate", 0.1)


def test_an_optimizer_of_nnx_gives_its_transformation() -> None:
    module = Nnx(nnx.Rngs(0))
    learner = learner_of(module, nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param))
    before = learner.export_weights()
    learner.fit(1)
    assert (learner.export_weights()["hidden.kernel"] != before["hidden.kernel"]).any()


def test_a_transformation_sees_the_models_own_tree_or_a_dict_by_path() -> None:
    seen: list[Any] = []

    def mask(params: Any) -> Any:
        seen.append(params)
        return jax.tree.map(lambda w: w.ndim > 1, params)

    module = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    learner_of(module, optax.add_decayed_weights(0.1, mask))
    assert isinstance(seen[-1], eqx.nn.Linear)
    learner_of(module, {"weight": optax.add_decayed_weights(0.1, mask)})
    assert list(seen.pop()) == ["weight"]


@pytest.mark.parametrize("other", [optax.adamw(0.1), optax.chain(optax.clip(1.0), optax.adam(0.1))])
def test_the_state_of_another_transformation_is_refused(other: Any, tmp_path: Path) -> None:
    first, second = (learner_of((dense, dense_params()), one) for one in (optax.adam(0.1), other))
    with pytest.raises(CheckpointError, match=r"optax\(.*scale_by_adam.*\) here, optax\(scale_by_adam, scale\) in the"):
        second.load(first.save(tmp_path / "x"))
    again = learner_of((dense, dense_params()), optax.adam(0.1))
    again.load(tmp_path / "x")


@pytest.mark.parametrize("make", [optax.adam, optax.inject_hyperparams(optax.adam)], ids=["plain", "injected"])
def test_a_checkpoint_goes_on_with_a_transformation_of_optax(make: Any, tmp_path: Path) -> None:
    whole, first, second = (learner_of((dense, dense_params()), make(learning_rate=0.1)) for _ in range(3))
    phase = lc.TrainingPhase()
    for learner in (whole, first):
        learner.run_step(phase, (X, Y))
    second.load(first.save(tmp_path / "x"))
    for learner in (whole, second):
        learner.run_step(phase, (X, Y))
    np.testing.assert_equal(second.export_weights(), whole.export_weights())


def test_optimizers_of_others_and_gradients_of_frozen_parameters() -> None:
    with pytest.raises(OptimizerError, match=r"types\.SimpleNamespace.*optax"):
        bound(SimpleNamespace())
    backend = Backend()
    backend.bind({"": (dense, dense_params())})
    backend.attach([(lc.SGD(0.1), ("w",))])
    with pytest.raises(OptimizerError, match="no optimizer trains b"):
        backend.update(GRADS, True)
