"""What crosses the boundary is a copy: values read out never change, values written in are never written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import batches, make_learner, mlp_weights, norm_weights, run, train
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)
(X, Y), *_ = PAIRS
W = mlp_weights()


def test_values_read_out_are_not_changed_by_later_steps(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer=lc.Adam(0.1))
    weights, part = learner.params.value, learner.params.out.value
    train(learner, PAIRS)
    backend.close(backend.leaves(learner, weights), W)
    backend.close(backend.leaves(learner, part, learner.params.out)["out.bias"], W["out.bias"])


def test_values_read_within_a_step_are_those_of_that_moment(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.before = learner.params.value
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        state.after = learner.params.value

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, ys=Y)
    train(learner, PAIRS)
    slopes = oracle.mse_gradient(W, X, Y)
    backend.close(backend.leaves(learner, state.before), W)
    backend.close(backend.leaves(learner, state.after), {name: W[name] - 0.1 * slopes[name] for name in W})


def test_values_written_in_are_copied(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    tree = learner.tree.scale(learner.params.value, 2.0)
    learner.params.value = tree
    backend.close(backend.weights(learner), {name: 2 * value for name, value in W.items()})
    train(learner, PAIRS)
    backend.close(backend.leaves(learner, tree), {name: 2 * value for name, value in W.items()})


def test_assigning_within_a_step(backend: Subject) -> None:
    """As a projection onto a ball, or weight clipping, does."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        learner.params.value = learner.tree.map(lambda w: learner.xp.clip(w, -0.1, 0.1), learner.params.value)

    learner = make_learner(backend.mlp(W))
    run(learner, body, xs=X, ys=Y)
    slopes = oracle.mse_gradient(W, X, Y)
    backend.close(backend.weights(learner), {k: np.clip(W[k] - 0.1 * slopes[k], -0.1, 0.1) for k in W})


def test_one_array_under_two_names_becomes_two(backend: Subject) -> None:
    learner = make_learner({"first": backend.mlp(W), "second": backend.mlp(mlp_weights(1))})
    learner.params.second.value = learner.params.first.value
    learner.params.first.value = learner.tree.scale(learner.params.first.value, 0.0)
    weights = backend.weights(learner)
    backend.close({name: weights[f"second.{name}"] for name in W}, W)


def test_weights_given_to_the_model_are_not_changed(backend: Subject) -> None:
    arrays = {name: value.copy() for name, value in W.items()}
    learner = make_learner(backend.mlp(arrays))
    train(learner, PAIRS)
    for name, value in W.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_a_value_that_does_not_fit_is_refused_as_a_whole(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    tree = learner.tree.map(lambda w: learner.xp.zeros((7, 7)) if w.ndim == 2 else w * 2.0, learner.params.value)
    with pytest.raises(lc.errors.WeightsError, match=r"\[7, 7\]"):
        learner.params.value = tree
    backend.close(backend.weights(learner), W)


def test_exported_weights_are_copies(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    weights = learner.export_weights()
    train(learner, PAIRS[:1])
    backend.close(backend.native.neutral(weights), W)
    for value in weights.values():
        assert isinstance(value, np.ndarray)
        value[...] = 0.0
    assert all(value.any() for value in backend.weights(learner).values())


def test_imported_weights_are_copied_and_buffers_are_among_them(backend: Subject) -> None:
    learner, other = (make_learner(backend.batch_norm(norm_weights(seed))) for seed in (0, 1))
    weights = learner.export_weights()
    other.import_weights(weights)
    backend.close(backend.weights(other), norm_weights(0))
    train(other, PAIRS)
    backend.close(backend.native.neutral(weights), norm_weights(0))
    other.import_weights(weights)
    for value in weights.values():
        value[...] = 0
    backend.close(backend.weights(other), norm_weights(0))


def test_weights_of_several_models_are_one_flat_dict(backend: Subject) -> None:
    models = {"first": backend.mlp(W), "second": backend.mlp(mlp_weights(1))}
    learner = make_learner(models, optimizer={"first": lc.SGD(0.1)})
    weights = learner.export_weights()
    assert {path.partition(".")[0] for path in weights} == {"first", "second"}
    learner.import_weights({path: 2 * value for path, value in weights.items()})
    for path, value in learner.export_weights().items():
        backend.close(value, 2 * weights[path])


def test_all_that_is_wrong_with_weights_is_said_at_once_and_nothing_is_loaded(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    weights = {path: 0 * value for path, value in learner.export_weights().items()}
    bias, other, *_ = sorted(weights, key=lambda path: not path.endswith("bias"))
    weights[bias] = np.zeros(99)
    weights[other] = np.array(["text"] * len(weights[other]))
    missing = next(path for path in weights if path not in (bias, other))
    del weights[missing]
    weights["unknown.weight"] = np.zeros(1)
    with pytest.raises(lc.errors.WeightsError) as excinfo:
        learner.import_weights(weights)
    message = str(excinfo.value)
    assert f"{bias}: the model has shape" in message
    assert f"{other}: the model has dtype" in message
    assert f"{missing}: missing" in message
    assert "unknown.weight: the model has no such weight" in message
    backend.close(backend.weights(learner), W)


def test_imported_weights_of_another_width_take_the_models_own(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    other = {"float64": np.float32, "float32": np.float64}[backend.dtype]
    dtypes = {path: value.dtype for path, value in learner.export_weights().items()}
    learner.import_weights({path: value.astype(other) for path, value in learner.export_weights().items()})
    assert {path: value.dtype for path, value in learner.export_weights().items()} == dtypes
    backend.close(backend.weights(learner), W, rtol=1e-6)


def test_shared_arrays_read_out_are_not_changed_by_later_steps(backend: Subject) -> None:
    class Average(lc.Callback):
        """An exponential average of the weights, carried from step to step."""

        reads = ("params",)
        writes = ("shared.average",)
        carries = ("shared.average",)

        def setup(self, learner: Any) -> None:
            learner.shared.average = learner.params.value

        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase, traced=True)
        def follow(self, learner: Any, phase: Any) -> None:
            learner.shared.average = learner.tree.lerp(learner.shared.average, learner.params.value, 0.5)

    learner = make_learner(backend.mlp(W), callbacks=[Average()])
    weights, average = dict(W), dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    averages: list[tuple[Any, dict[str, Any]]] = []
    for x, y in PAIRS:
        train(learner, [(x, y)])
        optimizer.update(oracle.mse_gradient(weights, x, y))
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
        averages.append((learner.shared.average, average))
    for actual, expected in averages:
        backend.close(backend.leaves(learner, actual), expected)
