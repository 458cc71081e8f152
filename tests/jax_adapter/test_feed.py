"""Batches from the host: the programs of JAX take them as they are, and whoever looks at them sees arrays of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import loopcore as lc

XS = np.random.default_rng(0).normal(size=(32, 4))  # float64: the parameters' dtype is float32
YS = np.random.default_rng(1).integers(3, size=32)


def forward(params: Any, x: Any) -> Any:
    return x @ params["w"]


def make(callbacks: Any = (), **options: Any) -> lc.Learner:
    settings: dict[str, Any] = {"callbacks": list(callbacks), "default_callbacks": False, **options}
    return lc.Learner((forward, {"w": jnp.ones((4, 3))}), lc.losses.cross_entropy, lc.Adam(0.1), **settings)


def on_host() -> list[Any]:
    return [(XS[k : k + 8], YS[k : k + 8]) for k in range(0, 32, 8)]


def on_device() -> list[Any]:
    return [(jnp.asarray(xs, jnp.float32), jnp.asarray(ys, jnp.int32)) for xs, ys in on_host()]


@pytest.mark.parametrize("cut", [False, True])
def test_the_same_bits_and_one_program(cut: bool) -> None:
    def writer() -> list[Any]:
        return [lc.FunctionCallback(lambda learner, phase: None, lc.BackwardEnd, writes=("step.grads",))] * cut

    results = []
    for batches in (on_host(), on_device()):
        learner = make(writer(), data=(batches, None))
        learner.fit(3)
        results.append(learner.export_weights()["w"])
        assert learner.backend.traces == 1 + cut  # type: ignore[attr-defined]
    np.testing.assert_array_equal(results[0], results[1])


def test_a_batch_on_the_host_after_one_on_the_device_is_the_same_program() -> None:
    learner, phase = make(), lc.TrainingPhase()
    for batch in (on_host()[0], on_device()[0], on_host()[1]):
        learner.run_step(phase, batch)
    assert learner.backend.traces == 1  # type: ignore[attr-defined]


def test_no_array_is_made_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, phase = make(), lc.TrainingPhase()
    learner.run_step(phase, on_host()[0])
    made: list[Any] = []
    backend: Any = learner.backend
    place = backend.place

    def noted(tree: Any) -> Any:
        made.append(tree)
        return place(tree)

    monkeypatch.setattr(backend, "place", noted)
    learner.run_step(phase, on_host()[1])
    assert not made
    state = learner.run_step(phase, on_host()[1], reads=("step.xs",))
    assert len(made) == 1 and isinstance(state.xs, jax.Array) and state.xs.dtype == jnp.float32


def test_a_loader_may_reuse_its_buffers() -> None:
    def reusing() -> Any:
        xs, ys = np.empty((8, 4)), np.empty(8, np.int64)
        for one in on_host() * 20:
            xs[:], ys[:] = one
            yield xs, ys

    first, second = make(data=(on_host() * 20, None)), make(data=(reusing(), None))
    for learner in (first, second):
        learner.fit(1)
    np.testing.assert_array_equal(first.export_weights()["w"], second.export_weights()["w"])


@pytest.mark.parametrize("event", [lc.StepBegin, lc.LossBegin, lc.BackwardEnd, lc.StepEnd])
@pytest.mark.parametrize("writes", [(), ("step.loss",)], ids=["looks", "cuts"])
def test_handlers_see_arrays_of_jax(event: Any, writes: Any) -> None:
    seen: list[Any] = []

    def look(learner: Any, phase: Any) -> None:
        assert learner.step.xs is learner.step.xs
        seen.append((learner.step.xs, learner.step.ys))

    listener = lc.FunctionCallback(look, event, reads=("step.xs", "step.ys"), writes=writes)
    learner = make([listener], data=(on_host(), None))
    learner.fit(1)
    assert all(isinstance(value, jax.Array) for pair in seen for value in pair) and len(seen) == 4
    np.testing.assert_array_equal(np.concatenate([xs for xs, _ in seen]), XS.astype("float32"))
    assert {(str(xs.dtype), str(ys.dtype)) for xs, ys in seen} == {("float32", "int32")}
    reference = make(data=(on_host(), None))
    reference.fit(1)
    np.testing.assert_allclose(learner.export_weights()["w"], reference.export_weights()["w"], rtol=1e-5)


def test_a_handler_writes_a_part_of_the_batch() -> None:
    def double(learner: Any, phase: Any) -> None:
        learner.step.xs = learner.step.xs.at[0].set(0.0)

    learner = make([lc.FunctionCallback(double, lc.StepBegin, writes=("step.xs",))])
    state = learner.run_step(lc.TrainingPhase(), on_host()[0], reads=("step.xs",))
    np.testing.assert_array_equal(state.xs[0], 0.0)
    np.testing.assert_array_equal(state.xs[1:], XS[1:8].astype("float32"))


@pytest.mark.parametrize("options", [{"compile": False}, {}])
def test_a_body_sees_arrays_of_jax(options: Any) -> None:
    class Of(lc.TrainingPhase):
        carries = ("last",)

        def start(self, learner: Any, state: Any) -> None:
            state.last = state.xs.at[0].set(0.0)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            assert isinstance(state.xs, jax.Array)
            super().step(learner, handle, state)
            state.last = state.xs.at[0].add(state.last[1])

    make(data=(on_host(), None), phases=[Of()], **options).fit(1)


def test_draws_of_the_host_run_the_body_with_arrays_of_jax() -> None:
    class Of(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            assert isinstance(state.xs, jax.Array)
            super().step(learner, handle, state)

    with lc.testing.same_random():
        make(data=(on_host(), None), phases=[Of()]).fit(1)


def test_odd_parts() -> None:
    class Of(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.mean(state.deep["a"][0]) + state.big + state.small

    batch: dict[str, Any] = {
        "deep": {"a": [np.ones(3, ">f8")], "names": ["x"]},
        "big": np.array(2, ">i8"),
        "small": np.float64(3),
        "text": np.array(["a"]),
        "flags": np.array([True]),
    }
    state = make().run_step(Of(), batch, reads=("step",))
    assert float(state.loss) == 6
    assert isinstance(state.big, jax.Array) and isinstance(state.flags, jax.Array) and state.text is not None
    assert isinstance(state.deep["a"][0], jax.Array) and state.big.dtype == jnp.int32
