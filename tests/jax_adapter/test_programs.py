"""The JAX adapter: compiled programs, what they trace, donate and refuse."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopcore as lc
from loopcore.errors import TraceError
from tests.jax_adapter.calls import LIBRARIES, MODELS, X, Y, bound, dense, dense_params, learner_of, program


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


def test_a_look_at_a_value_in_a_program_is_an_error_the_core_knows() -> None:
    backend = bound(lc.SGD(0.1))
    looks: list[Callable[[Any], Any]] = [bool, float, np.asarray, lambda x: [1, 2][x.astype(int)]]
    for look in looks:
        with pytest.raises(backend.tracing_errors):
            backend.compile(lambda x, look=look: (x, look(x)))(jnp.asarray(1.0))
    _, kept = backend.compile(lambda x: (x, x))(jnp.asarray(1.0))
    with pytest.raises(backend.leak_errors):
        _ = kept + 1


def test_a_mask_as_an_index_in_a_compiled_step_names_the_line() -> None:
    class Picks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.sum(state.xs[state.xs > 0])

    learner = lc.Learner((lambda params, x: x, {"w": jnp.ones(1)}), lc.losses.mse, default_callbacks=False)
    with pytest.raises(TraceError, match=r"test_programs\.py:\d+: state\.loss = .*learner\.xp\.where"):
        learner.run_step(Picks(), {"xs": X})
