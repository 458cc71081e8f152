"""Scalars that change while training."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, train
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(6)
W = mlp_weights()


def rate(step: int) -> float:
    return 0.1 / (1 + step)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (lc.SGD(9.0), oracle.sgd),
        (lc.Momentum(9.0, 0.8), lambda rate: oracle.momentum(rate, 0.8)),
        (lc.Adam(9.0), oracle.adam),
        (lc.AdamW(9.0, weight_decay=0.1), lambda rate: oracle.adam(rate, 0.1)),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_a_learning_rate_that_changes_each_step(backend: Subject, spec: Any, rule: Any) -> None:
    current_rate = [0.0]
    weights = dict(W)
    optimizer = oracle.Optimizer(lambda w, g, slots, t: rule(current_rate[0])(w, g, slots, t), weights)
    learner = make_learner(backend.mlp(W), optimizer=spec)
    for step, (x, y) in enumerate(PAIRS):
        current_rate[0] = learner.hyper.learning_rate = rate(step)
        train(learner, [(x, y)])
        optimizer.update(oracle.mse_gradient(weights, x, y))
    backend.close(backend.weights(learner), weights)
    assert learner.hyper.learning_rate == pytest.approx(rate(5), rel=1e-6)


def test_momentum_and_weight_decay(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer={"hidden": lc.Momentum(0.1, 0.9), "out": lc.AdamW(0.1)})
    learner.hyper["hidden.momentum"] = 0.5
    learner.hyper["out.weight_decay"] = 0.2
    train(learner, PAIRS)
    weights = dict(W)
    hidden = oracle.Optimizer(oracle.momentum(0.1, 0.5), weights, "hidden.weight", "hidden.bias")
    out = oracle.Optimizer(oracle.adam(0.1, 0.2), weights, "out.weight", "out.bias")
    for x, y in PAIRS:
        slopes = oracle.mse_gradient(weights, x, y)
        hidden.update(slopes)
        out.update(slopes)
    backend.close(backend.weights(learner), weights)


@pytest.mark.parametrize(("spec", "decay"), [(lc.Adam(0.1), 0.0), (lc.AdamW(0.1, weight_decay=0.2), 0.2)])
def test_the_momentum_of_adam_is_its_beta1(backend: Subject, spec: Any, decay: float) -> None:
    learner = make_learner(backend.mlp(W), optimizer=spec)
    assert learner.hyper["momentum"] == pytest.approx(0.9)
    train(learner, PAIRS)
    weights = backend.weights(learner)
    other = make_learner(backend.mlp(W), optimizer=dataclasses.replace(spec, beta1=0.5))
    other.hyper["momentum"] = 0.9
    train(other, PAIRS)
    backend.close(backend.weights(other), weights)
    oracle_weights = dict(W)
    optimizer = oracle.Optimizer(oracle.adam(0.1, decay), oracle_weights)
    for x, y in PAIRS:
        optimizer.update(oracle.mse_gradient(oracle_weights, x, y))
    backend.close(weights, oracle_weights)


def test_the_rate_of_one_prefix_and_of_all(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer={"hidden": lc.SGD(0.1), "out": lc.SGD(0.2)})
    rates = ("hidden.learning_rate", "out.learning_rate")
    assert [learner.hyper[name] for name in rates] == pytest.approx([0.1, 0.2])
    learner.hyper["out.learning_rate"] = 0.05
    train(learner, PAIRS[:1])
    slopes = oracle.mse_gradient(W, *PAIRS[0])
    factor = {name: 0.1 if name.startswith("hidden") else 0.05 for name in W}
    backend.close(backend.weights(learner), {name: W[name] - factor[name] * slopes[name] for name in W})
    learner.hyper.learning_rate = 0.3
    assert [learner.hyper[name] for name in rates] == pytest.approx([0.3, 0.3])


def test_a_scalar_of_ones_own(backend: Subject) -> None:
    class Decayed(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                decay = learner.tree.dot(learner.params.value, learner.params.value)
                return lc.losses.mse(learner.model(state.xs), state.ys) + learner.hyper.decay * decay

            learner.minimize(objective)

    learner = make_learner(backend.mlp(W), hyper={"decay": 0.0})
    phase, weights = Decayed(), dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    for step, pair in enumerate(PAIRS):
        learner.hyper.decay = 0.1 * step
        learner.run_step(phase, pair)
        slopes = oracle.mse_gradient(weights, *pair)
        optimizer.update({name: slopes[name] + 0.2 * step * weights[name] for name in weights})
    backend.close(backend.weights(learner), weights)


def test_a_handler_sets_it_for_the_step_that_begins(backend: Subject) -> None:
    def schedule(learner: Any, phase: Any) -> None:
        learner.hyper.learning_rate = rate(learner.epoch.attempted - 1)

    callback = At(lc.StepBegin, schedule, lc.AbstractTrainingPhase, writes=("hyper.learning_rate",))
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[callback])
    learner.fit(1)
    weights = dict(W)
    for step, (x, y) in enumerate(PAIRS):
        slopes = oracle.mse_gradient(weights, x, y)
        weights = {name: weights[name] - rate(step) * slopes[name] for name in weights}
    backend.close(backend.weights(learner), weights)


def test_names_that_there_are_not(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer=lc.Adam(0.1))
    with pytest.raises(AttributeError, match="learning_rate"):
        learner.hyper.learning_rte = 0.1
    with pytest.raises(TypeError, match="number"):
        learner.hyper["learning_rate"] = cast("Any", "fast")


class Draws(lc.TrainingPhase):
    """Draws whose parameters are scheduled, such as those of MixUp."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        alpha, random = learner.hyper.alpha, learner.random
        state.beta = random.beta(alpha, 2 * alpha, (100,))
        state.bernoulli = random.bernoulli(alpha, (100,))
        state.uniform = random.uniform((100,), alpha, 1 + alpha)
        super().step(learner, handle, state)


def test_draws_by_a_scheduled_number(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), hyper={"alpha": 0.0})
    for alpha in (0.25, 0.75):
        learner.hyper.alpha = alpha
        state = learner.to_host(vars(learner.run_step(Draws(), PAIRS[0])))
        assert abs(state["beta"].mean() - 1 / 3) < 0.15 and 0 <= state["beta"].min() <= state["beta"].max() <= 1
        assert abs(state["bernoulli"].mean() - alpha) < 0.15
        assert alpha <= state["uniform"].min() < alpha + 0.1 and alpha + 0.9 < state["uniform"].max() <= alpha + 1
