"""The mode of a model: that of the phase, or of the call; and the random numbers of dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import INPUTS, Array, batches, dense_weights, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject

P = 0.5
ONES = np.ones((200, INPUTS))
IDENTITY = {"out.weight": np.eye(INPUTS), "out.bias": np.zeros(INPUTS)}


class Custom(lc.Phase):
    """Neither a training nor a validation phase."""


def forward(learner: Any, handle: Any, state: Any) -> None:
    state.y_pred = learner.model(state.xs)


def masks(backend: Subject, steps: int = 1, phase: lc.Phase | None = None, **options: Any) -> list[Array]:
    learner = make_learner(backend.dropout(IDENTITY, P), **options)
    return [learner.to_host(run(learner, forward, phase, xs=ONES).y_pred) for _ in range(steps)]


def test_dropout_is_active_in_training(backend: Subject) -> None:
    mask = masks(backend)[0]
    backend.close(np.unique(mask), np.array([0.0, 1 / (1 - P)]))
    assert 0.35 < np.mean(mask == 0) < 0.65  # more than four standard deviations


@pytest.mark.parametrize("phase", [lc.ValidationPhase(), lc.PredictionPhase(), Custom()], ids=lambda p: p.name)
def test_dropout_is_off_elsewhere(backend: Subject, phase: lc.Phase) -> None:
    np.testing.assert_array_equal(masks(backend, phase=phase)[0], ONES)


def test_dropout_is_off_in_predict_and_outside_of_steps(backend: Subject) -> None:
    learner = make_learner(backend.dropout(IDENTITY, P))
    np.testing.assert_array_equal(learner.predict(ONES), ONES)
    run(learner, forward, xs=ONES)
    inputs = learner.backend.convert(ONES)
    np.testing.assert_array_equal(learner.to_host(learner.model(inputs)), ONES)
    assert (learner.to_host(learner.model(inputs, training=True)) == 0).any()


@pytest.mark.parametrize("phase", [lc.TrainingPhase(), lc.ValidationPhase()], ids=lambda p: p.name)
def test_a_call_may_say_otherwise(backend: Subject, phase: lc.Phase) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.off = learner.model(state.xs, training=False)
        state.on = learner.model(state.xs, training=True)
        state.default = learner.model(state.xs)

    learner = make_learner(backend.dropout(IDENTITY, P))
    state = run(learner, body, phase, xs=ONES)
    assert not (learner.to_host(state.off) == 0).any()
    assert (learner.to_host(state.on) == 0).any()
    assert (learner.to_host(state.default) == 0).any() == isinstance(phase, lc.AbstractTrainingPhase)


def test_apply_follows_the_mode_too(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        params = learner.params.value
        state.default = learner.model.apply(params, state.xs)
        state.off = learner.model.apply(params, state.xs, training=False)

    learner = make_learner(backend.dropout(IDENTITY, P))
    state = run(learner, body, xs=ONES)
    assert (learner.to_host(state.default) == 0).any()
    np.testing.assert_array_equal(learner.to_host(state.off), ONES)


def test_the_same_step_again_draws_the_same(backend: Subject) -> None:
    np.testing.assert_array_equal(masks(backend, 3, seed=5), masks(backend, 3, seed=5))


def test_steps_phases_and_seeds_draw_differently(backend: Subject) -> None:
    class Another(lc.AbstractTrainingPhase):
        """Another phase that trains."""

    first, second = masks(backend, 2)
    assert (first != second).any()
    assert (first != masks(backend, seed=1)[0]).any()
    assert (first != masks(backend, phase=Another())[0]).any()


def test_two_calls_in_one_step_draw_differently(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.first, state.second = learner.model(state.xs), learner.model(state.xs)

    learner = make_learner(backend.dropout(IDENTITY, P))
    state = run(learner, body, xs=ONES)
    assert (learner.to_host(state.first) != learner.to_host(state.second)).any()


def test_training_with_dropout_can_be_repeated(backend: Subject) -> None:
    pairs = batches(4)

    def trained() -> dict[str, Array]:
        learner = make_learner(backend.dropout(dense_weights(layer="out"), P), data=(pairs, pairs[:1]))
        learner.fit(2)
        return backend.weights(learner)

    first, second = trained(), trained()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_the_gradient_flows_through_what_was_kept(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            return learner.xp.sum(state.y_pred)

        state.found = learner.gradient(objective)

    learner = make_learner(backend.dropout(IDENTITY, P))
    state = run(learner, body, xs=ONES)
    activations = learner.to_host(state.y_pred)
    gradient = backend.leaves(learner, state.found)
    backend.close(gradient["out.weight"], np.repeat(activations.sum(axis=0)[:, None], INPUTS, axis=1))


def test_a_model_without_a_mode_accepts_one(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.on, state.off = learner.model(state.xs, training=True), learner.model(state.xs, training=False)

    learner = make_learner(backend.mlp(mlp_weights()))
    state = run(learner, body, xs=batches(1)[0][0])
    np.testing.assert_array_equal(learner.to_host(state.on), learner.to_host(state.off))
