"""The TensorFlow adapter: gradients inside a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import GradientError, LossError
from tests.tensorflow_adapter.calls import Net, X, Y, dense, keras, learner_of, tf


def test_a_module_with_other_values() -> None:
    """Through tensors in place of its variables, differentiated twice; they are back afterwards."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            slopes = learner.gradient(lambda: learner.loss_fn(learner.model(state.xs), state.ys))
            fast = learner.tree.map(lambda w, g: w - 0.5 * g, learner.params.value, slopes)
            return learner.loss_fn(learner.model.apply(fast, state.xs), state.ys)

        state.grads = learner.gradient(outer)

    module = Net()
    first, second = module.first, module.rest[1]["bias"]
    learner = learner_of(module, reads=("step.grads",))
    found = learner.to_host(lc.run_step(body, learner, lc.TrainingPhase(), xs=X, ys=Y).grads)
    assert module.first is first and module.rest[1]["bias"] is second and int(module.calls) == 1

    def loss(path: str, index: tuple[int, ...], shift: float) -> float:
        weights = {name: value.astype("f8") for name, value in learner.export_weights().items() if name != "calls"}
        weights[path][index] += shift

        def forward(w: Any) -> tuple[float, Any]:
            hidden = np.tanh(X @ w["first"])
            error = hidden @ w["rest.0"] + w["rest.1.bias"] - Y
            upstream = 2 * error / error.size
            back = upstream @ w["rest.0"].T * (1 - hidden**2)
            slopes = {"first": X.T @ back, "rest.0": hidden.T @ upstream, "rest.1.bias": upstream.sum(0)}
            return float(np.mean(error**2)), slopes

        slopes = forward(weights)[1]
        return forward({name: value - 0.5 * slopes[name] for name, value in weights.items()})[0]

    for path, index in (("first", (1, 2)), ("rest.0", (0, 1)), ("rest.1.bias", (0,))):
        expected = (loss(path, index, 1e-5) - loss(path, index, -1e-5)) / 2e-5
        assert found[path][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_losses_and_functions_that_cannot_be_differentiated() -> None:
    learner = learner_of(dense())

    def run(objective: Any) -> None:
        lc.run_step(lambda learner, handle, state: learner.gradient(objective), learner, lc.TrainingPhase())

    for objective, error, said in (
        (lambda: 1.0, LossError, r"without \.numpy\(\)"),
        (lambda: tf.constant(1), LossError, "int32"),
        (lambda: tf.ones(2), LossError, "shape"),
        (lambda: tf.ones(()), GradientError, "does not depend"),
    ):
        with pytest.raises(error, match=said):
            run(objective)
    with pytest.raises(GradientError, match="which has no gradient"):
        learner.grad(lambda n: tf.reduce_sum(n))(tf.constant([1, 2]))


def test_an_embedding_has_dense_gradients() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    learner = learner_of(keras.Sequential([keras.Input((2,), dtype="int32"), *layers]), lc.Adam(0.1))
    before = learner.export_weights()["embedding.embeddings"]
    learner.run_step(lc.TrainingPhase(), (np.array([[0, 1], [1, 4]]), Y[:2]))
    moved = (learner.export_weights()["embedding.embeddings"] != before).any(axis=1)
    assert moved.tolist() == [True, True, False, False, True]
