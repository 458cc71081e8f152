"""The JAX adapter: models of each library and their devices."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import loopcore as lc
from loopcore import backend as protocol
from loopcore.errors import BackendError, UnknownModelError
from loopcore_jax import Backend
from tests.jax_adapter.calls import (
    KERNEL,
    LIBRARIES,
    MEANS,
    MODELS,
    PARAMS,
    Linen,
    Nnx,
    dense,
    dense_params,
    evaluated,
    learner_of,
)


@pytest.mark.parametrize("name", LIBRARIES)
def test_paths_are_what_users_of_the_library_call_the_arrays(name: str) -> None:
    backend = learner_of(MODELS[name]()).backend
    assert backend.name == "jax"
    assert backend.paths("params") == {"": tuple(PARAMS[name].split(" "))}
    assert MEANS[name] in backend.paths("buffers")[""]
    named = learner_of({"critic": MODELS[name]()}).export_weights()
    assert f"critic.{KERNEL[name]}" in named
    assert f"critic.{MEANS[name]}" in named


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", LIBRARIES)
def test_what_the_user_gave_stays_and_can_be_read(name: str, compile: bool) -> None:
    given = MODELS[name]()
    arrays = [leaf for leaf in jax.tree.leaves(nnx.state(given) if name == "nnx" else given) if eqx.is_array(leaf)]
    before = [np.array(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a) for a in arrays]
    learner = learner_of(given, compile=compile)
    native, snapshot = learner.model.native, learner.params.value
    learner.fit(2)
    for array, value in zip(arrays, before, strict=True):  # neither donated nor written
        now = jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array
        np.testing.assert_array_equal(np.asarray(now), value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(snapshot))
    if name != "nnx":
        np.testing.assert_array_equal(evaluated(name, native), evaluated(name, given))


def test_a_module_of_nnx_is_written_back_when_a_run_ends() -> None:
    module = Nnx(nnx.Rngs(0))
    stream: Any = module.drop.rngs
    keys = jax.random.key_data(stream.key.get_value())
    learner = learner_of(module)
    learner.fit(1)
    assert learner.model.native is module
    weights = learner.export_weights()
    np.testing.assert_array_equal(module.hidden.kernel.get_value(), weights["hidden.kernel"])
    np.testing.assert_array_equal(module.norm.mean.get_value(), weights["norm.mean"])
    np.testing.assert_array_equal(jax.random.key_data(stream.key.get_value()), keys)
    held = module.hidden.kernel.get_value()
    learner.params.value = jax.tree.map(jnp.zeros_like, learner.params.value)
    np.testing.assert_array_equal(held, weights["hidden.kernel"])  # a copy, and only written when a run ends
    assert not learner.model.native.hidden.kernel.get_value().any()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Linen(), r"\(module, variables\)"),
        ((Linen(), {"batch_stats": {}}), '"params"'),
        (hk.transform(lambda x: x), r"\(transformed, params\)"),
        ((hk.transform_with_state(lambda x: x), {}), r"\(transformed, params, state\)"),
        ((dense, {"w": jnp.arange(3)}), "'w': it has dtype int32"),
        ((dense, {"w": jnp.ones(3), "b": 0.5}), "'b': it is the number 0.5"),
        ((dense, {"w": jnp.ones(3), "b": "zero"}), "'b': it is a builtins.str"),
        ((dense, {"a.b": jnp.ones(3), "a": {"b": jnp.ones(3)}}), r"'a\.b': two arrays"),
        ((dense, {}), "no parameters"),
        (({"w": jnp.ones(3)}, dense), "in this order"),
        (Nnx, "write Nnx"),
    ],
)
def test_models_that_cannot_be_used(model: Any, said: str) -> None:
    assert not Backend.recognises(model)
    with pytest.raises(UnknownModelError, match=said):
        Backend().bind({"": model})


def test_devices() -> None:
    learner = learner_of((dense, dense_params()), device="cpu:0")
    learner.backend.to_device(jax.devices("cpu")[0])
    learner.fit(1)
    assert learner.params.value["w"].devices() == {jax.devices("cpu")[0]}
    for device in ("cpu:99", "toaster"):
        with pytest.raises(BackendError, match=device):
            Backend(device=device)


def test_the_adapter_has_all_that_the_protocol_asks_for() -> None:
    wanted = {name for part in (protocol.Backend, protocol.CompilingBackend) for name in vars(part) if name[0] != "_"}
    wanted |= set(protocol.Backend.__annotations__) | set(protocol.CompilingBackend.__annotations__)
    wanted -= {"run_parts"}  # only where ``replays`` is false
    assert sorted(name for name in wanted if not hasattr(Backend(), name)) == []


def test_what_is_tried_out_does_not_reach_the_users_module() -> None:
    """An nnx module gets its arrays when a run ends; that of a trial ends with those of before."""
    module = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    batch = np.random.default_rng(0).normal(size=(8, 3)).astype("f4"), np.zeros((8, 4), "f4")
    before = [np.array(leaf) for leaf in jax.tree_util.tree_leaves(nnx.state(module))]
    learner = lc.Learner(module, lc.losses.mse, lc.Adam(0.1), data=([batch], None), default_callbacks=False)
    lc.LRFinder(steps=10).run(learner)
    learner.rehearse(learner.phases[0], batch)
    np.testing.assert_equal([np.array(leaf) for leaf in jax.tree_util.tree_leaves(nnx.state(module))], before)
