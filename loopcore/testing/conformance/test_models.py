"""Several models, several optimizers, frozen weights, parameter groups, and forward passes with other parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import OptimizerError
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import (
    OUTPUTS,
    batches,
    dense_weights,
    make_learner,
    mlp_weights,
    run,
    square_mlp_weights,
    train,
)
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)
(X, Y), *_ = PAIRS
W = mlp_weights()
G, C = square_mlp_weights(1), mlp_weights(2)


class Adversaries(lc.AbstractTrainingPhase):
    """The generator lowers the critic's mean output on what it makes; the critic raises it."""

    data_key = "training"

    def unpack(self, batch: Any) -> Any:
        return {"z": batch[0]}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        generator, critic, xp = learner.model.generator, learner.model.critic, learner.xp
        state.fake = generator(state.z)
        learner.minimize(lambda: -xp.mean(critic(state.fake)), learner.params.critic)
        learner.minimize(lambda: xp.mean(critic(generator(state.z))), learner.params.generator)
        state.loss = xp.mean(critic(state.fake))


def two_models(backend: Subject, **options: Any) -> lc.Learner:
    optimizer = {"generator": lc.Adam(0.01), "critic": lc.Momentum(0.05)}
    models = {"generator": backend.mlp(G), "critic": backend.mlp(C)}
    return make_learner(models, **{"optimizer": optimizer, "phases": [Adversaries()], **options})


def test_two_models_with_an_optimizer_each(backend: Subject) -> None:
    learner = two_models(backend, data={"training": PAIRS})
    learner.fit(2)
    generator, critic = dict(G), dict(C)
    for_generator = oracle.Optimizer(oracle.adam(0.01), generator)
    for_critic = oracle.Optimizer(oracle.momentum(0.05, 0.9), critic)
    for z, _ in 2 * PAIRS:
        fake = oracle.mlp(generator, z)
        mean = np.full((len(z), OUTPUTS), 1 / (len(z) * OUTPUTS))
        for_critic.update(oracle.mlp_gradient(critic, fake, -mean))
        hidden = np.tanh(oracle.mlp(generator, z) @ critic["hidden.weight"] + critic["hidden.bias"])
        d_fake = mean @ critic["out.weight"].T * (1 - hidden**2) @ critic["hidden.weight"].T
        for_generator.update(oracle.mlp_gradient(generator, z, d_fake))
    expected = {f"generator.{k}": v for k, v in generator.items()} | {f"critic.{k}": v for k, v in critic.items()}
    backend.close(backend.weights(learner), expected)


def test_models_are_called_by_name_and_the_first_one_without(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.first, state.named = learner.model(state.z), learner.model.generator(state.z)
        state.other = learner.model.critic(state.z)

    learner = two_models(backend)
    state = run(learner, body, z=X)
    backend.close(learner.to_host(state.first), oracle.mlp(G, X))
    backend.close(learner.to_host(state.named), oracle.mlp(G, X))
    backend.close(learner.to_host(state.other), oracle.mlp(C, X))
    with pytest.raises(AttributeError, match="generator, critic"):
        _ = learner.model.discriminator


def test_trees_of_several_models_are_dicts_by_name(backend: Subject) -> None:
    learner = two_models(backend)
    value = learner.params.value
    assert sorted(value) == ["critic", "generator"]
    backend.close(backend.leaves(learner, value["critic"], learner.params.critic)["critic.out.bias"], C["out.bias"])
    learner.params.critic.value = learner.tree.scale(value["critic"], 2.0)
    backend.close(backend.weights(learner)["critic.out.bias"], 2 * C["out.bias"])
    backend.close(backend.weights(learner)["generator.out.bias"], G["out.bias"])


def test_a_model_without_an_optimizer_is_frozen(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            return lc.losses.mse(learner.model.student(state.xs), learner.model.teacher(state.xs))

        learner.minimize(objective)

    models = {"student": backend.mlp(W), "teacher": backend.mlp(C)}
    learner = make_learner(models, optimizer={"student": lc.SGD(0.1)})
    before = learner.export_weights()
    run(learner, body, xs=X)
    after = learner.export_weights()
    for path, value in before.items():
        if path.startswith("teacher."):
            np.testing.assert_array_equal(after[path], value)
    slopes = oracle.mse_gradient(W, X, oracle.mlp(C, X))
    weights = backend.weights(learner)
    backend.close({k: weights[f"student.{k}"] for k in W}, {k: W[k] - 0.1 * slopes[k] for k in W})


def test_a_frozen_model_follows_another_by_its_name(backend: Subject) -> None:
    """A target network: read and written within the step, in no optimizer and not among all that is trained."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model.student(state.xs), state.ys))
        student, teacher = learner.params.student, learner.params.teacher
        teacher.value = learner.tree.lerp(student.value, teacher.value, 0.75)

    models = {"student": backend.mlp(W), "teacher": backend.mlp(C)}
    learner = make_learner(models, optimizer={"student": lc.SGD(0.1)})
    student, teacher = dict(W), dict(C)
    for x, y in PAIRS:
        run(learner, body, xs=x, ys=y)
        slopes = oracle.mse_gradient(student, x, y)
        student = {name: student[name] - 0.1 * slopes[name] for name in W}
        teacher = {name: 0.25 * student[name] + 0.75 * teacher[name] for name in W}
    weights = backend.weights(learner)
    backend.close({name: weights[f"student.{name}"] for name in W}, student)
    backend.close({name: weights[f"teacher.{name}"] for name in W}, teacher)
    parameters = backend.leaves(learner, learner.params.value)
    assert parameters.keys() == {f"student.{name}" for name in W}
    teacher_parameters = backend.leaves(learner, learner.params.teacher.value, learner.params.teacher)
    assert teacher_parameters.keys() == {f"teacher.{name}" for name in W}
    assert backend.leaves(learner, learner.params.teacher.out.value, learner.params.teacher.out).keys() == {
        "teacher.out.weight",
        "teacher.out.bias",
    }


def test_an_update_of_a_frozen_model_is_an_error(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.xp.sum(learner.model.teacher(state.xs)), learner.params.teacher)

    models = {"student": backend.mlp(W), "teacher": backend.mlp(C)}
    learner = make_learner(models, optimizer={"student": lc.SGD(0.1)})
    before = learner.export_weights()
    with pytest.raises(OptimizerError, match=r"no optimizer trains .*teacher"):
        run(learner, body, xs=X)
    np.testing.assert_equal(learner.export_weights(), before)


def test_a_part_without_an_optimizer_is_frozen_to_the_bit(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer={"out": lc.AdamW(0.1)})
    before = learner.export_weights()
    train(learner, PAIRS)
    for path, value in learner.export_weights().items():
        assert (value == before[path]).all() == path.startswith("hidden.")
    leaves = backend.leaves(learner, learner.params.value)
    assert sorted(leaves) == ["out.bias", "out.weight"]


def test_the_longest_prefix_decides(backend: Subject) -> None:
    groups = {"": lc.SGD(0.1), "hidden": lc.Momentum(0.05), "hidden.bias": lc.Adam(0.01)}
    learner = make_learner(backend.mlp(W), optimizer=groups)
    train(learner, PAIRS)
    weights = dict(W)
    optimizers = [
        oracle.Optimizer(oracle.sgd(0.1), weights, "out.weight", "out.bias"),
        oracle.Optimizer(oracle.momentum(0.05, 0.9), weights, "hidden.weight"),
        oracle.Optimizer(oracle.adam(0.01), weights, "hidden.bias"),
    ]
    for x, y in PAIRS:
        slopes = oracle.mse_gradient(weights, x, y)
        for optimizer in optimizers:
            optimizer.update(slopes)
    backend.close(backend.weights(learner), weights)


def test_a_prefix_is_a_whole_word(backend: Subject) -> None:
    with pytest.raises(lc.errors.OptimizerError, match="'hid' trains no parameter"):
        make_learner(backend.mlp(W), optimizer={"hid": lc.SGD(0.1)})


def test_forward_with_other_parameters(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        other = learner.tree.scale(learner.params.value, 2.0)
        state.y_pred = learner.model.apply(other, state.xs)
        state.here = learner.model(state.xs)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X)
    backend.close(learner.to_host(state.y_pred), oracle.mlp({name: 2 * value for name, value in W.items()}, X))
    backend.close(learner.to_host(state.here), oracle.mlp(W, X))


def test_a_target_network_follows_slowly(backend: Subject) -> None:
    class Follow(lc.AbstractTrainingPhase):
        data_key = "training"
        carries = ("target",)

        def unpack(self, batch: Any) -> Any:
            return {"xs": batch[0], "ys": batch[1]}

        def start(self, learner: Any, state: Any) -> None:
            state.target = learner.params.critic.value

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            critic = learner.model.critic
            aim = state.ys + 0.9 * critic.apply(state.target, state.xs)
            learner.minimize(lambda: lc.losses.mse(critic(state.xs), aim))
            state.target = learner.tree.lerp(state.target, learner.params.critic.value, 0.25)

    learner = make_learner(
        {"critic": backend.mlp(C)}, data={"training": PAIRS}, phases=[Follow()], reads=("step.target",)
    )
    learner.fit(1)
    weights, target = dict(C), dict(C)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    for x, y in PAIRS:
        optimizer.update(oracle.mse_gradient(weights, x, y + 0.9 * oracle.mlp(target, x)))
        target = {name: 0.75 * target[name] + 0.25 * weights[name] for name in target}
    result = backend.leaves(learner, learner.step.target, learner.params.critic)
    backend.close({name: result[f"critic.{name}"] for name in target}, target)


def test_apply_of_a_named_model_and_gradients_through_it(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            critic = learner.params.critic.value
            return learner.xp.sum(learner.model.critic.apply(learner.tree.scale(critic, 3.0), state.xs))

        state.found = learner.gradient(objective, wrt=learner.params.critic)

    learner = two_models(backend)
    state = run(learner, body, xs=X)
    inner = oracle.mlp_gradient({name: 3 * value for name, value in C.items()}, X, np.ones_like(Y))
    gradient = backend.leaves(learner, state.found, learner.params.critic)
    backend.close({name: gradient[f"critic.{name}"] for name in C}, {name: 3 * inner[name] for name in C})


def test_arguments_and_results_pass_through(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs, scale=2.5)
            return learner.xp.sum(state.y_pred["plain"]) + learner.xp.sum(state.y_pred["scaled"])

        state.found = learner.gradient(objective)

    weights = dense_weights(layer="out")
    learner = make_learner(backend.structured(weights))
    state = run(learner, body, xs=X)
    plain = X @ weights["out.weight"] + weights["out.bias"]
    backend.close(learner.to_host(state.y_pred), {"plain": plain, "scaled": 2.5 * plain})
    backend.close(backend.leaves(learner, state.found)["out.bias"], np.full(OUTPUTS, 3.5 * len(X)))


def test_parameters_without_a_forward(backend: Subject) -> None:
    """Learned weights of two losses."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            y, log = learner.model.net(state.xs), learner.params.balance.value
            squared, absolute = lc.losses.mse(y, state.ys), lc.losses.mae(y, state.ys)
            xp = learner.xp
            return xp.exp(-log["squared"]) * squared + xp.exp(-log["absolute"]) * absolute + log["squared"]

        state.found = learner.gradient(objective, wrt=learner.params.balance)
        learner.update(state.found, learner.params.balance)

    values = {"squared": np.array(0.3), "absolute": np.array(-0.2)}
    models = {"net": backend.mlp(W), "balance": backend.arrays(values)}
    learner = make_learner(models)
    state = run(learner, body, xs=X, ys=Y)
    error = oracle.mlp(W, X) - Y
    expected = {
        "squared": 1 - np.exp(-0.3) * np.mean(error**2),
        "absolute": -np.exp(0.2) * np.mean(np.abs(error)),
    }
    backend.close(learner.to_host(state.found), expected)
    weights = learner.export_weights()
    backend.close(weights["balance.squared"], 0.3 - 0.1 * expected["squared"])
    backend.close(weights["balance.absolute"], -0.2 - 0.1 * expected["absolute"])


def test_a_model_that_replaced_another_is_the_one_that_trains(backend: Subject) -> None:
    learner, phase = make_learner(backend.mlp(mlp_weights()), optimizer=lc.Momentum(0.1)), lc.TrainingPhase()
    first = backend.mlp(mlp_weights(1))
    for pair in batches(2):
        learner.run_step(phase, pair)
    learner.set_model(first)
    other = make_learner(backend.mlp(mlp_weights(1)), optimizer=lc.Momentum(0.1))
    for pair in batches(3):
        learner.run_step(phase, pair)
        other.run_step(phase, pair)
    backend.close(backend.weights(learner), backend.weights(other))
