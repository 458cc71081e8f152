"""The JAX adapter: models of each library, optax, and programs; what all backends share is in the conformance suite."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import loopcore as lc
from loopcore import backend as protocol
from loopcore.backend import DrawKey, Leaves
from loopcore.errors import (
    BackendError,
    CheckpointError,
    GradientError,
    LossError,
    OptimizerError,
    TraceError,
    UnknownModelError,
)
from loopcore_jax import Backend
from loopcore_jax.random import typed

KEY = DrawKey(seed=1, stream=2, step=3)
X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)


# -- one model in every library: dense, batch norm, dropout, dense ----------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.List([nnx.Linear(4, 2, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        return self.out[0](self.drop(self.norm(self.hidden(x))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(4, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(2, name="out")(nn.Dropout(0.5, deterministic=not train)(x))


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    width: int = eqx.field(static=True)

    def __init__(self, key: Any) -> None:
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Linear(3, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", momentum=0.9, mode="batch")
        self.drop = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(4, 2, key=second)
        self.width = 4

    def __call__(self, x: Any, state: Any, *, key: Any) -> Any:
        norm = jax.vmap(self.norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        x, state = norm(jax.vmap(self.hidden)(x), state)
        return jax.vmap(self.out)(self.drop(x, key=key)), state


def haiku_forward(x: Any, is_training: bool) -> Any:
    x = hk.BatchNorm(True, True, 0.9, name="norm")(hk.Linear(4, name="hidden")(x), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2, name="out")(x)


def make_linen() -> Any:
    module = Linen()
    return module, module.init(jax.random.key(0), X, False)


def make_haiku() -> Any:
    transformed = hk.transform_with_state(haiku_forward)
    return transformed, *transformed.init(jax.random.key(0), X, True)


MODELS: dict[str, Callable[[], Any]] = {
    "nnx": lambda: Nnx(nnx.Rngs(0)),
    "linen": make_linen,
    "equinox": lambda: eqx.nn.make_with_state(Equinox)(jax.random.key(0)),
    "haiku": make_haiku,
}
PARAMS = {
    "nnx": "hidden.bias hidden.kernel norm.bias norm.scale out.0.bias out.0.kernel",
    "linen": "hidden.bias hidden.kernel norm.bias norm.scale out.bias out.kernel",
    "equinox": "hidden.weight hidden.bias norm.weight norm.bias out.weight out.bias",
    "haiku": "hidden.b hidden.w norm.offset norm.scale out.b out.w",
}
MEANS = {
    "nnx": "norm.mean",
    "linen": "batch_stats.norm.mean",
    "equinox": "state.1.0",
    "haiku": "norm/~/mean_ema.hidden",
}
KERNEL = {"nnx": "hidden.kernel", "linen": "hidden.kernel", "equinox": "hidden.weight", "haiku": "hidden.w"}
LIBRARIES = list(MODELS)


def evaluated(name: str, native: Any) -> Any:
    """The forward pass in evaluation mode, as users of the library call it."""
    if name == "nnx":
        native.eval()
        return native(X)
    if name == "linen":
        module, variables = native
        return module.apply(variables, X, train=False)
    if name == "equinox":
        module, state = native
        return eqx.nn.inference_mode(module)(X, state, key=None)[0]
    transformed, params, state = native
    return transformed.apply(params, state, None, X, is_training=False)[0]


def learner_of(model: Any, optimizer: Any = None, **options: Any) -> lc.Learner:
    given: dict[str, Any] = {"default_callbacks": False, "compile": False, **options}
    return lc.Learner(model, lc.losses.mse, optimizer or lc.Adam(0.01), ([(X, Y)] * 3, None), **given)


@pytest.mark.parametrize("name", LIBRARIES)
def test_paths_are_what_users_of_the_library_call_the_arrays(name: str) -> None:
    backend = learner_of(MODELS[name]()).backend
    assert backend.name == "jax"
    assert backend.paths("params") == {"": tuple(PARAMS[name].split(" "))}
    assert MEANS[name] in backend.paths("buffers")[""]
    named = learner_of({"critic": MODELS[name]()}).export_weights()
    assert f"critic.{KERNEL[name]}" in named
    assert f"critic.{MEANS[name]}" in named


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


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_program_computes_what_the_steps_do_one_by_one(name: str) -> None:
    weights = []
    for compile in (False, True):
        # not Adam, which makes noise of the gradient of a bias before a normalisation
        learner = learner_of(MODELS[name](), lc.Momentum(0.1), compile=compile)
        learner.fit(2)
        weights.append(learner.export_weights())
    for path, value in weights[0].items():
        np.testing.assert_allclose(weights[1][path], value, rtol=1e-4, atol=1e-5, err_msg=path)


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


def dense(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def dense_params() -> dict[str, Any]:
    return {"w": jnp.full((3, 2), 0.5), "b": jnp.zeros(2)}


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


def test_a_state_that_changes_its_shape_or_structure_is_an_error() -> None:
    for new, said in (({"s": jnp.ones(2)}, "shape"), ({"t": jnp.ones(1)}, "structure")):
        backend = Backend()
        backend.bind({"": (lambda params, state, x, new=new: (x, new), dense_params(), {"s": jnp.ones(1)})})
        with pytest.raises(BackendError, match=said):
            backend.forward("", (X,), {}, training=True, update_state=True)


def test_devices() -> None:
    learner = learner_of((dense, dense_params()), device="cpu:0")
    learner.backend.to_device(jax.devices("cpu")[0])
    learner.fit(1)
    assert learner.params.value["w"].devices() == {jax.devices("cpu")[0]}
    for device in ("cpu:99", "toaster"):
        with pytest.raises(BackendError, match=device):
            Backend(device=device)


# -- optimizers -------------------------------------------------------------------------------------------------------


def bound(optimizer: Any, params: Any = None) -> Backend:
    backend = Backend()
    backend.bind({"": (dense, params or dense_params())})
    backend.attach([(optimizer, backend.paths("params")[""])])
    return backend


GRADS: Leaves = {"w": jnp.full((3, 2), 0.25), "b": jnp.asarray([1.0, -2.0])}


def stepped(backend: Backend, grads: Leaves = GRADS, times: int = 3) -> dict[str, Any]:
    for _ in range(times):
        assert backend.update(grads, True) is True
    return {path: np.asarray(value) for path, value in backend.get(backend.paths("params")[""]).items()}


@pytest.mark.parametrize(
    ("spec", "native"),
    [
        (lc.SGD(0.1), optax.sgd(0.1)),
        (lc.Momentum(0.1, 0.8), optax.sgd(0.1, 0.8)),
        (lc.Adam(0.1, 0.8, 0.95, 1e-6), optax.adam(0.1, 0.8, 0.95, 1e-6)),
        (lc.AdamW(0.1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
    ],
)
def test_a_spec_is_the_optimizer_of_optax(spec: Any, native: Any) -> None:
    ours, theirs = stepped(bound(spec)), stepped(bound(native))
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5)
        assert (value != np.asarray(dense_params()[path])).any()


def test_hyperparameters_are_found_anywhere_in_a_chain() -> None:
    inner = optax.inject_hyperparams(optax.adamw)(learning_rate=0.5, weight_decay=0.25)
    backend = bound(optax.chain(optax.clip(1.0), inner))
    assert backend.hyper_names(0) == ("learning_rate", "momentum", "weight_decay")
    assert [backend.get_hyper(0, name) for name in ("learning_rate", "weight_decay")] == [0.5, 0.25]
    backend.set_hyper(0, "learning_rate", 0.0)
    np.testing.assert_array_equal(stepped(backend)["w"], dense_params()["w"])
    assert backend.hyper_values()["0.learning_rate"] == 0.0


def test_a_baked_in_learning_rate_is_an_error_only_for_who_asks() -> None:
    learner = learner_of((dense, dense_params()), optax.adam(0.1))
    assert learner.fit(1).status == "completed"
    assert learner.backend.hyper_values() == {}  # type: ignore[attr-defined]
    with pytest.raises(OptimizerError, match="inject_hyperparams"):
        learner.hyper.learning_rate = 0.01
    with pytest.raises(OptimizerError, match=r"lc\.Adam"):
        _ = learner.hyper.learning_rate


def test_a_schedule_of_optax_runs_and_cannot_be_set() -> None:
    backend = bound(optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(1.0, 0.0, 2)))
    assert backend.get_hyper(0, "learning_rate") == 1.0
    moved = stepped(backend)
    np.testing.assert_allclose(moved["b"], -1.5 * np.array([1.0, -2.0]), rtol=1e-6)
    assert backend.get_hyper(0, "learning_rate") == 0.0
    with pytest.raises(OptimizerError, match="schedule"):
        backend.set_hyper(0, "learning_rate", 0.1)


def test_an_optimizer_of_nnx_gives_its_transformation() -> None:
    module = Nnx(nnx.Rngs(0))
    learner = learner_of(module, nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param))
    before = learner.export_weights()
    learner.fit(1)
    assert (learner.export_weights()["hidden.kernel"] != before["hidden.kernel"]).any()


def test_a_transformation_sees_the_models_own_tree_or_a_dict_by_path() -> None:
    seen: list[Any] = []

    def mask(params: Any) -> Any:
        seen.append(params)
        return jax.tree.map(lambda w: w.ndim > 1, params)

    module = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    learner_of(module, optax.add_decayed_weights(0.1, mask))
    assert isinstance(seen[-1], eqx.nn.Linear)
    learner_of(module, {"weight": optax.add_decayed_weights(0.1, mask)})
    assert list(seen.pop()) == ["weight"]


@pytest.mark.parametrize("other", [optax.adamw(0.1), optax.chain(optax.clip(1.0), optax.adam(0.1))])
def test_the_state_of_another_transformation_is_refused(other: Any, tmp_path: Path) -> None:
    first, second = (learner_of((dense, dense_params()), one) for one in (optax.adam(0.1), other))
    with pytest.raises(CheckpointError, match=r"optax\(.*scale_by_adam.*\) here, optax\(scale_by_adam, scale\) in the"):
        second.load(first.save(tmp_path / "x"))
    again = learner_of((dense, dense_params()), optax.adam(0.1))
    again.load(tmp_path / "x")


@pytest.mark.parametrize("make", [optax.adam, optax.inject_hyperparams(optax.adam)], ids=["plain", "injected"])
def test_a_checkpoint_goes_on_with_a_transformation_of_optax(make: Any, tmp_path: Path) -> None:
    whole, first, second = (learner_of((dense, dense_params()), make(learning_rate=0.1)) for _ in range(3))
    phase = lc.TrainingPhase()
    for learner in (whole, first):
        learner.run_step(phase, (X, Y))
    second.load(first.save(tmp_path / "x"))
    for learner in (whole, second):
        learner.run_step(phase, (X, Y))
    np.testing.assert_equal(second.export_weights(), whole.export_weights())


@pytest.mark.parametrize("optimizer", [lc.Adam(0.1), optax.adam(0.1)], ids=["spec", "native"])
def test_an_update_of_some_parameters_leaves_the_state_of_the_others(optimizer: Any) -> None:
    backend = bound(optimizer)
    stepped(backend, times=1)
    before = backend.copy(backend.carried())
    backend.update({"w": GRADS["w"]}, True)
    after = backend.carried()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    named = {jax.tree_util.keystr(path): flag for path, flag in jax.tree_util.tree_leaves_with_path(same)}
    assert {path: flag for path, flag in named.items() if "'b'" in path and not flag} == {}
    assert not any(flag for path, flag in named.items() if "'w'" in path)


def test_optimizers_of_others_and_gradients_of_frozen_parameters() -> None:
    with pytest.raises(OptimizerError, match=r"types\.SimpleNamespace.*optax"):
        bound(SimpleNamespace())
    backend = Backend()
    backend.bind({"": (dense, dense_params())})
    backend.attach([(lc.SGD(0.1), ("w",))])
    with pytest.raises(OptimizerError, match="no optimizer trains b"):
        backend.update(GRADS, True)


def test_arrays_that_appear_twice_are_donated_as_two() -> None:
    def keep(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    first = optax.GradientTransformation(lambda params: params, keep)  # its state is the parameters themselves
    learner = learner_of((dense, dense_params()), first, compile=True)
    assert learner.fit(2).status == "completed"
    np.testing.assert_array_equal(learner.backend.carried()["optimizers"][0]["w"], dense_params()["w"])  # type: ignore[attr-defined]


def test_a_state_that_is_the_users_own_array_is_not_donated() -> None:
    def forward(params: Any, state: Any, x: Any, train: bool) -> Any:
        return dense(params, x), {"last": state["last"] + 1.0 if train else x}

    learner = learner_of((forward, dense_params(), {"last": jnp.zeros_like(X)}), compile=True)
    x = jnp.asarray(X)
    learner.model(x)
    learner.fit(1)
    assert not x.is_deleted()
    np.testing.assert_allclose(learner.export_weights()["last"], X + 3.0, rtol=1e-6)


# -- programs ---------------------------------------------------------------------------------------------------------


def program(backend: Backend, donate: tuple[int, ...] = (0,)) -> Callable[..., Any]:
    """One step of gradient descent as the core compiles it."""

    def fn(carried: Any, hyper: Any, batch: Any, apply: Any) -> Any:
        backend.put_carried(carried)
        backend.put_hyper_values(hyper)
        scope: dict[str, Any] = {}

        def objective() -> Any:
            scope["loss"] = jnp.mean(
                (backend.forward("", batch[:1], {}, training=True, update_state=True) - batch[1]) ** 2
            )
            return scope["loss"]

        (grads,) = backend.gradient(objective, [backend.paths("params")[""]], None, [scope])[0]
        updated = backend.update(grads, apply)
        assert backend.is_traced(backend.get_hyper(0, "learning_rate"))
        return (backend.carried(), scope["loss"], updated), {"shape": batch[0].shape}

    return backend.compile(fn, donate)


def test_a_program_is_traced_once_for_each_shape_and_tells_what_its_trace_recorded() -> None:
    backend = bound(lc.Adam(0.1))
    run, given = program(backend), backend.get(["w"])["w"]
    batch = (jnp.asarray(X), jnp.asarray(Y))
    statics = []
    for step, rate in enumerate((0.1, 0.2, 0.0)):
        before = backend.copy(backend.carried())
        backend.set_hyper(0, "learning_rate", rate)
        (carried, loss, _), static = run(backend.carried(), backend.hyper_values(), batch, True)
        backend.put_carried(carried)
        statics.append(static)
        assert np.isfinite(loss)
        moved = not bool((carried["params"]["w"] == before["params"]["w"]).all())
        assert moved is (rate > 0), step
        assert backend.hyper_values()["0.learning_rate"] == rate
    assert backend.traces == 1
    assert given.is_deleted()  # donated: it was the backend's own
    small = (batch[0][:4], batch[1][:4])
    (carried, _, _), static = run(backend.carried(), backend.hyper_values(), small, True)
    backend.put_carried(carried)
    assert (backend.traces, static["shape"], statics[0]["shape"]) == (2, (4, 3), (16, 3))
    _, static = run(backend.carried(), backend.hyper_values(), batch, True)
    assert static is statics[0]
    assert backend.traces == 2


def test_an_array_decides_on_an_update_in_a_program() -> None:
    backend = bound(lc.Adam(0.1))
    run, batch = program(backend, donate=()), (jnp.asarray(X), jnp.asarray(Y))
    before = backend.carried()
    (kept, _, updated), _ = run(before, backend.hyper_values(), batch, jnp.asarray(False))
    assert not updated
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, kept)
    assert all(jax.tree.leaves((same["params"], same["optimizers"][0])))
    (moved, _, updated), _ = run(before, backend.hyper_values(), batch, jnp.asarray(True))
    assert updated
    assert not bool((moved["params"]["w"] == before["params"]["w"]).any())
    assert backend.traces == 1


def test_other_threads_never_see_what_a_trace_holds() -> None:
    backend, seen = bound(lc.SGD(0.1)), []

    def look() -> None:
        seen.append(backend.get(["w"])["w"])

    def fn(carried: Any) -> Any:
        backend.put_carried(carried)
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert backend.is_traced(backend.get(["w"])["w"])
        return backend.get(["w"])["w"] * 2.0, None

    doubled, _ = backend.compile(fn)(backend.carried())
    assert not backend.is_traced(seen[0])
    np.testing.assert_array_equal(doubled, np.ones((3, 2)))
    assert not backend.is_traced(backend.get(["w"])["w"])  # although fn did not put anything back


def test_a_draw_in_a_program_is_the_draw_of_the_step() -> None:
    backend = bound(lc.SGD(0.1))
    for name, args in {"normal": ((4,),), "permutation": (8,), "beta": (2.0, 3.0, (4,))}.items():
        draw = getattr(backend.random, name)
        inside, _ = backend.compile(lambda step, draw=draw, args=args: (draw(KEY._replace(step=step), *args), None))(
            np.int32(KEY.step)
        )
        np.testing.assert_allclose(inside, draw(KEY, *args), rtol=1e-6)
    assert (backend.random.normal(KEY, (4,)) != backend.random.normal(KEY._replace(seed=2**40 + 1), (4,))).all()
    assert not backend.is_traced(typed(KEY))


def test_a_look_at_a_value_in_a_program_is_an_error_the_core_knows() -> None:
    backend = bound(lc.SGD(0.1))
    looks: list[Callable[[Any], Any]] = [bool, float, np.asarray, lambda x: [1, 2][x.astype(int)]]
    for look in looks:
        with pytest.raises(backend.tracing_errors):
            backend.compile(lambda x, look=look: (x, look(x)))(jnp.asarray(1.0))
    _, kept = backend.compile(lambda x: (x, x))(jnp.asarray(1.0))
    with pytest.raises(backend.leak_errors):
        _ = kept + 1


# -- gradients --------------------------------------------------------------------------------------------------------


def test_an_objective_that_raises_leaves_no_tracer_behind() -> None:
    def forward(params: Any, state: Any, x: Any) -> Any:
        return dense(params, x), {"sum": jnp.sum(params["w"])}

    backend = Backend()
    backend.bind({"": (forward, dense_params(), {"sum": jnp.zeros(())})})
    scope: dict[str, Any] = {"tree": {"deep": [None, "text"]}}

    def objective() -> Any:
        scope["y"] = {"b": backend.forward("", (X,), {}, training=True, update_state=True), "a": [scope["tree"]]}
        assert backend.is_differentiated(scope["y"])
        assert not backend.is_differentiated({"x": jnp.ones(2), "y": backend.concrete(scope["y"])["b"]})
        raise lc.CancelStepException("enough")

    with pytest.raises(lc.CancelStepException, match="enough"):
        backend.gradient(objective, [("w",)], None, [scope])
    np.testing.assert_allclose(scope["y"]["b"], X @ np.full((3, 2), 0.5), rtol=1e-6)
    assert list(scope["y"]) == ["b", "a"]
    assert float(backend.get(["sum"])["sum"]) == 3.0
    assert not backend.is_differentiated(scope["y"])


def test_what_an_inner_objective_does_not_reach_is_an_error_although_the_outer_one_does() -> None:
    backend = bound(lc.SGD(0.1))

    def outer() -> Any:
        w = backend.get(["w"])["w"]
        backend.gradient(lambda: jnp.sum(w * w), [("w",)], None, [])
        return jnp.sum(w)

    for run in (lambda f: f(), lambda f: backend.compile(lambda: (f(), None))()):
        with pytest.raises(GradientError, match="does not depend on w"):
            run(lambda: backend.gradient(outer, [("w",)], None, []))


def test_losses_that_are_none() -> None:
    backend = bound(lc.SGD(0.1))
    results: list[tuple[Any, str]] = [(1.5, "number"), (jnp.arange(3)[0], "int32"), ([], "list")]
    for result, said in results:
        with pytest.raises(LossError, match=said):
            backend.gradient(partial(dict.get, {"it": result}, "it"), [("w",)], None, [])
    with pytest.raises(GradientError, match="argument 1 of the function"):
        backend.grad(lambda x, n: x * n, [])(jnp.asarray(1.0), jnp.asarray(2))
    assert backend.grad(lambda x, *, power: x**power, [])(3.0, power=2.0) == 6.0


def test_a_label_that_is_no_class_makes_the_loss_nan() -> None:
    for label in (-1, 3):
        assert np.isnan(lc.losses.cross_entropy(jnp.zeros((1, 3)), jnp.asarray([label])))


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_reused_buffer_is_copied_before_the_program_starts(device: Any) -> None:
    backend = Backend(device=device)
    memory = np.zeros(4 * 1000 + 64, np.uint8)
    start = -memory.ctypes.data % 64  # JAX shares the memory of aligned arrays, and of those alone
    buffer = memory[start : start + 4000].view(np.float32)
    buffer[:] = 1.0
    found = backend.convert({"x": buffer})["x"]
    buffer[:] = 7.0
    np.testing.assert_array_equal(found, np.ones_like(buffer))


def test_conversion_keeps_what_fits_and_what_is_no_array() -> None:
    backend = bound(lc.SGD(0.1))
    batch = {"z": jnp.ones(2), "a": [jnp.arange(2), "text", None, 3]}
    assert backend.convert(batch) is batch
    found = backend.convert(
        {"z": np.ones(2), "b": np.arange(2, dtype=np.uint8), "a": np.array(["text"]), "n": np.int64(3)}
    )
    assert list(found) == ["z", "b", "a", "n"]
    assert [str(found[name].dtype) for name in ("z", "b", "n")] == ["float32", "uint8", "int32"]
    assert isinstance(found["a"], np.ndarray)
    half = bound(lc.SGD(0.1), jax.tree.map(lambda w: w.astype(jnp.bfloat16), dense_params()))
    assert half.convert(np.ones(2)).dtype == jnp.bfloat16
    assert half.to_host(half.get(["w"]))["w"].dtype == jnp.bfloat16
    assert stepped(half)["w"].dtype == jnp.bfloat16


def test_values_read_out_are_copies_and_fetches_are_counted() -> None:
    backend = bound(lc.SGD(0.1))
    present = backend.get(["w"])["w"]
    assert backend.snapshot(["w"])["w"].unsafe_buffer_pointer() != present.unsafe_buffer_pointer()
    host = backend.to_host({"w": present, "text": "text"})
    assert (host["text"], host["w"].flags.owndata, host["w"].flags.writeable) == ("text", True, True)
    assert backend.transfers == 1
    assert backend.is_ready(present.block_until_ready())
    assert backend.number(present) is present


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


def test_a_mask_as_an_index_in_a_compiled_step_names_the_line() -> None:
    class Picks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.sum(state.xs[state.xs > 0])

    learner = lc.Learner((lambda params, x: x, {"w": jnp.ones(1)}), lc.losses.mse, default_callbacks=False)
    with pytest.raises(TraceError, match=r"test_adapter\.py:\d+: state\.loss = .*learner\.xp\.where"):
        learner.run_step(Picks(), {"xs": X})


LOOPS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "scan": lambda draw: jax.lax.scan(lambda c, x: (c, draw()), 0.0, jnp.arange(4)),
    "fori_loop": lambda draw: jax.lax.fori_loop(0, 4, lambda n, c: c + draw(), 0.0),
    "while_loop": lambda draw: jax.lax.while_loop(lambda c: c < 4, lambda c: c + 1 + 0 * draw(), 0.0),
    "map": lambda draw: jax.lax.map(lambda x: x + draw(), jnp.arange(4.0)),
    "vmap": lambda draw: jax.vmap(lambda x: x + draw())(jnp.arange(4.0)),
}


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("name", LOOPS)
def test_a_draw_in_a_loop_of_jax_is_refused(name: str, compile: bool) -> None:
    class Looping(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            LOOPS[name](lambda: learner.random.normal(()))

    learner = lc.Learner((lambda params, x: x, {"w": jnp.ones(1)}), lc.losses.mse, compile=compile)
    with pytest.raises(TraceError, match=rf"learner\.random was used inside jax's {name}"):
        learner.run_step(Looping(), {"xs": X})


@pytest.mark.parametrize("transform", [jax.checkpoint, jax.jit, lambda fn: lambda: jax.lax.cond(True, fn, fn)])
def test_a_draw_in_what_runs_once_is_no_loop(transform: Any) -> None:
    class Once(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = transform(lambda: learner.random.normal(()))()

    learner = lc.Learner((lambda params, x: x, {"w": jnp.ones(1)}), lc.losses.mse, default_callbacks=False)
    first, second = (float(learner.run_step(Once(), {"xs": X}).loss) for _ in range(2))
    assert first != second


def test_dropout_in_a_loop_of_jax_is_refused_while_training() -> None:
    module = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))

    def step(self: Any, learner: Any, handle: Any, state: Any) -> None:
        state.loss = jnp.mean(jax.vmap(learner.model)(state.xs))

    trains: Any = type("Looping", (lc.TrainingPhase,), {"step": step})
    looks: Any = type("Looping", (lc.ValidationPhase,), {"step": step})
    learner = lc.Learner(module, lc.losses.mse, default_callbacks=False)
    assert np.isfinite(float(learner.run_step(looks(), {"xs": np.ones((2, 3), "f4")}).loss))
    with pytest.raises(TraceError, match=r"Sequential drew random numbers, as dropout does, inside jax's vmap"):
        learner.run_step(trains(), {"xs": np.ones((2, 3), "f4")})


@pytest.mark.parametrize("compile", [True, False])
def test_keys_are_split_for_a_loop(compile: bool) -> None:
    class Split(lc.ValidationPhase):
        reads = ("step.noise",)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            keys = jax.random.split(learner.random.key(), 4)
            state.noise = jax.vmap(lambda key: jax.random.normal(key))(keys)

    def draws(seed: int) -> list[Any]:
        learner = lc.Learner((lambda params, x: x, {"w": jnp.ones(1)}), lc.losses.mse, compile=compile, seed=seed)
        return [np.asarray(learner.run_step(Split(), {"xs": X}).noise) for _ in range(2)]

    first, again, other = draws(0), draws(0), draws(1)
    np.testing.assert_array_equal(first, again)
    assert len({float(number) for rows in (*first, *other) for number in rows}) == 16
