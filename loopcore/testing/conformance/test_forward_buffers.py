"""Non-trainable state: running statistics move while training, and only then."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, batches, make_learner, norm_weights, ragged, run, train
from loopcore.testing.conformance.subject import Subject

W = norm_weights()
STATISTICS = ("norm.mean", "norm.variance")
KEPT, EPSILON = 0.9, 1e-5


def after(backend: Subject, weights: dict[str, Array], *inputs: Array) -> dict[str, Array]:
    """The running statistics after these batches."""
    mean, variance = weights["norm.mean"], weights["norm.variance"]
    for x in inputs:
        divided_by = len(x) - backend.native.batch_norm_correction
        mean = KEPT * mean + (1 - KEPT) * x.mean(axis=0)
        variance = KEPT * variance + (1 - KEPT) * ((x - x.mean(axis=0)) ** 2).sum(axis=0) / divided_by
    return {"norm.mean": mean, "norm.variance": variance}


def forward(weights: dict[str, Array], x: Array, training: bool) -> Array:
    mean, variance = (x.mean(axis=0), x.var(axis=0)) if training else (weights[name] for name in STATISTICS)
    normal = (x - mean) / np.sqrt(variance + EPSILON) * weights["norm.scale"] + weights["norm.offset"]
    return np.asarray(normal @ weights["out.weight"] + weights["out.bias"])


def statistics(backend: Subject, learner: Any) -> dict[str, Array]:
    return {name: value for name, value in backend.weights(learner).items() if name in STATISTICS}


def test_statistics_after_some_steps(backend: Subject) -> None:
    pairs = ragged(5, 7, 3, 6)
    learner = make_learner(backend.batch_norm(W))
    train(learner, pairs)
    backend.close(statistics(backend, learner), after(backend, W, *[x for x, _ in pairs]))


def test_forward_and_training_by_hand(backend: Subject) -> None:
    weights, learner = dict(W), make_learner(backend.batch_norm(W))
    trained = [name for name in W if name not in STATISTICS]
    for x, y in batches(3):
        state = learner.run_step(lc.TrainingPhase(), (x, y))
        backend.close(learner.to_host(state.y_pred), forward(weights, x, training=True))
        slopes = oracle.difference_of_weights(partial(_loss, weights, x, y), {name: weights[name] for name in trained})
        weights.update({name: weights[name] - 0.1 * slopes[name] for name in trained})
        weights.update(after(backend, weights, x))
        backend.close(backend.weights(learner), weights, rtol=1e-7)


def _loss(weights: dict[str, Array], x: Array, y: Array, part: dict[str, Array]) -> float:
    return oracle.mse(forward({**weights, **part}, x, training=True), y)


def test_validation_uses_the_statistics_and_leaves_them_alone(backend: Subject) -> None:
    (x, y), learner = batches(1)[0], make_learner(backend.batch_norm(W))
    state = learner.run_step(lc.ValidationPhase(), (x, y))
    backend.close(learner.to_host(state.y_pred), forward(W, x, training=False))
    backend.close(learner.predict(x), forward(W, x, training=False))
    backend.close(backend.weights(learner), W)


def test_a_call_that_does_not_update_the_state(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs, update_state=False)
            return learner.xp.sum(state.y_pred)

        state.grads = learner.gradient(objective)
        state.outside = learner.model(state.xs, update_state=False)
        state.there = learner.buffers.value

    x, learner = batches(1)[0][0], make_learner(backend.batch_norm(W))
    state = run(learner, body, xs=x)
    backend.close(learner.to_host(state.y_pred), forward(W, x, training=True))
    backend.close(learner.to_host(state.outside), forward(W, x, training=True))
    backend.close(backend.weights(learner), W)


def test_calls_in_the_other_mode(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.y_pred = learner.model(state.xs, training=False)

    x, learner = batches(1)[0][0], make_learner(backend.batch_norm(W))
    backend.close(learner.to_host(run(learner, body, xs=x).y_pred), forward(W, x, training=False))
    backend.close(statistics(backend, learner), after(backend, W))


def test_apply_leaves_the_state_alone(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.y_pred = learner.model.apply(learner.params.value, state.xs)

    x, learner = batches(1)[0][0], make_learner(backend.batch_norm(W))
    backend.close(learner.to_host(run(learner, body, xs=x).y_pred), forward(W, x, training=True))
    backend.close(statistics(backend, learner), after(backend, W))


def test_two_calls_in_one_step_update_twice(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.xp.sum(learner.model(state.a)) + learner.xp.sum(learner.model(state.b)))

    (a, _), (b, _) = ragged(5, 4)
    learner = make_learner(backend.batch_norm(W))
    run(learner, body, a=a, b=b)
    backend.close(statistics(backend, learner), after(backend, W, a, b))


def test_state_written_in_a_nested_objective_is_kept(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            slopes = learner.gradient(lambda: learner.xp.sum(learner.model(state.a) ** 2))
            return learner.tree.dot(slopes, slopes)

        learner.gradient(outer)

    (a, _), (b, _) = ragged(5, 4)
    learner = make_learner(backend.batch_norm(W))
    run(learner, body, a=a)
    backend.close(statistics(backend, learner), after(backend, W, a))
    train(learner, [(b, np.zeros((4, 2)))])
    backend.close(statistics(backend, learner), after(backend, W, a, b))


def test_a_handler_that_reads_the_model_does_not_move_them(backend: Subject) -> None:
    class Look(lc.Callback):
        reads = ("model", "step.xs")

        @lc.on(lc.BackwardEnd, lc.TrainingPhase)
        def look(self, learner: Any, phase: Any) -> None:
            learner.model(learner.step.xs)

    (x, y), learner = batches(1)[0], make_learner(backend.batch_norm(W), callbacks=[Look()])
    train(learner, [(x, y)])
    backend.close(statistics(backend, learner), after(backend, W, x))


def test_a_step_whose_loss_is_not_finite_leaves_them_alone(backend: Subject) -> None:
    good, (x, y) = batches(2), batches(1, seed=5)[0]
    bad = (np.where(np.arange(x.size).reshape(x.shape) == 4, np.nan, x), y)
    learner = make_learner(backend.batch_norm(W), data=([*good, bad], None), callbacks=[lc.StopOnNaNLoss()])
    assert learner.fit(1).stopped_by == "StopOnNaNLoss"
    backend.close(statistics(backend, learner), after(backend, W, *[x for x, _ in good]))


def test_buffers_are_read_and_written_like_parameters(backend: Subject) -> None:
    learner = make_learner(backend.batch_norm(W))
    snapshot = learner.buffers.value
    train(learner, batches(2))
    later_statistics = statistics(backend, learner)
    learner.buffers.value = snapshot
    backend.close(statistics(backend, learner), after(backend, W))
    assert np.abs(later_statistics["norm.mean"] - W["norm.mean"]).max() > 1e-3


def test_frozen_weights_do_not_freeze_the_statistics(backend: Subject) -> None:
    pairs = batches(2)
    learner = make_learner(backend.batch_norm(W), optimizer={"out": lc.SGD(0.1)})
    before = backend.weights(learner)
    train(learner, pairs)
    np.testing.assert_array_equal(backend.weights(learner)["norm.scale"], before["norm.scale"])
    backend.close(before, W)
    backend.close(statistics(backend, learner), after(backend, W, *[x for x, _ in pairs]))
