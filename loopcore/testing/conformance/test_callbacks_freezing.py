"""Parameters that rest, and parameter groups with settings of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, train
from loopcore.testing.conformance.subject import Subject

W = mlp_weights()
PAIRS = batches(3)
RULES: dict[str, tuple[Any, oracle.Rule]] = {
    "momentum": (lc.Momentum(0.05, 0.8), oracle.momentum(0.05, 0.8)),
    "adamw": (lc.AdamW(0.01, weight_decay=0.1), oracle.adam(0.01, weight_decay=0.1)),
}
HIDDEN = ("hidden.weight", "hidden.bias")


@pytest.mark.parametrize("optimizer", RULES)
def test_neither_decay_nor_momentum_moves_what_is_frozen(backend: Subject, optimizer: str) -> None:
    spec, rule = RULES[optimizer]
    learner = make_learner(
        backend.mlp(W), optimizer=spec, data=(PAIRS, None), callbacks=[lc.Freeze("hidden.*"), lc.Recorder()]
    )
    learner.fit(2)
    weights = dict(W)
    part = oracle.Optimizer(rule, weights, *(name for name in W if name not in HIDDEN))
    for pair in 2 * PAIRS:
        part.update(oracle.mse_gradient(weights, *pair))
    backend.close(backend.weights(learner), weights, rtol=1e-4)
    for name in HIDDEN:
        np.testing.assert_array_equal(backend.weights(learner)[name], W[name].astype(backend.dtype))


def test_several_go_together_until_they_are_removed(backend: Subject) -> None:
    weight, bias = lc.Freeze("hidden.[!b]*"), lc.Freeze("hidden.bias")
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[weight, bias, lc.Recorder()])
    assert len(learner.hold("out.bias")) == 3
    learner.fit(1)
    for name in (*HIDDEN, "out.bias"):
        np.testing.assert_array_equal(backend.weights(learner)[name], W[name].astype(backend.dtype))
    learner.callbacks.remove(weight)
    assert learner.hold() == ("hidden.bias",)
    learner.fit(1)
    changes = {name for name in W if not np.array_equal(backend.weights(learner)[name], W[name].astype(backend.dtype))}
    assert changes == W.keys() - {"hidden.bias"}


def test_momentum_of_what_rests_is_kept(backend: Subject) -> None:
    """One step trains, one is frozen, one trains again: it goes on with the velocity of the first."""
    spec, rule = RULES["momentum"]
    learner = make_learner(backend.mlp(W), optimizer=spec)
    weights = dict(W)
    hidden = oracle.Optimizer(rule, weights, *HIDDEN)
    out = oracle.Optimizer(rule, weights, *(name for name in W if name not in HIDDEN))
    for is_frozen, pair in zip((False, True, False), PAIRS, strict=True):
        holds = learner.hold(*(["hidden.*"] if is_frozen else []))
        assert len(holds) == 2 * is_frozen
        train(learner, [pair])
        grads = oracle.mse_gradient(weights, *pair)
        out.update(grads)
        if not is_frozen:
            hidden.update(grads)
    backend.close(backend.weights(learner), weights)


def test_they_thaw_one_after_the_other(backend: Subject) -> None:
    freeze = lc.Freeze({"hidden.*": 1, "*bias": 2})
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[freeze, lc.Recorder()])
    changes = []
    for _ in range(3):
        before = backend.weights(learner)
        learner.fit(1)
        after = backend.weights(learner)
        changes.append({name for name in W if not np.array_equal(before[name], after[name])})
    assert changes == [{"out.weight"}, {"out.weight", "hidden.weight"}, set(W)]


def test_gradients_of_what_rests_are_zero_and_do_not_count_for_a_norm(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.Freeze("hidden.*"), lc.Recorder()])
    state = learner.run_step(lc.TrainingPhase(), PAIRS[0])
    grads, expected = backend.leaves(learner, state.grads), oracle.mse_gradient(W, *PAIRS[0])
    backend.close(grads, {name: expected[name] * (name not in HIDDEN) for name in W})


def test_everything_may_rest(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.Freeze("*"), lc.Recorder()])
    state = learner.run_step(lc.TrainingPhase(), PAIRS[0])
    assert not bool(state.updated)
    backend.close(learner.to_host(state.loss), oracle.mse(oracle.mlp(W, PAIRS[0][0]), PAIRS[0][1]))
    backend.close(backend.weights(learner), W)


def test_a_pattern_that_matches_nothing_is_an_error(backend: Subject) -> None:
    with pytest.raises(lc.errors.WeightsError, match="no trained parameter matches 'hiden"):
        make_learner(backend.mlp(W), callbacks=[lc.Freeze("hiden.*"), lc.Recorder()])


def test_nothing_freezes_within_a_step(backend: Subject) -> None:
    callback = At(lc.StepEnd, lambda learner, phase: learner.hold("*"), writes=("optimizer",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    with pytest.raises(lc.errors.CallbackError, match="between two steps"):
        train(learner, PAIRS)


def test_groups_have_their_own_learning_rates(backend: Subject) -> None:
    optimizers = {"hidden": lc.SGD(0.01), "out": lc.SGD(0.2)}
    learner = make_learner(backend.mlp(W), optimizer=optimizers)
    train(learner, PAIRS[:1])
    learner.hyper["hidden.learning_rate"] = 0.5
    assert (learner.hyper["hidden.learning_rate"], learner.hyper["out.learning_rate"]) == (0.5, 0.2)
    train(learner, PAIRS[1:])
    weights = dict(W)
    for rate, pair in zip((0.01, 0.5, 0.5), PAIRS, strict=True):
        grads = oracle.mse_gradient(weights, *pair)
        for name in weights:
            weights[name] = weights[name] - (rate if name in HIDDEN else 0.2) * grads[name]
    backend.close(backend.weights(learner), weights)
