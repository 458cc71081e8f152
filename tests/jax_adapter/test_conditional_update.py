"""Updates that an array decides on: what there was stays to the bit, and an update is what it would be anyway."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopcore as lc
from loopcore_jax.conditional_update import update_if

NOW = {"w": jnp.arange(3.0), "b": jnp.full(3, 7.0), "n": jnp.int32(4), "key": jax.random.key(1)}


def mixed(now: dict[str, Any]) -> dict[str, Any]:
    """Results that are computed, that are another input, that stay, the same twice, and that are a constant."""
    w = jnp.sin(now["w"]) * 2
    return {"w": w, "b": w, "n": now["n"], "key": jax.random.fold_in(now["key"], 1)}


def turned(now: dict[str, Any]) -> dict[str, Any]:
    return {**now, "w": now["b"], "b": now["w"], "n": jnp.int32(0)}


def plain(tree: Any) -> Any:
    return {name: np.asarray(jax.random.key_data(value) if name == "key" else value) for name, value in tree.items()}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("update", [mixed, turned])
def test_what_is_chosen_is_all_new_or_all_old(update: Any, compiled: bool) -> None:
    def call(holds: Any, now: Any) -> Any:
        return update_if(holds, update, now)

    run = jax.jit(call) if compiled else call
    wanted = jax.jit(update) if compiled else update
    jax.tree.map(np.testing.assert_array_equal, plain(run(jnp.bool_(True), NOW)), plain(wanted(NOW)))
    jax.tree.map(np.testing.assert_array_equal, plain(run(jnp.bool_(False), NOW)), plain(NOW))


TRANSFORMATIONS = {
    "adamw": optax.adamw(0.1),
    "momentum": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1)),
    "several steps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "if finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "schedule": optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.0, 4)),
    "masked": optax.masked(optax.adam(0.1), {"w": True, "b": False}),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_what_optax_computes_is_chosen_as_it_is(name: str) -> None:
    tx = TRANSFORMATIONS[name]
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    grads = {"w": jnp.full((3, 2), 0.5), "b": jnp.arange(2.0)}

    def update(now: Any) -> Any:
        updates, state = tx.update(grads, now[1], now[0])
        return optax.apply_updates(now[0], updates), state

    run = jax.jit(lambda holds, now: update_if(holds, update, now))
    now = params, tx.init(params)
    for _ in range(3):
        new = jax.jit(update)(now)
        kept, taken = run(jnp.bool_(False), now), run(jnp.bool_(True), now)
        for found, wanted, exact in ((kept, now, 0.0), (taken, new, 1e-6)):
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
            for one, other in pairs:
                if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                    np.testing.assert_allclose(one, other, rtol=exact)
        now = new


def test_each_value_is_chosen_once_where_it_is_computed() -> None:
    tx = optax.adam(0.1)
    params = {"w": jnp.ones((3, 2))}
    grads = {"w": jnp.full((3, 2), 0.5)}

    def update(now: Any) -> Any:
        updates, state = tx.update(grads, now[1], now[0])
        return optax.apply_updates(now[0], updates), state

    now = params, tx.init(params)
    jaxpr = jax.make_jaxpr(lambda holds: update_if(holds, update, now))(True).jaxpr
    equations = jaxpr.eqns
    choices = [one for one in equations if one.primitive.name == "select_n"]
    assert len(choices) == len(jax.tree.leaves(now)) == 4
    assert len({one.invars[0] for one in choices}) == 1  # by one condition, that is computed once
    used = {var for one in equations for var in one.invars if not hasattr(var, "val")}
    assert sum(one.outvars[0] in used for one in choices) == 3  # what follows reads count and moments that were chosen


def test_a_state_that_changes_its_dtype_is_named() -> None:
    def update(grads: Any, count: Any, params: Any = None) -> Any:
        return grads, count + 0.5

    transformation: Any = optax.GradientTransformation
    counting = transformation(lambda params: jnp.int32(0), update)
    model = (lambda params, x: x @ params["w"], {"w": jnp.ones((3, 2))})
    learner = lc.Learner(model, lc.losses.mse, optax.chain(counting, optax.sgd(0.1)))
    batch = np.ones((2, 3), "float32"), np.ones((2, 2), "float32")
    with pytest.raises(lc.errors.OptimizerError, match=r"makes float32\[\] of a state that was int32\[\]"):
        learner.run_step(lc.TrainingPhase(), batch)


def test_steps_that_optax_accumulates_are_a_transformation_too() -> None:
    model = (lambda params, x: x @ params["w"], {"w": jnp.ones((3, 2))})
    batch = np.ones((2, 3), "float32"), np.ones((2, 2), "float32")
    learner = lc.Learner(model, lc.losses.mse, optax.MultiSteps(optax.sgd(0.1), 2), default_callbacks=False)
    moved = []
    for _ in range(4):
        before = learner.export_weights()["w"]
        learner.run_step(lc.TrainingPhase(), batch)
        moved.append(not np.array_equal(learner.export_weights()["w"], before))
    assert moved == [False, True, False, True]


def test_a_step_that_only_accumulates_has_no_update_in_its_program_whoever_else_decides() -> None:
    batches = [(np.ones((2, 3), "float32"), np.ones((2, 2), "float32"))] * 3
    found: list[Any] = []
    look = lc.FunctionCallback(
        lambda learner, phase: found.append(learner.step.updated), lc.StepEnd, reads=("step.updated",)
    )
    model = (lambda params, x: x @ params["w"], {"w": jnp.ones((3, 2))})
    callbacks = [lc.GradientAccumulation(3), lc.ProgressPrinter(quiet=True), look]
    learner = lc.Learner(model, lc.losses.mse, lc.SGD(0.1), data=(batches, None), callbacks=callbacks)
    assert any(isinstance(one, lc.StopOnNaNLoss) for one in learner.callbacks)
    learner.fit(1)
    assert [one if isinstance(one, bool) else bool(one) for one in found] == [False, False, True]
    assert [type(one) is bool for one in found] == [True, True, False]
