"""Gradients of objectives and of functions: with respect to what, at which values, and what is a constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import (
    batches,
    dense_weights,
    make_learner,
    mlp_weights,
    run,
    square_mlp_weights,
)
from loopcore.testing.conformance.subject import Subject

(X, Y), (X2, Y2) = batches(2)
W = mlp_weights()


def loss(learner: Any, state: Any) -> Any:
    return lc.losses.mse(learner.model(state.xs), state.ys)


def test_the_gradient_has_the_structure_of_the_parameters(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.gradient(lambda: loss(learner, state))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    backend.close(backend.leaves(learner, state.found), oracle.mse_gradient(W, X, Y))
    backend.close(backend.weights(learner), W)


def test_with_respect_to_a_part(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.gradient(lambda: loss(learner, state), wrt=learner.params.out)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    expected = {name: value for name, value in oracle.mse_gradient(W, X, Y).items() if name.startswith("out.")}
    backend.close(backend.leaves(learner, state.found, learner.params.out), expected)


def test_with_respect_to_several_handles(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        wrt = (learner.params.out, learner.params.hidden)
        state.out, state.hidden = learner.gradient(lambda: loss(learner, state), wrt=wrt)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    params = learner.params
    gradients = backend.leaves(learner, state.out, params.out) | backend.leaves(learner, state.hidden, params.hidden)
    backend.close(gradients, oracle.mse_gradient(W, X, Y))


def test_with_respect_to_the_inputs(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.grad(lambda x: lc.losses.mse(learner.model(x), state.ys))(state.xs)

    state = run(learner := make_learner(backend.mlp(W)), body, xs=X, ys=Y)
    expected = oracle.finite_difference(lambda x: oracle.mse(oracle.mlp(W, x), Y), X)
    backend.close(learner.to_host(state.found), expected, rtol=1e-7)


def test_grad_of_several_arguments_and_of_trees(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def fn(pair: Any, c: Any) -> Any:
            return learner.xp.sum(pair["a"] * pair["b"][0] * c)

        state.pair, state.c = learner.grad(fn)({"a": state.a, "b": [state.b]}, state.c)

    a, b, c = X, 2 * X2, X - X2
    learner = make_learner(backend.mlp(W))
    state = run(learner, body, a=a, b=b, c=c)
    gradients = learner.to_host([state.pair["a"], state.pair["b"][0], state.c])
    for actual, desired in zip(gradients, (b * c, a * c, a * b), strict=True):
        backend.close(actual, desired)


@pytest.mark.parametrize("kind", [lc.TrainingPhase, lc.ValidationPhase, lc.PredictionPhase])
def test_gradients_work_in_every_phase(backend: Subject, kind: type[lc.Phase]) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.gradient(lambda: loss(learner, state))
        state.inputs = learner.grad(lambda x: learner.xp.sum(x * x))(state.xs)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, kind(), xs=X, ys=Y)
    backend.close(backend.leaves(learner, state.found), oracle.mse_gradient(W, X, Y))
    backend.close(learner.to_host(state.inputs), 2 * X)


def test_at_other_values(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        point = learner.tree.scale(learner.params.value, 2.0)
        state.found = learner.gradient(lambda: loss(learner, state), at=point)
        state.here = loss(learner, state)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    doubled = {name: 2 * value for name, value in W.items()}
    backend.close(backend.leaves(learner, state.found), oracle.mse_gradient(doubled, X, Y))
    backend.close(learner.to_host(state.here), oracle.mse(oracle.mlp(W, X), Y))
    backend.close(backend.weights(learner), W)


def test_minimize_at_other_values(backend: Subject) -> None:
    """Sharpness-aware steps: the gradient is that of another place, the update begins at this one."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        point = learner.tree.scale(learner.params.value, 2.0)
        learner.minimize(lambda: loss(learner, state), at=point)

    learner = make_learner(backend.mlp(W))
    run(learner, body, xs=X, ys=Y)
    slopes = oracle.mse_gradient({name: 2 * value for name, value in W.items()}, X, Y)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W})


def test_at_other_values_of_a_part(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        part = learner.params.hidden
        state.found = learner.gradient(lambda: loss(learner, state), wrt=part, at=learner.tree.scale(part.value, 2.0))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    point = {name: value * (2 if name.startswith("hidden.") else 1) for name, value in W.items()}
    expected = oracle.mse_gradient(point, X, Y)
    expected = {name: expected[name] for name in expected if name.startswith("hidden.")}
    backend.close(backend.leaves(learner, state.found, learner.params.hidden), expected)


def test_at_other_values_of_several_handles(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        wrt = (learner.params.out, learner.params.hidden)
        points = tuple(learner.tree.scale(part.value, factor) for part, factor in zip(wrt, (3.0, 2.0), strict=True))
        state.out, state.hidden = learner.gradient(lambda: loss(learner, state), wrt=wrt, at=points)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    params = learner.params
    gradients = backend.leaves(learner, state.out, params.out) | backend.leaves(learner, state.hidden, params.hidden)
    point = {name: value * (2 if name.startswith("hidden.") else 3) for name, value in W.items()}
    backend.close(gradients, oracle.mse_gradient(point, X, Y))
    backend.close(backend.weights(learner), W)


def test_a_tuple_of_objectives_is_one_forward_and_a_tuple_of_gradients(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            y = learner.model(state.xs)
            return lc.losses.mse(y, state.ys), learner.xp.sum(y)

        state.first, state.second = learner.gradient(objective)
        pairs = learner.gradient(objective, wrt=(learner.params.hidden, learner.params.out))
        (_, state.first_out), (_, state.second_out) = pairs

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    first, second = oracle.mse_gradient(W, X, Y), oracle.mlp_gradient(W, X, np.ones_like(Y))
    backend.close(backend.leaves(learner, state.first), first)
    backend.close(backend.leaves(learner, state.second), second)
    out = learner.params.out
    backend.close(backend.leaves(learner, state.first_out, out)["out.bias"], first["out.bias"])
    backend.close(backend.leaves(learner, state.second_out, out)["out.bias"], second["out.bias"])


def test_parameters_are_part_of_an_objective(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def decay() -> Any:
            return 0.5 * learner.tree.dot(learner.params.value, learner.params.value)

        state.found = learner.gradient(decay)

    learner = make_learner(backend.mlp(W))
    backend.close(backend.leaves(learner, run(learner, body).found), W)


def test_what_is_computed_outside_is_a_constant(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        target = learner.model(state.xs)
        state.found = learner.gradient(lambda: learner.xp.sum(learner.model(state.xs) * target))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X)
    backend.close(backend.leaves(learner, state.found), oracle.mlp_gradient(W, X, oracle.mlp(W, X)))


def test_stop_gradient_makes_a_constant(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            y = learner.model(state.xs)
            return learner.xp.sum(y * learner.stop_gradient({"y": y})["y"])

        state.found = learner.gradient(objective)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X)
    backend.close(backend.leaves(learner, state.found), oracle.mlp_gradient(W, X, oracle.mlp(W, X)))


def test_what_an_objective_wrote_is_kept_and_plain(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            state.outer = {"y": [learner.model(state.xs)]}
            learner.shared.outer = learner.xp.sum(state.outer["y"][0])

            def inner() -> Any:
                state.inner = learner.model(state.xs) * 2.0
                return learner.xp.mean(state.inner)

            state.grads = learner.gradient(inner)
            return lc.losses.mse(state.outer["y"][0], state.ys)

        learner.gradient(outer)
        state.later = state.inner + 1.0

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    y = oracle.mlp(W, X)
    backend.close(learner.to_host(state.outer["y"][0]), y)
    backend.close(learner.to_host(learner.shared.outer), y.sum())
    backend.close(learner.to_host(state.inner), 2 * y)
    backend.close(learner.to_host(state.later), 2 * y + 1)
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.full_like(y, 2 / y.size)))
    values = [state.outer["y"][0], state.inner, state.later, learner.shared.outer]
    values += learner.backend.tree_leaves(state.grads)
    assert all(backend.native.is_plain(value) for value in values)


def test_parameters_that_are_not_reached_get_zeros(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        first = learner.model.first
        state.found = learner.gradient(lambda: learner.xp.sum(first(state.xs)))

    models = {"first": backend.linear(dense_weights()), "second": backend.mlp(W)}
    learner = make_learner(models)
    gradients = backend.leaves(learner, run(learner, body, xs=X).found)
    backend.close(gradients["first.bias"], np.full(2, len(X)))
    for name, value in W.items():
        np.testing.assert_array_equal(gradients[f"second.{name}"], np.zeros_like(value))


def test_reaching_nothing_is_an_error(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.gradient(lambda: learner.xp.sum(state.xs * 2.0))

    with pytest.raises(lc.errors.GradientError, match="inside the objective"):
        run(make_learner(backend.mlp(W)), body, xs=X)


def test_reaching_only_other_parameters_is_an_error(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.gradient(lambda: learner.xp.sum(learner.model.first(state.xs)), wrt=learner.params.second)

    models = {"first": backend.linear(dense_weights()), "second": backend.mlp(W)}
    with pytest.raises(lc.errors.GradientError, match=r"second\.hidden"):
        run(make_learner(models), body, xs=X)


def test_no_parameters_to_differentiate_by_is_an_error(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.gradient(lambda: learner.xp.sum(learner.model(state.xs)))

    with pytest.raises(lc.errors.GradientError, match="pass an optimizer"):
        run(make_learner(backend.mlp(W), optimizer=None), body, xs=X)


@pytest.mark.parametrize("kind", ["array", "nothing", "text"])
def test_an_objective_that_returns_no_scalar_is_an_error(backend: Subject, kind: str) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        y = {"array": learner.model, "nothing": lambda x: None, "text": lambda x: "loss"}[kind]
        learner.gradient(lambda: y(state.xs))

    learner = make_learner(backend.mlp(W))
    with pytest.raises(lc.errors.LossError, match=r"scalar|nothing"):
        run(learner, body, xs=X)
    learner.run_step(lc.TrainingPhase(), (X, Y))  # the learner is usable


def test_a_loss_without_reduction_is_an_error_that_says_what_to_write(backend: Subject) -> None:
    def per_row(y_pred: Any, ys: Any) -> Any:
        return lc.losses.mse(y_pred, ys, reduction="none")

    with pytest.raises(lc.errors.LossError, match="reduction"):
        make_learner(backend.mlp(W), loss_fn=per_row).run_step(lc.TrainingPhase(), (X, Y))


def test_gradients_of_one_step_are_not_changed_by_the_next(backend: Subject) -> None:
    learner, phase = make_learner(backend.mlp(W)), lc.TrainingPhase()
    first = learner.run_step(phase, (X, Y)).grads
    before = backend.leaves(learner, first)
    learner.run_step(phase, (X2, Y2))
    backend.close(backend.leaves(learner, first), before)


def test_a_penalty_on_the_gradient_with_respect_to_inputs(backend: Subject) -> None:
    """As WGAN-GP does: a gradient of the model inside the objective is differentiated again."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            slope = learner.grad(lambda x: learner.xp.sum(learner.model(x)))(state.xs)
            norm = learner.xp.linalg.vector_norm(slope, axis=-1)
            state.penalty = learner.xp.mean((norm - 1.0) ** 2)
            return state.penalty

        learner.minimize(objective)

    def penalty(w: oracle.Params) -> float:
        hidden = np.tanh(X @ w["hidden.weight"] + w["hidden.bias"])
        slope = (1 - hidden**2) * w["out.weight"].sum(axis=1) @ w["hidden.weight"].T
        return float(np.mean((np.linalg.norm(slope, axis=-1) - 1) ** 2))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X)
    backend.close(learner.to_host(state.penalty), penalty(W))
    slopes = oracle.difference_of_weights(penalty, W)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W}, rtol=1e-8)


def test_through_an_inner_step_by_apply(backend: Subject) -> None:
    """As MAML does: the gradient of the loss after one inner step."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            slopes = learner.gradient(lambda: loss(learner, state))
            fast = learner.tree.map(lambda w, g: w - 0.5 * g, learner.params.value, slopes)
            return lc.losses.mse(learner.model.apply(fast, state.xs2), state.ys2)

        state.found = learner.gradient(outer)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y, xs2=X2, ys2=Y2)
    backend.close(backend.leaves(learner, state.found), _through_inner_step(), rtol=1e-6)
    backend.close(backend.weights(learner), W)


def _through_inner_step() -> oracle.Params:
    def after(w: oracle.Params) -> float:
        slopes = oracle.mse_gradient(w, X, Y)
        fast = {name: w[name] - 0.5 * slopes[name] for name in w}
        return oracle.mse(oracle.mlp(fast, X2), Y2)

    return oracle.difference_of_weights(after, W)


def test_the_first_order_variant_by_at(backend: Subject) -> None:
    """As SAM and first-order MAML do: the gradient at a point that another gradient led to."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        slopes = learner.gradient(lambda: loss(learner, state))
        norm = learner.tree.global_norm(slopes)
        point = learner.tree.map(lambda w, g: w + 0.05 * g / norm, learner.params.value, slopes)
        state.grads = learner.gradient(lambda: loss(learner, state), at=point)
        handle(lc.BackwardEnd())
        learner.update(state.grads)

    learner = make_learner(backend.mlp(W))
    run(learner, body, xs=X, ys=Y)
    slopes = oracle.mse_gradient(W, X, Y)
    norm = np.sqrt(sum((slope**2).sum() for slope in slopes.values()))
    gradient = oracle.mse_gradient({name: W[name] + 0.05 * slopes[name] / norm for name in W}, X, Y)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * gradient[name] for name in W})


def test_an_inner_gradient_at_values_that_depend_on_the_outer_one(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            point = learner.tree.scale(learner.params.value, 2.0)
            inner = learner.gradient(lambda: loss(learner, state), at=point)
            return learner.tree.dot(inner, inner)

        state.found = learner.gradient(outer)

    def squared_slope(w: oracle.Params) -> float:
        slopes = oracle.mse_gradient({name: 2 * value for name, value in w.items()}, X, Y)
        return float(sum((slope**2).sum() for slope in slopes.values()))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    backend.close(backend.leaves(learner, state.found), oracle.difference_of_weights(squared_slope, W), rtol=1e-6)


def test_second_derivatives_of_a_function(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = learner.xp
        first = learner.grad(lambda x: xp.sum(x**3 * state.a))

        def objective(x: Any) -> Any:
            return xp.sum(first(x) * x)

        state.first, state.second = first(state.xs), learner.grad(objective)(state.xs)

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, a=X2)
    backend.close(learner.to_host(state.first), 3 * X**2 * X2)
    backend.close(learner.to_host(state.second), 9 * X**2 * X2)


def test_a_function_of_the_hessian(backend: Subject) -> None:
    """The gradient of half the squared gradient is the Hessian times the gradient."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            slopes = learner.gradient(lambda: loss(learner, state))
            return 0.5 * learner.tree.dot(slopes, slopes)

        state.found = learner.gradient(objective)

    def half_squared_slope(w: oracle.Params) -> float:
        return 0.5 * float(sum((slope**2).sum() for slope in oracle.mse_gradient(w, X, Y).values()))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    expected = oracle.difference_of_weights(half_squared_slope, W)
    backend.close(backend.leaves(learner, state.found), expected, rtol=1e-6)


def test_an_adversarial_example_is_a_constant_of_the_objective_after_it(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        slope = learner.grad(lambda x: lc.losses.mse(learner.model(x), state.ys))(state.xs)
        state.xs = state.xs + 0.1 * learner.xp.sign(slope)
        state.found = learner.gradient(lambda: loss(learner, state))

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    slope = oracle.finite_difference(lambda x: oracle.mse(oracle.mlp(W, x), Y), X)
    example = X + 0.1 * np.sign(slope)
    backend.close(learner.to_host(state.xs), example)
    backend.close(backend.leaves(learner, state.found), oracle.mse_gradient(W, example, Y))


def test_a_model_may_be_called_twice_in_one_objective(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.found = learner.gradient(lambda: learner.xp.sum(learner.model(learner.model(state.xs))))

    weights = square_mlp_weights()
    learner = make_learner(backend.mlp(weights))
    state = run(learner, body, xs=X)
    expected = oracle.difference_of_weights(lambda w: float(oracle.mlp(w, oracle.mlp(w, X)).sum()), weights)
    backend.close(backend.leaves(learner, state.found), expected, rtol=1e-7)
