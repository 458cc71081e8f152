"""Accumulated, clipped and withheld gradients, against the same by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, ragged, train
from loopcore.testing.conformance.subject import Subject
from loopcore.testing.conformance.test_callbacks_together import Unsized

W = mlp_weights()
PAIRS = ragged(5, 5, 5, 5, 2)


def joined(pairs: Any) -> Any:
    return tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))


def by_hand(windows: Any, rule: oracle.Rule, change: Any = lambda grads: grads) -> dict[str, Any]:
    """Weights after an update with the gradient on everything in each window."""
    weights = dict(W)
    optimizer = oracle.Optimizer(rule, weights)
    for window in windows:
        optimizer.update(change(oracle.mse_gradient(weights, *joined(window))))
    return weights


def norm(grads: Any) -> float:
    return float(np.sqrt(sum(np.sum(grad**2) for grad in grads.values())))


def clipped(limit: float) -> Any:
    return lambda grads: {name: grad * min(1.0, limit / norm(grads)) for name, grad in grads.items()}


@pytest.mark.parametrize("sized", [True, False], ids=["length", "no_length"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_window_is_one_large_batch(backend: Subject, optimizer: str, sized: bool) -> None:
    spec, rule = {
        "sgd": (lc.SGD(0.1), oracle.sgd(0.1)),
        "momentum": (lc.Momentum(0.05, 0.8), oracle.momentum(0.05, 0.8)),
        "adam": (lc.Adam(0.01), oracle.adam(0.01)),
    }[optimizer]
    accumulation = lc.GradientAccumulation(2)
    data: Any = (PAIRS if sized else Unsized(PAIRS), None)
    learner = make_learner(backend.mlp(W), data=data, optimizer=spec, callbacks=[accumulation])
    learner.fit(2)
    windows = [PAIRS[:2], PAIRS[2:4], PAIRS[4:]]
    backend.close(backend.weights(learner), by_hand(2 * windows, rule), rtol=1e-4 if optimizer == "adam" else 0)
    assert learner.shared.accumulation == lc.Accumulated(batches=10, updates=6)


def test_a_ragged_batch_within_a_window_counts_for_less(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[lc.GradientAccumulation(3)])
    learner.fit(1)
    backend.close(backend.weights(learner), by_hand([PAIRS[:3], PAIRS[3:]], oracle.sgd(0.1)))


def test_samples_with_weights(backend: Subject) -> None:
    rows = [{"xs": x, "ys": y, "weight": np.float32(weight)} for (x, y), weight in zip(PAIRS, (1, 3), strict=False)]
    learner = make_learner(backend.mlp(W), data=(rows, None), callbacks=[lc.GradientAccumulation(2)])
    learner.fit(1)
    (first, second), grads = PAIRS[:2], oracle.mse_gradient
    expected = {n: W[n] - 0.1 * (g + 3 * grads(W, *second)[n]) / 4 for n, g in grads(W, *first).items()}
    backend.close(backend.weights(learner), expected)


def test_weights_rest_between_updates(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientAccumulation(3)])
    updated = []
    for pair in batches(7):
        before = backend.weights(learner)
        state = learner.run_step(lc.TrainingPhase(), pair)
        updated.append(bool(state.updated))
        same = all(np.array_equal(before[name], value) for name, value in backend.weights(learner).items())
        assert same is not updated[-1]
    assert updated == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("event", [lc.StepBegin, lc.LossBegin, lc.BackwardEnd, lc.StepEnd], ids=lambda e: e.__name__)
def test_a_cancelled_step_does_not_count(backend: Subject, event: type[lc.Event]) -> None:
    def cancel(learner: Any, phase: Any) -> None:
        raise lc.CancelStepException

    pairs = batches(5)
    for second in (1, 2):  # the first or the last step of the second window
        canceller = At(event, cancel, lc.AbstractTrainingPhase, only=second)
        learner = make_learner(backend.mlp(W), callbacks=[lc.GradientAccumulation(2), canceller])
        train(learner, pairs)
        completed_pairs = (
            pairs if event is lc.StepEnd else [pair for number, pair in enumerate(pairs) if number != second]
        )
        windows = [completed_pairs[:2], completed_pairs[2:4]]
        backend.close(backend.weights(learner), by_hand(windows, oracle.sgd(0.1)))


def test_a_cancelled_epoch_drops_what_it_has(backend: Subject) -> None:
    def stop(learner: Any, phase: Any) -> None:
        raise lc.CancelEpochException

    accumulation, stopper = lc.GradientAccumulation(2), At(lc.StepEnd, stop, only=2)
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[accumulation, stopper])
    learner.fit(2)
    backend.close(backend.weights(learner), by_hand([PAIRS[:2], PAIRS[:2], PAIRS[2:4], PAIRS[4:]], oracle.sgd(0.1)))


@pytest.mark.parametrize("sized", [True, False], ids=["length", "no_length"])
def test_the_mean_is_clipped_once(backend: Subject, sized: bool) -> None:
    limit = 0.1
    data: Any = (PAIRS if sized else Unsized(PAIRS), None)
    callbacks = [lc.GradientClipping(norm=limit), lc.GradientAccumulation(2)]
    learner = make_learner(backend.mlp(W), data=data, callbacks=callbacks)
    learner.fit(1)
    windows = [PAIRS[:2], PAIRS[2:4], PAIRS[4:]]
    backend.close(backend.weights(learner), by_hand(windows, oracle.sgd(0.1), clipped(limit)))


@pytest.mark.parametrize("limit", [0.1, 100.0], ids=["short", "long"])
def test_clipping_by_norm(backend: Subject, limit: float) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientClipping(norm=limit)])
    train(learner, PAIRS)
    expected = by_hand([[pair] for pair in PAIRS], oracle.sgd(0.1), clipped(limit))
    backend.close(backend.weights(learner), expected)
    assert (limit < 1) is not np.allclose(
        expected["out.bias"], by_hand([[p] for p in PAIRS], oracle.sgd(0.1))["out.bias"]
    )


def test_clipping_by_value(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientClipping(value=0.05)])
    train(learner, PAIRS)

    def cut(grads: Any) -> Any:
        return {name: np.clip(grad, -0.05, 0.05) for name, grad in grads.items()}

    backend.close(backend.weights(learner), by_hand([[pair] for pair in PAIRS], oracle.sgd(0.1), cut))


def test_a_gradient_of_zero_is_left_alone(backend: Subject) -> None:
    x = batches(1)[0][0]
    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientClipping(norm=0.1)])
    learner.run_step(lc.TrainingPhase(), (x, learner.predict(x)))
    backend.close(backend.weights(learner), W, rtol=1e-6)


@pytest.mark.parametrize(("sized", "unit"), [(True, "step"), (False, "step"), (False, "update")])
def test_a_schedule_follows_updates(backend: Subject, sized: bool, unit: Any) -> None:
    scheduler = lc.Scheduler({"learning_rate": lambda count: 0.1 / (count + 1)}, unit=unit)
    data: Any = (PAIRS if sized else Unsized(PAIRS), None)
    learner = make_learner(backend.mlp(W), data=data, callbacks=[lc.GradientAccumulation(2), scheduler])
    learner.fit(2)
    weights = dict(W)
    for count, window in enumerate(2 * [PAIRS[:2], PAIRS[2:4], PAIRS[4:]]):
        grads = oracle.mse_gradient(weights, *joined(window))
        rate = 0.1 / (count + 1)
        weights = {name: weights[name] - rate * grads[name] for name in weights}
    backend.close(backend.weights(learner), weights)
    assert scheduler.count == 6


@pytest.mark.parametrize("sized", [True, False], ids=["length", "no_length"])
def test_nothing_is_updated_after_a_loss_that_is_not_finite(backend: Subject, sized: bool) -> None:
    bad = [*PAIRS[:2], (PAIRS[2][0], np.full_like(PAIRS[2][1], np.nan)), *PAIRS[3:]]
    data: Any = (bad if sized else Unsized(bad), None)
    learner = make_learner(backend.mlp(W), data=data, callbacks=[lc.GradientAccumulation(2), lc.StopOnNaNLoss()])
    result = learner.fit(1)
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
    backend.close(backend.weights(learner), by_hand([PAIRS[:2]], oracle.sgd(0.1)))


class Blind(lc.StopOnNaNLoss):
    """The guard before its host handler has fetched a loss: only what it does on the device takes effect."""

    def look(self, learner: Any, phase: Any, event: Any) -> None:
        """Do not fetch the loss."""

    def look_again(self, learner: Any, phase: Any) -> None:
        """Do not fetch the loss."""


@pytest.mark.parametrize("sized", [True, False], ids=["length", "no_length"])
def test_nor_by_what_an_epoch_left_over(backend: Subject, sized: bool) -> None:
    bad = [*PAIRS[:2], (PAIRS[2][0], np.full_like(PAIRS[2][1], np.nan)), *PAIRS[3:]]
    data: Any = (bad if sized else Unsized(bad), None)
    learner = make_learner(backend.mlp(W), data=data, callbacks=[lc.GradientAccumulation(2), Blind()])
    assert learner.fit(1).status == "completed"
    backend.close(backend.weights(learner), by_hand([PAIRS[:2]], oracle.sgd(0.1)))


def test_a_gradient_of_a_part_is_an_error(backend: Subject) -> None:
    class Part(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                return lc.losses.mse(learner.model(state.xs), state.ys)

            learner.minimize(objective, learner.params.out)

    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientAccumulation(2)])
    with pytest.raises(lc.errors.CallbackError, match=r"wrt=learner\.params"):
        learner.run_step(Part(), PAIRS[0])


def test_two_gradients_a_step_are_an_error(backend: Subject) -> None:
    class Twice(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            for _ in range(2):
                learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))

    learner = make_learner(backend.mlp(W), callbacks=[lc.GradientAccumulation(2)])
    with pytest.raises(lc.errors.CallbackError, match="twice in a step"):
        learner.run_step(Twice(), PAIRS[0])
