"""The JAX adapter: what a model does inside a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import BackendError
from loopcore_jax import Backend
from tests.jax_adapter.calls import (
    KERNEL,
    LIBRARIES,
    MEANS,
    MODELS,
    PARAMS,
    X,
    Y,
    dense,
    dense_params,
    evaluated,
    learner_of,
)


@pytest.mark.parametrize("name", LIBRARIES)
def test_prediction_is_the_forward_pass_of_the_library(name: str) -> None:
    learner = learner_of(MODELS[name]())
    learner.fit(1)
    expected = np.asarray(evaluated(name, learner.model.native))
    np.testing.assert_allclose(learner.predict(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_training_moves_all_weights_and_the_statistics(name: str) -> None:
    learner = learner_of(MODELS[name]())
    before = learner.export_weights()
    learner.predict(X)
    for path, value in learner.export_weights().items():
        np.testing.assert_array_equal(value, before[path])
    x = 2 * X  # another batch than the one haiku was initialised with
    learner.run_step(lc.TrainingPhase(), (x, Y))
    after = learner.export_weights()
    assert [path for path in before if (before[path] == after[path]).all()] == []
    weight, bias = before[KERNEL[name]], before[PARAMS[name].split(" ")[0 if name != "equinox" else 1]]
    seen = x @ (weight.T if name == "equinox" else weight) + bias
    expected = 0.9 * before[MEANS[name]] + 0.1 * seen.mean(axis=0)
    np.testing.assert_allclose(after[MEANS[name]], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_dropout_follows_the_step_and_the_seed(name: str) -> None:
    def outputs(seed: int) -> list[Any]:
        learner = learner_of(MODELS[name](), lc.SGD(0.0), seed=seed)
        states = [learner.run_step(lc.TrainingPhase(), (X, Y), reads=("step.y_pred",)) for _ in range(2)]
        return [np.asarray(state.y_pred) for state in states]

    first, second = outputs(0)
    again, other = outputs(0), outputs(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    assert (first != second).any()
    assert (first != other[0]).any()


def test_random_streams_of_linen_have_names() -> None:
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2)(x) + jax.random.normal(self.make_rng("noise"), (2,))

    module = Noisy()
    variables = module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, X)
    learner = learner_of((module, variables, ("noise",)))
    found = [learner.run_step(lc.TrainingPhase(), (X, Y), reads=("step.y_pred",)).y_pred for _ in range(2)]
    assert (found[0] != found[1]).all()
    assert learner.model.native[0] is module


def test_functions_of_haiku_without_a_state() -> None:
    transformed = hk.transform(lambda x: hk.Linear(2)(x))
    params = transformed.init(jax.random.key(0), X)
    learner = learner_of((transformed, params))
    np.testing.assert_allclose(learner.predict(X), transformed.apply(params, None, X), rtol=1e-6)
    assert str(jax.tree.structure(learner.params.value)) == str(jax.tree.structure(params))


def test_a_module_of_equinox_without_a_state_keeps_its_tree() -> None:
    class Dense(eqx.Module):
        linear: eqx.nn.Linear
        offsets: Any
        activation: Callable[..., Any]

        def __call__(self, x: Any) -> Any:
            return self.activation(jax.vmap(self.linear)(x)) + self.offsets

    module = Dense(eqx.nn.Linear(3, 2, key=jax.random.key(0)), jnp.arange(2), jnp.tanh)
    learner = learner_of(module)
    np.testing.assert_allclose(learner.predict(X), module(X), rtol=1e-6)
    value = learner.params.value
    assert isinstance(value, Dense)
    doubled = learner.tree.scale(value, 2.0)
    np.testing.assert_allclose(learner.model.apply(doubled, X), eqx.combine(doubled, module)(X), rtol=1e-6)
    learner.fit(1)
    np.testing.assert_array_equal(learner.model.native.offsets, [0, 1])


def test_a_state_may_hold_numbers_integers_and_random_keys() -> None:
    def forward(params: Any, state: Any, x: Any, deterministic: bool) -> Any:
        key, use = jax.random.split(state["key"])
        y = dense(params, x) + (0 if deterministic else jax.random.normal(use, (2,)))
        return y, {"key": key, "count": state["count"] + 1, "share": state["share"] * 0.5}

    learner = learner_of((forward, dense_params(), {"key": jax.random.key(0), "count": 0, "share": 1.0}))
    learner.fit(1)
    weights = learner.export_weights()
    assert (weights["count"].dtype, int(weights["count"]), float(weights["share"])) == (np.int32, 3, 0.125)
    assert weights["key"].dtype == np.uint32
    other = learner_of((forward, dense_params(), {"key": jax.random.key(5), "count": 0, "share": 1.0}))
    other.import_weights(weights)
    np.testing.assert_array_equal(other.export_weights()["key"], weights["key"])


def test_a_state_that_changes_its_shape_or_structure_is_an_error() -> None:
    for new, said in (({"s": jnp.ones(2)}, "shape"), ({"t": jnp.ones(1)}, "structure")):
        backend = Backend()
        backend.bind({"": (lambda params, state, x, new=new: (x, new), dense_params(), {"s": jnp.ones(1)})})
        with pytest.raises(BackendError, match=said):
            backend.forward("", (X,), {}, training=True, update_state=True)
