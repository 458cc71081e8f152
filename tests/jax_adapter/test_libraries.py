"""What users of flax, equinox, haiku and optax bring: taken whole, shown to them, or refused."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from jax.core import Tracer

import loopcore as lc
from loopcore.errors import BackendError, OptimizerError, UnknownModelError
from loopcore_jax import Backend

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)
PAIRS = [(X + number, Y) for number in range(3)]
COMPILE = pytest.mark.parametrize("compile", [False, True], ids=["eager", "program"])


def learner_of(model: Any, optimizer: Any = None, **options: Any) -> lc.Learner:
    given: dict[str, Any] = {"default_callbacks": False, "data": (PAIRS, None), **options}
    return lc.Learner(model, lc.losses.mse, optimizer or lc.SGD(0.1), **given)


class Dense(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def encode(self, x: Any) -> Any:
        return self.norm(self.hidden(x))

    def __call__(self, x: Any) -> Any:
        return self.out(self.encode(x))


class Tuned(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.base = nnx.Linear(3, 2, rngs=rngs)
        self.lora = nnx.LoRA(3, 2, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.base(x) + self.lora(x)


def kernel(module: Any) -> Any:
    return np.array(module.hidden.kernel.get_value())


def at(event: type[lc.Event], function: Any, **declared: Any) -> lc.Callback:
    return lc.FunctionCallback(function, event, **declared)


def linear(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def arrays() -> dict[str, Any]:
    return {"w": jnp.full((3, 2), 0.5), "b": jnp.zeros(2)}


# -- the user's own objects -------------------------------------------------------------------------------------------


@COMPILE
def test_a_module_of_nnx_holds_the_present_values_whenever_a_handler_may_look(compile: bool) -> None:
    module = Dense(nnx.Rngs(0))
    seen: list[tuple[str, Any, Any]] = []

    def look(learner: Any, phase: Any = None) -> None:
        seen.append(("quiet", kernel(module), np.array(learner.params.value["hidden"]["kernel"])))

    events = (lc.FitBegin, lc.EpochBegin, lc.StepBegin, lc.BackwardEnd, lc.StepEnd, lc.EpochEnd, lc.FitEnd)
    callbacks = [at(event, look, reads=("params",)) for event in events]
    learner = learner_of(module, callbacks=callbacks, compile=compile)
    learner.fit(2)
    assert len(seen) == 2 + 2 * (2 + 3 * len(PAIRS))
    for _, theirs, present in seen:
        np.testing.assert_array_equal(theirs, present)
    assert len({theirs.tobytes() for _, theirs, _ in seen}) == 1 + 2 * len(PAIRS)


def test_between_steps_a_handler_that_declares_nothing_finds_them_too() -> None:
    module = Dense(nnx.Rngs(0))
    seen: list[Any] = []
    events = (lc.EpochBegin, lc.EpochEnd, lc.FitEnd)
    learner = learner_of(module, callbacks=[at(e, lambda *_: seen.append(kernel(module))) for e in events])
    learner.fit(2)
    assert len({value.tobytes() for value in seen}) == 3
    np.testing.assert_array_equal(seen[-1], learner.export_weights()["hidden.kernel"])


def test_who_does_not_look_costs_no_copy_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shown = Dense(nnx.Rngs(0)), list[int]()
    learner = learner_of(module, callbacks=[at(lc.StepEnd, lambda *_: None, reads=("step.loss",)), lc.Recorder()])
    learner.fit(1)
    original = nnx.update

    def counting(*given: Any) -> None:
        shown.append(1)
        original(*given)

    monkeypatch.setattr(nnx, "update", counting)
    learner.fit(2)
    assert len(shown) == 2  # once an epoch; the end of the fit finds nothing new


@COMPILE
@pytest.mark.parametrize("how", ["fit", "params", "predict", "export", "by hand"])
def test_what_the_user_writes_into_his_module_counts(compile: bool, how: str) -> None:
    module: Any = Dense(nnx.Rngs(0))
    learner = learner_of(module, lc.SGD(0.0), compile=compile)
    learner.fit(1)
    module.hidden.kernel[...] = jnp.ones((3, 4))
    module.norm.mean[...] = jnp.full(4, 3.0)
    if how == "fit":
        learner.fit(1)
    elif how == "params":
        assert (np.asarray(learner.params.value["hidden"]["kernel"]) == 1).all()
    elif how == "predict":
        module.eval()
        np.testing.assert_allclose(learner.predict(X), module(X), rtol=1e-5)
    elif how == "by hand":
        module.eval()
        np.testing.assert_allclose(learner.model(X), module(X), rtol=1e-5)
    weights = learner.export_weights()
    assert (weights["hidden.kernel"] == 1).all()
    assert how == "fit" or (weights["norm.mean"] == 3).all()
    np.testing.assert_array_equal(kernel(module), weights["hidden.kernel"])


@COMPILE
def test_what_a_handler_writes_into_the_module_counts(compile: bool) -> None:
    module, clipped = Dense(nnx.Rngs(0)), list[int]()

    def clip(learner: Any, phase: Any) -> None:
        if not clipped:
            module.hidden.kernel[...] = jnp.clip(module.hidden.kernel[...], -0.01, 0.01)
        clipped.append(1)

    learner = learner_of(module, lc.SGD(0.0), callbacks=[at(lc.StepEnd, clip, writes=("params",))], compile=compile)
    learner.fit(1)
    assert len(clipped) == len(PAIRS)
    assert abs(learner.export_weights()["hidden.kernel"]).max() <= 0.01


def test_what_is_assigned_outside_of_a_run_is_in_the_module() -> None:
    module: Any = Dense(nnx.Rngs(0))
    learner = learner_of(module)
    learner.params.value = jax.tree.map(jnp.zeros_like, learner.params.value)
    assert not kernel(module).any()
    grads = learner.gradient(lambda: learner.xp.mean(learner.model(X) ** 2) + learner.xp.sum(learner.model(X)))
    learner.update(grads)
    np.testing.assert_array_equal(module.out.bias.get_value(), learner.export_weights()["out.bias"])
    assert module.out.bias.get_value().any()


def test_two_learners_hand_on_one_module() -> None:
    module = Dense(nnx.Rngs(0))
    first, second = learner_of(module), learner_of(module)
    first.fit(1)
    second.fit(1)
    np.testing.assert_array_equal(first.export_weights()["out.kernel"], second.export_weights()["out.kernel"])
    whole = learner_of(Dense(nnx.Rngs(0)))
    whole.fit(2)
    np.testing.assert_array_equal(whole.export_weights()["out.kernel"], module.out.kernel.get_value())


def test_a_module_that_is_another_one_is_refused_when_a_run_begins() -> None:
    module: Any = Dense(nnx.Rngs(0))
    learner = learner_of(module)
    module.eval()  # a mode is no other module
    learner.fit(1)
    module.norm.momentum = 0.5
    with pytest.raises(BackendError, match=r"set_model\(module\)"):
        learner.fit(1)
    learner.set_model(module)
    learner.fit(1)
    module.out = nnx.Linear(4, 2, rngs=nnx.Rngs(5))  # a part like the one it was
    learner.fit(1)
    np.testing.assert_array_equal(module.out.kernel.get_value(), learner.export_weights()["out.kernel"])
    module.extra = nnx.Linear(4, 2, rngs=nnx.Rngs(5))
    with pytest.raises(BackendError, match=r"set_model\(module\)"):
        learner.predict(X)
    del module.extra
    module.out.kernel.set_value(jnp.ones((4, 5)))
    with pytest.raises(BackendError, match=r"'out\.kernel'.*was \[4, 2\] and is \[4, 5\]"):
        learner.fit(1)


def test_parts_in_eval_mode_stay_in_it() -> None:
    module: Any = Dense(nnx.Rngs(0))
    module.resting = nnx.BatchNorm(4, rngs=nnx.Rngs(1))
    module.norm.eval()
    learner = learner_of({"net": module})
    with pytest.warns(UserWarning, match=r"no objective has reached net\.resting"):  # which no call uses
        learner.fit(1)
    assert learner.backend.eval_parts() == ("net.norm",)  # type: ignore[attr-defined]
    assert not learner.export_weights()["net.norm.mean"].any()
    whole: Any = Dense(nnx.Rngs(0))
    whole.eval()  # as one is after it was measured
    learner = learner_of(whole)
    learner.fit(1)
    assert learner.export_weights()["norm.mean"].all()


def test_parts_of_equinox_in_inference_mode_stay_in_it() -> None:
    class Noisy(eqx.Module):
        first: eqx.nn.Dropout
        second: eqx.nn.Dropout
        weight: Any

        def __call__(self, x: Any, *, key: Any) -> Any:
            return self.second(self.first(x, key=key), key=key) @ self.weight

    def zeros(first: bool, second: bool) -> int:
        module = Noisy(eqx.nn.Dropout(0.5, first), eqx.nn.Dropout(0.9, second), jnp.eye(3))
        learner = learner_of(module)
        return int((np.asarray(learner.model(np.ones((200, 3), np.float32), training=True)) == 0).sum())

    assert zeros(True, True) > 500
    assert zeros(False, False) > 500
    assert 200 < zeros(False, True) < 400


# -- nnx.Optimizer ----------------------------------------------------------------------------------------------------


def test_wrt_decides_what_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    module = Tuned(nnx.Rngs(0))
    before = np.array(module.base.kernel.get_value())
    learner = learner_of(module, nnx.Optimizer(module, optax.adam(0.05), wrt=nnx.LoRAParam))
    learner.fit(1)
    assert learner.frozen == ("base.bias", "base.kernel")
    assert learner.params.names == ("lora.lora_a", "lora.lora_b")
    assert "frozen: base.bias, base.kernel" in learner.explain()
    np.testing.assert_array_equal(module.base.kernel.get_value(), before)


def test_a_prefix_of_its_own_trains_what_wrt_leaves_out() -> None:
    module = Tuned(nnx.Rngs(0))
    own = nnx.Optimizer(module, optax.adam(0.05), wrt=nnx.LoRAParam)
    learner = learner_of(module, {"": own, "base.kernel": lc.SGD(0.1)})
    assert learner.frozen == ("base.bias",)


def test_wrt_that_does_not_fit_is_refused() -> None:
    class Other(nnx.Variable[Any]):
        pass

    class Odd(Dense):
        def __init__(self, rngs: nnx.Rngs) -> None:
            super().__init__(rngs)
            self.scale = Other(jnp.ones(2))

    module = Odd(nnx.Rngs(0))
    with pytest.raises(OptimizerError, match=r"takes scale.*subclass of nnx\.Param"):
        learner_of(module, nnx.Optimizer(module, optax.sgd(0.1), wrt=(nnx.Param, Other)))
    with pytest.raises(OptimizerError, match=r"optimizer\.tx"):
        learner_of(module, {"out": nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)})
    with pytest.raises(OptimizerError, match="takes no parameter"):
        learner_of(module, nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.LoRAParam))
    tuned = Tuned(nnx.Rngs(0))
    with pytest.raises(OptimizerError, match="make it for this module"):
        learner_of(module, nnx.Optimizer(tuned, optax.adam(0.1), wrt=nnx.Param))


def nnx_loss(module: Any, x: Any, y: Any) -> Any:
    return jnp.mean((module(x) - y) ** 2)


@COMPILE
def test_an_optimizer_of_nnx_goes_on_from_its_steps_and_gives_them_back(compile: bool) -> None:
    def made() -> tuple[Any, Any]:
        module = Tuned(nnx.Rngs(0))
        return module, nnx.Optimizer(module, optax.adamw(0.05), wrt=nnx.Param)

    def by_hand(module: Any, optimizer: Any) -> None:
        module.train()
        for x, y in PAIRS:
            optimizer.update(module, nnx.grad(nnx_loss)(module, x, y))

    whole, steps = made()
    for _ in range(3):
        by_hand(whole, steps)
    module, optimizer = made()
    by_hand(module, optimizer)
    learner = learner_of(module, optimizer, compile=compile)
    learner.fit(1)
    assert int(optimizer.step[...]) == 2 * len(PAIRS)
    by_hand(module, optimizer)
    for theirs, ours in zip(
        jax.tree.leaves(nnx.as_pure((nnx.state(whole), steps.opt_state))),
        jax.tree.leaves(nnx.as_pure((nnx.state(module), optimizer.opt_state))),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-6)
    learner.fit(1)
    assert int(optimizer.step[...]) == 4 * len(PAIRS)


def test_a_checkpoint_goes_on_with_an_optimizer_of_nnx(tmp_path: Any) -> None:
    def made() -> tuple[Any, Any, lc.Learner]:
        module = Tuned(nnx.Rngs(0))
        optimizer = nnx.Optimizer(module, optax.adam(0.05), wrt=nnx.Param)
        return module, optimizer, learner_of(module, optimizer)

    module, optimizer, learner = made()
    learner.fit(1)
    learner.save(tmp_path / "run")
    other, own, second = made()
    second.load(tmp_path / "run")
    assert int(own.step[...]) == len(PAIRS)
    np.testing.assert_array_equal(other.lora.lora_a.get_value(), module.lora.lora_a.get_value())
    for one in (learner, second):
        one.fit(1)
    np.testing.assert_equal(second.export_weights(), learner.export_weights())
    for ours, theirs in zip(jax.tree.leaves(own.opt_state), jax.tree.leaves(optimizer.opt_state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_rate_in_the_state_of_an_optimizer_of_nnx_is_that_of_the_learner() -> None:
    module = Dense(nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.inject_hyperparams(optax.adam)(learning_rate=0.25), wrt=nnx.Param)
    learner = learner_of(module, optimizer)
    learner.hyper.learning_rate = 0.5
    rate: Any = optimizer.opt_state.hyperparams["learning_rate"]
    assert float(rate[...]) == 0.5
    learner.fit(1)
    rate[...] = jnp.asarray(0.0)
    assert learner.hyper.learning_rate == 0.0
    before = kernel(module)
    learner.fit(1)
    np.testing.assert_array_equal(kernel(module), before)


# -- transformations of optax -----------------------------------------------------------------------------------------


def two_rates() -> Any:
    rate = optax.inject_hyperparams(optax.sgd)
    parts: Any = {"slow": rate(learning_rate=0.001), "fast": rate(learning_rate=0.1)}
    return optax.multi_transform(parts, {"w": "slow", "b": "fast"})


def optax_by_hand(tx: Any, steps: int, **extra: Any) -> Any:
    params = arrays()
    state = tx.init(params)
    for x, y in (PAIRS * steps)[:steps]:
        value, grads = jax.value_and_grad(lambda p, x=x, y=y: jnp.mean((linear(p, x) - y) ** 2))(params)
        given = {"value": value} if extra else {}
        updates, state = tx.update(grads, state, params, **given)
        params = optax.apply_updates(params, updates)
    return params


def same(ours: Any, theirs: Any) -> None:
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-6, atol=1e-7, err_msg=path)


@COMPILE
def test_two_injected_rates_stay_two_until_somebody_assigns(compile: bool, tmp_path: Any) -> None:
    learner = learner_of((linear, arrays()), two_rates(), compile=compile)
    learner.fit(1)
    same(learner.export_weights(), optax_by_hand(two_rates(), 3))
    learner.save(tmp_path / "run")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.hyper.learning_rate = 0.01
        learner.hyper.learning_rate = 0.02
    assert [str(w.message).partition(",")[0] for w in caught] == ["the transformation had a learning_rate of 0.1"]
    other = learner_of((linear, arrays()), two_rates(), compile=compile)
    other.load(tmp_path / "run")
    for one in (learner, other):
        one.fit(1)
    expected = optax_by_hand(two_rates(), 6)
    same(other.export_weights(), expected)
    with pytest.raises(AssertionError):
        same(learner.export_weights(), expected)


@COMPILE
@pytest.mark.parametrize("listens", [False, True], ids=["fused", "cut"])
@pytest.mark.parametrize("name", ["plateau", "polyak"])
def test_an_optimizer_that_takes_the_loss_gets_it(name: str, listens: bool, compile: bool) -> None:
    def made() -> Any:
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
        return optax.chain(optax.adam(0.1), plateau) if name == "plateau" else optax.polyak_sgd(0.5)

    def touch(learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 1.0)

    callbacks = [at(lc.BackwardEnd, touch, writes=("step.grads",))] if listens else []
    learner = learner_of((linear, arrays()), made(), callbacks=callbacks, compile=compile)
    learner.fit(3)
    same(learner.export_weights(), optax_by_hand(made(), 9, value=True))


def test_each_optimizer_gets_the_loss_of_its_own_gradient() -> None:
    class Both(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            first, second = learner.params.a, learner.params.b
            one = learner.gradient(lambda: learner.xp.mean(learner.model.a(state.xs) ** 2), wrt=first)
            two = learner.gradient(lambda: learner.xp.mean((learner.model.b(state.xs) - 3.0) ** 2), wrt=second)
            learner.update(one, first)
            learner.update(two, second)

    models = {"a": (linear, arrays()), "b": (linear, arrays())}
    learner = learner_of(models, {"a": optax.polyak_sgd(), "b": optax.polyak_sgd()}, phases=[Both()])
    learner.fit(1)
    for name, target in (("a", 0.0), ("b", 3.0)):
        tx = optax.polyak_sgd()
        params: Any = arrays()
        state = tx.init(params)
        for x, _ in PAIRS:

            def loss(p: Any, x: Any = x, target: float = target) -> Any:
                return jnp.mean((linear(p, x) - target) ** 2)

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
        same({path: learner.export_weights()[f"{name}.{path}"] for path in params}, params)


def test_an_optimizer_that_takes_more_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"value_fn.*line search.*scale_by_polyak"):
        learner_of((linear, arrays()), optax.lbfgs())


def test_an_update_without_a_loss_says_so() -> None:
    learner = learner_of((linear, arrays()), optax.polyak_sgd())
    with pytest.raises(OptimizerError, match=r"set state\.loss"):
        learner.update(jax.tree.map(jnp.ones_like, learner.params.value))


# -- models -----------------------------------------------------------------------------------------------------------


class Linen(nn.Module):
    def setup(self) -> None:
        self.hidden, self.norm, self.out = nn.Dense(4), nn.BatchNorm(momentum=0.9), nn.Dense(2)
        self.drop = nn.Dropout(0.5)

    def encode(self, x: Any, train: bool) -> Any:
        return self.norm(self.hidden(x), use_running_average=not train)

    def __call__(self, x: Any, train: bool = False) -> Any:
        y = self.encode(x, train)
        self.sow("intermediates", "code", y)
        return self.out(self.drop(y, deterministic=not train))


def linen() -> tuple[Any, Any]:
    module = Linen()
    return module, {name: value for name, value in module.init(jax.random.key(0), X).items() if name != "intermediates"}


def test_a_bound_apply_of_linen_is_its_module() -> None:
    module, variables = linen()
    weights = []
    for model in ((module, variables), (module.apply, variables)):
        learner = learner_of(model)
        learner.fit(1)
        weights.append(learner.export_weights())
        assert set(learner.buffers.names) == {"batch_stats.norm.mean", "batch_stats.norm.var"}
    for path, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][path], value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m, v: (partial(m.apply, train=True), v), r"partial of module\.apply: write \(module, variables\)"),
        (lambda m, v: (lambda p, x: m.apply(p, x), v), r"all variables of a linen module.*\(module, variables\)"),
        (lambda m, v: (m, v, "dropout"), "names of the random streams"),
        (lambda m, v: (m, v, {"batch_stats": {}}), "names of the random streams"),
    ],
)
def test_variables_of_linen_in_the_wrong_place_are_refused(make: Any, said: str) -> None:
    model = make(*linen())
    assert not Backend.recognises(model)
    with pytest.raises(UnknownModelError, match=said):
        learner_of(model)


def test_a_train_state_of_flax_says_what_to_write() -> None:
    from flax.training.train_state import TrainState

    module, variables = linen()
    create: Any = TrainState.create
    state = create(apply_fn=module.apply, params=variables["params"], tx=optax.sgd(0.1))
    with pytest.raises(UnknownModelError, match=r"optimizer=state\.tx"):
        learner_of(state, backend="jax")


def test_a_call_of_linen_may_ask_for_more_collections_and_give_streams() -> None:
    module, variables = linen()
    learner = learner_of((module, variables))
    y, found = learner.model(X, mutable=["intermediates"])
    np.testing.assert_allclose(y, module.apply(variables, X), rtol=1e-6)
    np.testing.assert_allclose(found["intermediates"]["code"][0], module.apply(variables, X, False, method="encode"))
    key = jax.random.key(5)
    one, two = (learner.model(X, training=True, update_state=False, rngs={"dropout": key}) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    expected, _ = module.apply(variables, X, True, rngs={"dropout": key}, mutable=["batch_stats"])
    np.testing.assert_allclose(one, expected, rtol=1e-6)


def test_a_stream_that_has_no_name_says_where_to_name_it() -> None:
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(2)(x) + jax.random.normal(self.make_rng("noise"), (2,))

    module = Noisy()
    learner = learner_of((module, module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, X)))
    with pytest.raises(Exception, match="noise") as caught:
        learner.fit(1)
    assert any('(module, variables, ("dropout", "noise"))' in note for note in caught.value.__notes__)


@pytest.mark.parametrize("with_state", [False, True])
def test_functions_of_haiku_without_random_numbers(with_state: bool) -> None:
    transform: Any = hk.transform_with_state if with_state else hk.transform
    transformed: Any = hk.without_apply_rng(transform(lambda x, is_training: hk.Linear(2)(x)))
    made = transformed.init(jax.random.key(0), X, True)
    parts = made if with_state else (made,)
    learner = learner_of((transformed, *parts))
    expected = transformed.apply(*parts, X, False)
    np.testing.assert_allclose(learner.predict(X), expected[0] if with_state else expected, rtol=1e-6)
    assert learner.fit(1).status == "completed"


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self) -> None:
        first, second = jax.random.split(jax.random.key(0))
        self.hidden, self.out = eqx.nn.Linear(3, 4, key=first), eqx.nn.Linear(4, 2, key=second)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", momentum=0.9, mode="batch")

    def encode(self, x: Any, state: Any) -> Any:
        norm = jax.vmap(self.norm, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return norm(jax.vmap(self.hidden)(x), state)

    def head(self, x: Any) -> Any:
        return jax.vmap(self.out)(x)

    def __call__(self, x: Any, state: Any) -> Any:
        x, state = self.encode(x, state)
        return self.head(x), state


class Linen2(Linen):
    def head(self, x: Any) -> Any:
        return self.out(x)

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.head(self.encode(x, train))


class Nnx2(Dense):
    def head(self, x: Any) -> Any:
        return self.out(x)


def linen2() -> Any:
    module = Linen2()
    return module, module.init(jax.random.key(0), X)


WITH_METHODS: dict[str, Any] = {
    "nnx": lambda: Nnx2(nnx.Rngs(0)),
    "linen": linen2,
    "equinox": lambda: eqx.nn.make_with_state(Equinox)(),
}


@COMPILE
@pytest.mark.parametrize("name", WITH_METHODS)
def test_other_methods_are_called_by_their_names_and_differentiated(name: str, compile: bool) -> None:
    class ByParts(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                state.loss = learner.loss_fn(learner.model.head(learner.model.encode(state.xs)), state.ys)
                return state.loss

            learner.minimize(objective)

    whole = learner_of(WITH_METHODS[name](), compile=compile)
    parts = learner_of(WITH_METHODS[name](), compile=compile, phases=[ByParts()])
    named = learner_of({"net": WITH_METHODS[name]()}, compile=compile)
    for learner in (whole, parts):
        learner.fit(2)
    for path, value in whole.export_weights().items():
        np.testing.assert_allclose(parts.export_weights()[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(named.model.net.head(named.model.encode(X)), named.model.net(X), rtol=1e-5)
    with pytest.raises(AttributeError, match="decode"):
        whole.model.decode(X)
    with pytest.raises(AttributeError, match="decode"):
        named.model.net.decode(X)


@COMPILE
@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_the_native_model_is_differentiated_in_a_body(name: str, compile: bool) -> None:
    class Both(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                native = learner.model.native
                module = native[0] if isinstance(native, tuple) else native
                state.loss = learner.xp.mean(module.head(state.xs) ** 2)
                return state.loss

            state.norm = learner.tree.global_norm(learner.gradient(objective))

    learner = learner_of(WITH_METHODS[name](), phases=[Both()], compile=compile)
    x = np.ones((5, 4), np.float32)
    found = learner.run_step(learner.phases[0], (x, Y), reads=("step.norm",)).norm
    weights = learner.export_weights()
    w = weights["out.kernel"] if name == "nnx" else weights["out.weight"].T
    y = x @ w + weights["out.bias"]
    expected = np.sqrt(((x.T @ (2 * y / y.size)) ** 2).sum() + ((2 * y / y.size).sum(0) ** 2).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_handler_in_an_objective_sees_the_native_model_with_values() -> None:
    seen: list[Any] = []
    for model in (Nnx2(nnx.Rngs(0)), eqx.nn.make_with_state(Equinox)()):
        look = at(lc.LossBegin, lambda learner, _: seen.append(learner.model.native), reads=("model",))
        learner_of(model, callbacks=[look], compile=False).fit(1)
    for native in seen:
        leaves = jax.tree.leaves(native)
        assert not any(isinstance(leaf, Tracer) for leaf in leaves)


# -- two models, one array --------------------------------------------------------------------------------------------


class Reader(nnx.Module):
    def __init__(self, encoder: Any, rngs: nnx.Rngs) -> None:
        self.encoder, self.out = encoder, nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.encoder(x))


def test_a_part_that_two_modules_of_nnx_share_is_refused() -> None:
    encoder = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    first, second = Reader(encoder, nnx.Rngs(1)), Reader(encoder, nnx.Rngs(2))
    with pytest.raises(UnknownModelError, match=r"'a\.encoder\.bias' and 'b\.encoder\.bias' are one variable"):
        learner_of({"a": first, "b": second})
    with pytest.raises(UnknownModelError, match=r"nnx\.clone"):
        learner_of({"online": first, "target": first}, {"online": lc.SGD(0.1)})
    learner_of({"online": first, "target": nnx.clone(first)}, {"online": lc.SGD(0.1)})


@pytest.mark.parametrize(
    "make", [lambda: (linear, arrays()), linen, lambda: eqx.nn.Linear(3, 2, key=jax.random.key(0))]
)
def test_arrays_that_two_models_share_are_not_trained_twice(make: Any) -> None:
    model = make()
    with pytest.raises(OptimizerError, match=r"are one array.*jnp\.copy"):
        learner_of({"a": model, "b": model})
    learner = learner_of({"online": model, "target": model}, {"online": lc.SGD(0.1)})  # which begins equal and rests
    assert all(path.startswith("target.") for path in learner.frozen)
    learner_of({"a": model, "b": make()})


# -- what no objective reaches ----------------------------------------------------------------------------------------


@COMPILE
def test_what_no_objective_reaches_is_known(compile: bool) -> None:
    params = {**arrays(), "idle": jnp.ones(2), "late": jnp.ones(2)}
    learner = learner_of((linear, params), compile=compile)
    learner.run_step(lc.TrainingPhase(), PAIRS[0])
    unreached = learner.backend.unreached  # type: ignore[attr-defined]
    assert set(unreached()) == {"idle", "late"}
    learner.gradient(lambda: learner.xp.sum(learner.model.native[1]["late"] ** 2))
    assert unreached() == ("idle",)


def test_an_equinox_method_that_is_overridden_takes_its_own_keywords() -> None:
    class Base(eqx.Module):
        weight: Any

        def __call__(self, x: Any) -> Any:
            return self.encode(x)

        def encode(self, x: Any) -> Any:
            return x * self.weight

    class Noisy(Base):
        def encode(self, x: Any, key: Any = None) -> Any:
            return super().encode(x) if key is None else super().encode(x) + jax.random.normal(key, x.shape)

    learner = lc.Learner(Noisy(jnp.ones(2)), lc.losses.mse, default_callbacks=False)

    class Encodes(lc.TrainingPhase):
        reads = ("step.code",)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.code = learner.model.encode(state.xs)

    code = learner.run_step(Encodes(), {"xs": np.zeros((3, 2), "f4")}).code
    assert np.abs(code).min() > 0  # it got a key
