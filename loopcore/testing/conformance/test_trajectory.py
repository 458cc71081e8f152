"""Fifty steps with each optimizer from the same weights on the same data end in the same weights."""

from __future__ import annotations

from typing import Any

import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights, ragged, train
from loopcore.testing.conformance.subject import Subject

STEPS = 50
OPTIMIZERS: dict[str, tuple[Any, oracle.Rule]] = {
    "sgd": (lc.SGD(0.1), oracle.sgd(0.1)),
    "momentum": (lc.Momentum(0.05, 0.8), oracle.momentum(0.05, 0.8)),
    "adam": (lc.Adam(0.01), oracle.adam(0.01)),
    "adamw": (lc.AdamW(0.01, weight_decay=0.1), oracle.adam(0.01, weight_decay=0.1)),
}


@pytest.mark.parametrize("dtype", ["widest", "float32"])  # the widest of JAX is float32 unless it is told otherwise
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_after_fifty_steps(backend: Subject, optimizer: str, dtype: str) -> None:
    dtype = backend.native.dtypes[0] if dtype == "widest" else dtype
    backend = backend.within(dtype)
    spec, rule = OPTIMIZERS[optimizer]
    weights, pairs = mlp_weights(), batches(STEPS)
    learner = make_learner(backend.mlp(weights), optimizer=spec)
    train(learner, pairs)
    expected = dict(weights)
    by_hand = oracle.Optimizer(rule, expected)
    for x, y in pairs:
        by_hand.update(oracle.mse_gradient(expected, x, y))
    backend.close(backend.weights(learner), expected, rtol={"float64": 1e-10, "float32": 1e-4}[dtype])


def test_losses_of_each_step(backend: Subject) -> None:
    weights, pairs = mlp_weights(), batches(10)
    learner = make_learner(backend.mlp(weights))
    by_hand = oracle.Optimizer(oracle.sgd(0.1), weights := dict(weights))
    phase = lc.TrainingPhase()
    for x, y in pairs:
        state = learner.run_step(phase, (x, y))
        backend.close(learner.to_host(state.y_pred), oracle.mlp(weights, x))
        backend.close(learner.to_host(state.loss), oracle.mse(oracle.mlp(weights, x), y))
        gradient = oracle.mse_gradient(weights, x, y)
        backend.close(backend.leaves(learner, state.grads), gradient)
        by_hand.update(gradient)


def test_the_backend_is_found_by_the_type_of_the_model(backend: Subject) -> None:
    assert make_learner(backend.mlp(mlp_weights())).backend.name == backend.name


def test_the_native_model_is_handed_out_with_the_trained_weights(backend: Subject) -> None:
    learner = make_learner(backend.mlp(mlp_weights()))
    train(learner, batches(2))
    copy = make_learner(learner.model.native)
    backend.close(backend.weights(copy), backend.weights(learner))


def test_trace_and_history_are_those_of_numpy(backend: Subject, witness: Subject) -> None:
    events, history = _fitted(backend)
    with lc.using(witness.name):
        expected_events, expected_history = _fitted(witness)
    assert events == expected_events
    assert list(history) == list(expected_history) == ["loss", "mae", "val_loss", "val_mae"]
    for name, values in expected_history.items():
        backend.close(history[name], values)


def _fitted(backend: Subject) -> tuple[list[Any], dict[str, Any]]:
    trace = lc.testing.Trace()
    learner = make_learner(
        backend.mlp(mlp_weights()),
        data=(ragged(5, 5, 3), ragged(4, 2, seed=9)),
        callbacks=[trace, lc.Recorder(), lc.Metrics(lc.losses.mae)],
    )
    result = learner.fit(3)
    assert result.status == "completed"
    assert result.epochs == 3
    counts = learner.shared.history["training"]
    assert (counts.epochs, counts.steps, counts.steps_epoch) == (3, 9, 3)
    return trace.events, dict(learner.history)
