"""The JAX adapter: random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import loopcore as lc
from loopcore.errors import TraceError
from loopcore_jax.random import typed
from tests.jax_adapter.calls import KEY, X, bound


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
