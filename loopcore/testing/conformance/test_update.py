"""Updates that do not happen, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, At, batches, make_learner, mlp_weights, run, train
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(6)
W = mlp_weights()


class When(lc.TrainingPhase):
    """Updates when the first input is positive, as an array says."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.mean(state.xs)
        grads = learner.gradient(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        learner.update(grads, when=state.xs[0, 0] > 0)


def test_an_array_decides_on_each_update(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), optimizer=lc.Adam(0.01))
    weights, decisions = dict(W), []
    optimizer = oracle.Optimizer(oracle.adam(0.01), weights)
    for x, y in PAIRS:
        state = learner.run_step(When(), (x, y))
        decisions.append(bool(learner.to_host(state.updated)))
        if x[0, 0] > 0:
            optimizer.update(oracle.mse_gradient(weights, x, y))
        backend.close(backend.weights(learner), weights)
    assert decisions == [bool(x[0, 0] > 0) for x, _ in PAIRS]
    assert 0 < sum(decisions) < len(PAIRS)


NUMBERS: dict[str, Any] = {
    "a count": lambda learner, xs: learner.xp.sum(learner.xp.astype(xs < 1e9, learner.xp.int32)),
    "minus two": lambda learner, xs: learner.xp.full((), -2, dtype=learner.xp.int32),
    "no count": lambda learner, xs: learner.xp.sum(learner.xp.astype(xs > 1e9, learner.xp.int32)),
    "a draw": lambda learner, xs: learner.random.bernoulli(1.0, ()),
    "another draw": lambda learner, xs: learner.random.bernoulli(0.0, ()),
    "two": lambda learner, xs: 2,
}


class Counted(lc.TrainingPhase):
    """Updates under a condition that is one of `NUMBERS`, not a bool."""

    def __init__(self, number: str) -> None:
        self.number = number

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.mean(state.xs)
        state.grads = learner.gradient(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        handle(lc.BackwardEnd())
        learner.update(state.grads, when=NUMBERS[self.number](learner, state.xs))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_holds_unless_it_is_zero(backend: Subject, number: str) -> None:
    """Even numbers hold too, though their lowest bit is 0, also when joined with the condition of the guard."""
    learner = make_learner(backend.mlp(W), callbacks=[lc.StopOnNaNLoss()])
    state = learner.run_step(Counted(number), PAIRS[0])
    moves = number not in ("no count", "another draw")
    assert bool(learner.to_host(state.updated)) is moves
    assert np.array_equal(backend.weights(learner)["out.bias"], W["out.bias"].astype(backend.dtype)) is not moves


@pytest.mark.parametrize("place", ["when", "apply"])
def test_a_decision_is_one(backend: Subject, place: str) -> None:
    def many(learner: Any, handle: Any, state: Any) -> None:
        grads = learner.gradient(lambda: learner.xp.sum(learner.model(state.xs)))
        if place == "apply":
            state.apply = state.xs[0] > 0
        learner.update(grads, when=state.xs[0] > 0)

    learner = make_learner(backend.mlp(W))
    with pytest.raises(TypeError, match=r"a bool or a 0-d array, not an array of shape \(\d,?\)"):
        run(learner, many, xs=PAIRS[0][0])


@pytest.mark.parametrize("kind", [lc.SGD, lc.Momentum, lc.Adam, lc.AdamW])
def test_a_skipped_update_leaves_weights_and_optimizer_alone(backend: Subject, kind: Any) -> None:
    def skip(learner: Any, handle: Any, state: Any) -> None:
        learner.update(learner.gradient(lambda: learner.xp.sum(learner.model(state.xs))), when=False)

    learner, other = (make_learner(backend.mlp(W), optimizer=kind(0.1)) for _ in range(2))
    train(learner, PAIRS[:2])
    before = backend.weights(learner)
    for _ in range(3):
        assert run(learner, skip, xs=PAIRS[0][0]).updated is False
    for name, value in backend.weights(learner).items():
        np.testing.assert_array_equal(value, before[name])
    train(learner, PAIRS[2:])
    train(other, PAIRS)
    backend.close(backend.weights(learner), backend.weights(other))


class Allow(lc.Callback):
    """Writes what a function of the batch says into ``state.apply``."""

    reads = ("step.xs",)
    writes = ("step.apply",)

    def resolve_conflict(self, other: lc.Callback) -> Any:
        return lc.NO_CONFLICT  # the core joins the conditions by a logical and

    def __init__(self, allow: Any) -> None:
        self.allow = allow

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
    def decide(self, learner: Any, phase: Any) -> None:
        learner.step.apply = self.allow(learner.step.xs)


def test_what_callbacks_and_the_body_say_is_combined_by_and(backend: Subject) -> None:
    callbacks = [Allow(lambda x: x[0, 1] > 0), Allow(lambda x: x[0, 2] > 0), Allow(lambda x: True)]

    class Body(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.grads = learner.gradient(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
            handle(lc.BackwardEnd())
            learner.update(state.grads, when=state.xs[0, 0] > 0)

    learner = make_learner(backend.mlp(W), callbacks=callbacks)
    signs = np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).reshape(3, -1).T
    for number, sign in enumerate(signs):
        x, y = batches(1, seed=number)[0]
        x = np.abs(x) * sign
        before = backend.weights(learner)
        state = learner.run_step(Body(), (x, y))
        is_allowed = bool((sign > 0).all())
        assert bool(learner.to_host(state.updated)) is is_allowed
        slopes = oracle.mse_gradient(before, x, y)
        backend.close(backend.weights(learner), {k: before[k] - 0.1 * slopes[k] * is_allowed for k in before})


def test_a_host_handler_forbids_an_update(backend: Subject) -> None:
    def forbid(learner: Any, phase: Any) -> None:
        learner.step.apply = False

    learner = make_learner(backend.mlp(W), callbacks=[At(lc.BackwardEnd, forbid, only=0, writes=("step.apply",))])
    state = learner.run_step(lc.TrainingPhase(), PAIRS[0])
    assert not learner.to_host(state.updated)
    backend.close(backend.weights(learner), W)
    assert learner.to_host(learner.run_step(lc.TrainingPhase(), PAIRS[0]).updated)


@pytest.mark.parametrize("handler", ["host", "traced"])
@pytest.mark.parametrize("kind", [lc.Momentum, lc.Adam, lc.AdamW])
def test_a_forbidden_update_is_not_counted(backend: Subject, kind: Any, handler: str) -> None:
    """Adam corrects its bias by the number of updates: one too many would show in every later step."""

    def forbid(learner: Any, phase: Any) -> None:
        if float(learner.step.xs[0, 0]) <= 0:
            learner.step.apply = False

    host = At(lc.BackwardEnd, forbid, lc.TrainingPhase, reads=("step.xs",), writes=("step.apply",))
    callback = host if handler == "host" else Allow(lambda x: x[0, 0] > 0)
    learner = make_learner(backend.mlp(W), optimizer=kind(0.1), callbacks=[callback])
    train(learner, PAIRS)
    weights = dict(W)
    rules = {lc.Momentum: oracle.momentum(0.1, 0.9), lc.Adam: oracle.adam(0.1), lc.AdamW: oracle.adam(0.1, 0.01)}
    optimizer = oracle.Optimizer(rules[kind], weights)
    for x, y in PAIRS:
        if x[0, 0] > 0:
            optimizer.update(oracle.mse_gradient(weights, x, y))
    assert 0 < optimizer.updates < len(PAIRS)
    backend.close(backend.weights(learner), weights)


def test_a_host_handler_updates_at_the_end_of_an_epoch(backend: Subject) -> None:
    """Accumulation does so with the gradients of a window that the end of the epoch cut short."""

    class Accumulate(lc.Callback):
        reads = ("step.grads", "params")
        writes = ("step.apply", "params", "optimizer")

        @lc.on(lc.EpochBegin, lc.AbstractTrainingPhase)
        def begin(self, learner: Any, phase: Any) -> None:
            self.sum = learner.tree.zeros_like(learner.params.value)

        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase)
        def add(self, learner: Any, phase: Any) -> None:
            self.sum = learner.tree.add(self.sum, learner.step.grads)
            learner.step.apply = False

        @lc.on(lc.EpochEnd, lc.AbstractTrainingPhase)
        def end(self, learner: Any, phase: Any) -> None:
            learner.update(self.sum)

    learner = make_learner(
        backend.mlp(W), optimizer=lc.Adam(0.1), data=(PAIRS[:3], None), callbacks=[Accumulate()], reads=()
    )
    learner.fit(2)
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.adam(0.1), weights)
    for _ in range(2):
        slopes = [oracle.mse_gradient(weights, x, y) for x, y in PAIRS[:3]]
        optimizer.update({name: np.sum([slope[name] for slope in slopes], axis=0) for name in weights})
    backend.close(backend.weights(learner), weights)


def test_a_step_that_is_over_withholds_nothing(backend: Subject) -> None:
    skip = At(lc.StepBegin, lambda learner, _: setattr(learner.step, "apply", False), writes=("step.apply",))
    learner = make_learner(backend.mlp(W), callbacks=[skip])
    x, y = PAIRS[0]
    learner.run_step(lc.TrainingPhase(), (x, y))
    backend.close(backend.weights(learner), W)
    inputs, targets = learner.backend.convert((x, y))
    learner.minimize(lambda: lc.losses.mse(learner.model(inputs), targets))
    slopes = oracle.mse_gradient(W, x, y)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W})


def test_minimize_tells_handlers_the_gradient_before_it_updates(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys), learner.params.out)

    def double(learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 2.0)

    learner = make_learner(backend.mlp(W), callbacks=[At(lc.BackwardEnd, double, writes=("step.grads",))])
    (x, y), slopes = PAIRS[0], oracle.mse_gradient(W, *PAIRS[0])
    run(learner, body, xs=x, ys=y)
    trained = {name: W[name] - 0.2 * slopes[name] for name in W if name.startswith("out.")}
    backend.close(backend.weights(learner), {**W, **trained})


def test_a_loss_that_is_not_finite_reaches_no_parameter(backend: Subject) -> None:
    bad: list[tuple[Array, Array]] = [PAIRS[0], (PAIRS[1][0] * np.nan, PAIRS[1][1]), PAIRS[2], PAIRS[3]]
    learner = make_learner(backend.mlp(W), data=(bad, None), callbacks=[lc.StopOnNaNLoss()])
    result = learner.fit(1)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
    slopes = oracle.mse_gradient(W, *PAIRS[0])
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W})


def test_updating_a_part_leaves_the_rest_alone(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys), learner.params.out)

    (x, y), learner = PAIRS[0], make_learner(backend.mlp(W), optimizer=lc.AdamW(0.1))
    run(learner, body, xs=x, ys=y)
    after, slopes = backend.weights(learner), oracle.mse_gradient(W, x, y)
    expected = dict(W)
    oracle.Optimizer(oracle.adam(0.1, 0.01), expected, "out.weight", "out.bias").update(slopes)
    backend.close(after, expected)


def test_gradients_for_other_parameters_are_an_error(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.update(learner.gradient(lambda: learner.xp.sum(learner.model(state.xs)), wrt=learner.params.out))

    learner = make_learner(backend.mlp(W))
    with pytest.raises(lc.errors.WeightsError, match="structure"):
        run(learner, body, xs=PAIRS[0][0])
    backend.close(backend.weights(learner), W)


class Product(lc.TrainingPhase):
    """Two models whose outputs are multiplied; ``wrt`` says how the parameters are named."""

    def __init__(self, wrt: str) -> None:
        self.wrt = wrt

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = lc.losses.mse(learner.model.a(state.xs) * learner.model.b(state.xs), state.ys)
            return state.loss

        params = learner.params
        wrt = {"all": None, "two": (params.a, params.b), "parts": (params.b, params.a.out, params.a.hidden)}[self.wrt]
        learner.minimize(objective, wrt)


@pytest.mark.parametrize("wrt", ["two", "parts"])
def test_several_handles_are_minimized_together(backend: Subject, wrt: str) -> None:
    weights: list[dict[str, Array]] = []
    for way in ("all", wrt):
        learner = make_learner({"a": backend.mlp(W), "b": backend.mlp(mlp_weights(3))}, optimizer=lc.Adam(0.01))
        for pair in PAIRS:
            learner.run_step(Product(way), pair)
        weights.append(backend.weights(learner))
    backend.close(weights[1], weights[0])
