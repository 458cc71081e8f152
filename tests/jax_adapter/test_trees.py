"""Trees of classes that the user registered with JAX, wherever a value may be, in every plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

import loopcore as lc
from loopcore.errors import AccessError, CarryError, TraceError

XS = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
YS = (XS @ np.array([[1.0], [2.0], [3.0], [4.0]])).astype("float32")


@flax.struct.dataclass
class Struct:
    a: Any
    b: Any


class Module(eqx.Module):
    a: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    a: Any
    b: Any


@jax.tree_util.register_pytree_node_class
class Node:
    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b

    def tree_flatten(self) -> Any:
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _: Any, leaves: Any) -> Any:
        return cls(*leaves)


class Pair(NamedTuple):
    a: Any
    b: Any


class Cut(lc.Callback):
    """Cuts the step in and behind its objective."""

    writes = ("shared.cuts",)

    def setup(self, learner: Any) -> None:
        learner.shared.cuts = 0

    @lc.on(lc.LossBegin, lc.AbstractTrainingPhase)
    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
    def cut(self, learner: Any, phase: Any) -> None:
        learner.shared.cuts += 1


class Look(lc.Callback):
    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
    def look(self, learner: Any, phase: Any) -> None:
        pass


KINDS = (Struct, Module, Data, Node, Pair)
PLANS: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "fused": (list, "auto"),
    "look": (lambda: [Look()], "auto"),
    "split": (lambda: [Cut()], "auto"),
    "eager": (lambda: [Cut()], False),
}


def linear(params: Any, x: Any) -> Any:
    return x @ params["w"]


def make(plan: str = "fused", *more: Any, model: Any = None, data: Any = None, **options: Any) -> lc.Learner:
    callbacks, compile = PLANS[plan]
    settings: dict[str, Any] = {"callbacks": [*callbacks(), *more], "default_callbacks": False, "compile": compile}
    batches = [(XS[k : k + 8], YS[k : k + 8]) for k in range(0, 32, 8)] if data is None else data
    weights = {"w": jnp.zeros((4, 1))}
    return lc.Learner(model or (linear, weights), lc.losses.mse, lc.SGD(0.01), (batches, None), **settings | options)


def weights_of(learner: lc.Learner) -> Any:
    learner.fit(2)
    return np.concatenate([np.ravel(value) for value in learner.export_weights().values()])


PLAIN = weights_of(make())


def check(learner: lc.Learner, first: Any = PLAIN, programs: int = 1) -> None:
    np.testing.assert_allclose(weights_of(learner), first, rtol=1e-5)
    kept = [vars(learner.shared), vars(learner.step)]
    assert not any(isinstance(leaf, Tracer) for leaf in jax.tree_util.tree_leaves(kept))
    if learner.compile != False:  # noqa: E712 - "auto"
        cuts = getattr(learner.shared, "cuts", 0) and 2
        assert learner.backend.traces <= programs * (1 + cuts)  # type: ignore[attr-defined]


every_plan = pytest.mark.parametrize("plan", PLANS)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_plan
@every_kind
def test_a_batch(kind: Any, plan: str) -> None:
    class Of(lc.TrainingPhase):
        def unpack(self, batch: Any) -> Any:
            return {"batch": batch}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                y_pred = learner.model(state.batch.a)
                handle(lc.LossBegin())
                state.loss = learner.loss_fn(y_pred, state.batch.b)
                return state.loss

            learner.minimize(objective)

    batches = [kind(XS[k : k + 8], YS[k : k + 8]) for k in range(0, 32, 8)]
    check(make(plan, phases=[Of()], data=batches))


@every_kind
def test_the_weight_of_a_batch_is_its_length(kind: Any) -> None:
    class Of(lc.ValidationPhase):
        def unpack(self, batch: Any) -> Any:
            return {"batch": batch}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.mean(state.batch.a)

    data = [kind(np.full((n, 1), float(n), "float32"), np.zeros(n)) for n in (1, 3)]
    options: dict[str, Any] = {"default_callbacks": True, "phases": [Of()]}
    learner = make("fused", lc.MetricsPrinter(quiet=True), lc.ProgressPrinter(quiet=True), data=[], **options)
    learner.data["validation"] = data
    learner.fit(1)
    assert learner.history["val_loss"] == [2.5]


@every_plan
@every_kind
def test_a_value_of_the_step(kind: Any, plan: str) -> None:
    class Keeps(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.kept = kind(state.xs.sum(), {"c": state.ys})
            super().step(learner, handle, state)

    learner = make(plan, phases=[Keeps()], reads=("step.kept",))
    check(learner)
    assert isinstance(learner.step.kept, kind)
    np.testing.assert_allclose(np.asarray(learner.step.kept.a), XS[24:].sum(), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(learner.step.kept.b["c"]), YS[24:])


@every_plan
@every_kind
def test_what_a_model_returns(kind: Any, plan: str) -> None:
    def forward(params: Any, x: Any) -> Any:
        return kind(x @ params["w"], x)

    class Of(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                state.out = learner.model(state.xs)
                handle(lc.LossBegin())
                state.loss = learner.loss_fn(state.out.a, state.ys)
                return state.loss

            learner.minimize(objective)

    class Reads(lc.Callback):
        reads = ("step.out",)

        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
        def read(self, learner: Any, phase: Any) -> None:
            assert np.asarray(learner.step.out.a).shape == (8, 1)

    check(make(plan, Reads(), model=(forward, {"w": jnp.zeros((4, 1))}), phases=[Of()]))


@every_kind
def test_what_predict_gives(kind: Any) -> None:
    def forward(params: Any, x: Any) -> Any:
        return kind(x @ params["w"], x)

    found = make(model=(forward, {"w": jnp.ones((4, 1))})).predict([XS[:8], XS[8:]])
    assert isinstance(found, kind)
    np.testing.assert_allclose(found.a, XS.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


@every_plan
@every_kind
def test_carried(kind: Any, plan: str) -> None:
    class Carries(lc.TrainingPhase):
        carries = ("sums",)

        def start(self, learner: Any, state: Any) -> None:
            state.sums = kind(jnp.zeros(()), jnp.zeros((2,)))

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.sums = kind(state.sums.a + learner.xp.sum(state.ys), state.sums.b + 1)

    learner = make(plan, phases=[Carries()])
    check(learner)
    np.testing.assert_allclose(float(learner.step.sums.a), YS.sum(), rtol=1e-5)
    np.testing.assert_array_equal(learner.step.sums.b, [4.0, 4.0])


def test_a_carry_of_another_structure_is_refused() -> None:
    class Carries(lc.TrainingPhase):
        carries = ("sums",)

        def start(self, learner: Any, state: Any) -> None:
            state.sums = Struct(jnp.zeros(()), jnp.zeros(()))

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.sums = Module(state.sums.a, state.sums.b)

    with pytest.raises(CarryError, match=r"carries 'sums', but its structure changed"):
        make(phases=[Carries()]).fit(1)


@every_plan
@every_kind
def test_shared(kind: Any, plan: str) -> None:
    class Counts(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            learner.shared.seen = kind(learner.shared.seen.a + 1.0, learner.shared.seen.b)

    learner = make(plan, phases=[Counts()])
    learner.shared.seen = kind(jnp.zeros(()), [jnp.ones(2)])
    check(learner)
    assert float(learner.shared.seen.a) == 8


@every_plan
@every_kind
def test_carried_by_a_callback(kind: Any, plan: str) -> None:
    class Counts(lc.Callback):
        writes = carries = ("shared.seen",)

        def setup(self, learner: Any) -> None:
            learner.shared.seen = kind(jnp.zeros(()), {"c": jnp.zeros(40)})

        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase, traced=True)
        def count(self, learner: Any, phase: Any) -> None:
            seen = learner.shared.seen
            learner.shared.seen = kind(seen.a + 1.0, {"c": seen.b["c"] + 2.0})

    learner = make(plan, Counts())
    check(learner)
    assert float(learner.shared.seen.a) == 8 and float(learner.shared.seen.b["c"][0]) == 16


class Net(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        return jax.vmap(self.layer)(x)


def net() -> Any:
    return Net(eqx.nn.Linear(4, 1, key=jax.random.key(0)))


@every_plan
def test_gradients_that_are_a_module(plan: str) -> None:
    norms: list[float] = []

    class Halves(lc.Callback):
        writes = ("step.grads",)

        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
        def halve(self, learner: Any, phase: Any) -> None:
            learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)

    class Reads(lc.Callback):
        reads = ("step.grads",)

        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
        @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
        def read(self, learner: Any, phase: Any) -> None:
            assert isinstance(learner.step.grads, Net)
            norms.append(float(learner.tree.global_norm(learner.step.grads)))

    averaged, logger = lc.AveragedWeights(0.9), lc.loggers.MemoryLogger()
    more = [Halves(), Reads(), averaged, lc.LogHistograms(logger, gradients=True), lc.Recorder()]
    reference = make("eager", *more, model=net())
    first = weights_of(reference)
    half, norms[:] = list(norms), []
    more = [Halves(), Reads(), lc.AveragedWeights(0.9), lc.LogHistograms(logger, gradients=True), lc.Recorder()]
    learner = make(plan, *more, model=net())
    np.testing.assert_allclose(weights_of(learner), first, rtol=1e-5)
    np.testing.assert_allclose(norms, half, rtol=1e-5)


@every_plan
def test_a_module_carried(plan: str) -> None:
    class Carries(lc.TrainingPhase):
        carries = ("mean",)

        def start(self, learner: Any, state: Any) -> None:
            state.mean = learner.tree.zeros_like(learner.params.value)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.mean = learner.tree.lerp(state.mean, learner.params.value, 0.5)

    learner = make(plan, model=net(), phases=[Carries()])
    check(learner, weights_of(make("eager", model=net())))


@pytest.mark.parametrize("plan", ["fused", "split"])
@pytest.mark.parametrize("call", ["vmap", "product"])
def test_modules_at_a_cut(call: str, plan: str) -> None:
    class Product(Net):
        def __call__(self, x: Any) -> Any:
            return x @ self.layer.weight.T + self.layer.bias

    made = {"vmap": Net, "product": Product}[call](net().layer)
    check(make(plan, model=made), weights_of(make("eager", model=made)))


# -- what a handler changes


@every_kind
def test_a_handler_gets_a_copy_and_writes_what_it_declares(kind: Any) -> None:
    class Keeps(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.kept = kind([state.xs.sum()], [])
            super().step(learner, handle, state)

    def change(learner: Any, phase: Any) -> None:
        learner.step.kept.a.append(jnp.zeros(()))

    learner = make("fused", lc.FunctionCallback(change, lc.StepEnd, reads=("step.kept",)), phases=[Keeps()])
    with pytest.raises(AccessError, match=r"changes step\.kept in place"):
        learner.fit(1)
    learner = make("fused", lc.FunctionCallback(change, lc.StepEnd, writes=("step.kept",)), phases=[Keeps()])
    learner.fit(1)
    assert len(learner.step.kept.a) == 2 and isinstance(learner.step.kept, kind)


def test_an_array_in_a_tree_that_a_body_closes_over() -> None:
    learner, held = make(), Struct(jnp.ones(3), None)

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(held.a)

    with pytest.raises(TraceError, match=r"uses the array 'held' from outside"):
        lc.run_step(body, learner, lc.ValidationPhase())


# -- trees with something else in them


@every_plan
def test_a_tree_with_something_else_in_it_hands_its_arrays_on(plan: str) -> None:
    class Keeps(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            state.kept = {"loss": state.loss, "name": "first", "more": Struct(state.xs, None)}

    learner = make(plan, phases=[Keeps()], reads=("step.kept",))
    check(learner)
    assert learner.step.kept["name"] == "first"
    np.testing.assert_array_equal(learner.step.kept["more"].a, XS[24:])
