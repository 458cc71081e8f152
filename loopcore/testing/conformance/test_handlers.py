"""Handlers within a step: what they see, what they may replace, and what a gradient makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, run, train
from loopcore.testing.conformance.subject import Subject

(X, Y), (X2, Y2) = batches(2)
W = mlp_weights()
STATE_AT = {
    lc.StepBegin: {"xs", "ys"},
    lc.LossBegin: {"xs", "ys", "y_pred"},
    lc.BackwardBegin: {"xs", "ys", "y_pred", "loss"},
    lc.BackwardEnd: {"xs", "ys", "y_pred", "loss", "grads"},
    lc.StepEnd: {"xs", "ys", "y_pred", "loss", "grads"},
}


class TwoParts(lc.TrainingPhase):
    """An objective of two values, each of which a handler may replace."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.parts = {"first": learner.model(state.xs), "second": learner.model(state.xs)}
            handle(lc.LossBegin())
            return learner.xp.sum(state.parts["first"]) + 3.0 * learner.xp.sum(state.parts["second"])

        learner.minimize(objective)


class Hybrid(lc.TrainingPhase):
    """A loss in the state and a penalty that no handler sees."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            y = learner.model(state.xs)
            state.loss = lc.losses.mse(y, state.ys)
            handle(lc.BackwardBegin())
            return state.loss + learner.xp.sum(y)

        learner.minimize(objective)


def test_host_handlers_see_plain_values_as_soon_as_they_exist(backend: Subject) -> None:
    observations: dict[Any, dict[str, Any]] = {}

    def look(event: type[lc.Event]) -> At:
        names = ("xs", "ys", "y_pred", "loss", "grads")

        def note(learner: Any, phase: Any) -> None:
            values = {name: getattr(learner.step, name) for name in names if hasattr(learner.step, name)}
            arrays = [leaf for value in values.values() for leaf in native.backend.tree_leaves(value)]
            assert all(backend.native.is_plain(leaf) for leaf in arrays)
            observations[event] = learner.to_host(values)

        return At(event, note, lc.TrainingPhase, reads=tuple(f"step.{name}" for name in names))

    native = make_learner(backend.mlp(W), callbacks=[look(event) for event in STATE_AT])
    train(native, [(X, Y)])
    assert {event: set(values) for event, values in observations.items()} == STATE_AT
    y = oracle.mlp(W, X)
    expected = {"xs": X, "ys": Y, "y_pred": y, "loss": oracle.mse(y, Y)}
    for values in observations.values():
        for name in values.keys() & expected.keys():
            backend.close(values[name], expected[name])


def test_the_model_sees_the_weights_of_before_until_the_step_ends(backend: Subject) -> None:
    weights: list[Any] = []
    note = [
        At(event, lambda learner, _: weights.append(learner.export_weights()), reads=("params",))
        for event in (lc.BackwardEnd, lc.StepEnd)
    ]
    learner = make_learner(backend.mlp(W), callbacks=note)
    train(learner, [(X, Y)])
    before, after = map(backend.native.neutral, weights)
    backend.close(before, W)
    backend.close(after, backend.weights(learner))
    assert np.abs(after["out.bias"] - before["out.bias"]).max() > 1e-3


def test_inputs_replaced_at_the_begin_are_those_of_the_step(backend: Subject) -> None:
    def swap(learner: Any, phase: Any) -> None:
        learner.step.xs = X2  # a NumPy array: it is converted as a batch is

    callback = At(lc.StepBegin, swap, lc.TrainingPhase, writes=("step.xs",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    backend.close(learner.to_host(state.y_pred), oracle.mlp(W, X2))
    backend.close(backend.leaves(learner, state.grads), oracle.mse_gradient(W, X2, Y))


def test_a_replaced_leaf_is_a_constant_and_one_handed_back_is_not(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        parts = learner.step.parts
        learner.step.parts = {"first": parts["first"], "second": parts["second"] * 0.0 + 7.0}

    callback = At(lc.LossBegin, replace, writes=("step.parts",))
    learner = make_learner(backend.mlp(W), callbacks=[callback], phases=[TwoParts()])
    with pytest.warns(UserWarning, match=r"replaced step\.parts inside an objective: it is a constant") as warned:
        state = learner.run_step(TwoParts(), (X, Y))
        learner.run_step(TwoParts(), (X, Y))
    assert len(warned) == 1
    np.testing.assert_array_equal(learner.to_host(state.parts["second"]), np.full_like(Y, 7.0))
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.ones_like(Y)))


def test_a_leaf_replaced_in_place_is_a_constant_and_the_others_are_not(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.parts["second"] = np.full_like(Y, 7.0)  # a NumPy array: it is converted as a batch is

    callback = At(lc.LossBegin, replace, writes=("step.parts",))
    learner = make_learner(backend.mlp(W), callbacks=[callback], phases=[TwoParts()])
    with pytest.warns(UserWarning, match=r"replaced step\.parts inside an objective"):
        state = learner.run_step(TwoParts(), (X, Y))
    np.testing.assert_array_equal(learner.to_host(state.parts["second"]), np.full_like(Y, 7.0))
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.ones_like(Y)))


def test_a_leaf_added_in_place_leaves_the_others_their_gradient(backend: Subject) -> None:
    def add(learner: Any, phase: Any) -> None:
        learner.step.parts["third"] = [learner.step.parts["first"], 5.0]

    callback = At(lc.LossBegin, add, writes=("step.parts",))
    learner = make_learner(backend.mlp(W), callbacks=[callback], phases=[TwoParts()])
    state = learner.run_step(TwoParts(), (X, Y))
    assert list(state.parts) == ["first", "second", "third"] and state.parts["third"][1] == 5.0
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.full_like(Y, 4.0)))


def test_gradients_changed_in_place_are_what_the_update_applies(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        grads = learner.step.grads
        for name, value in grads.items():
            grads[name] = learner.tree.scale(value, 0.5)

    callback = At(lc.BackwardEnd, replace, writes=("step.grads",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    learner.run_step(lc.TrainingPhase(), (X, Y))
    slopes = oracle.mse_gradient(W, X, Y)
    backend.close(backend.weights(learner), {name: W[name] - 0.05 * slopes[name] for name in W})


def test_a_change_in_place_that_is_not_declared_is_refused(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.grads.clear()

    learner = make_learner(backend.mlp(W), callbacks=[At(lc.BackwardEnd, replace, reads=("step.grads",))])
    with pytest.raises(lc.AccessError, match=r"changes step\.grads in place"):
        learner.run_step(lc.TrainingPhase(), (X, Y))
    backend.close(backend.weights(learner), W)


def test_a_leaf_handed_back_unchanged_keeps_its_gradient(backend: Subject) -> None:
    def hand_back(learner: Any, phase: Any) -> None:
        learner.step.parts = dict(learner.step.parts)

    callback = At(lc.LossBegin, hand_back, writes=("step.parts",))
    learner = make_learner(backend.mlp(W), callbacks=[callback], phases=[TwoParts()])
    state = learner.run_step(TwoParts(), (X, Y))
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.full_like(Y, 4.0)))


def test_predictions_that_become_constant_leave_nothing_to_differentiate(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.y_pred = np.zeros_like(Y)

    callback = At(lc.LossBegin, replace, lc.TrainingPhase, writes=("step.y_pred",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    constant = r"At replaced step\.y_pred inside an objective: it is a constant to the gradient there; use traced=True"
    with pytest.warns(UserWarning, match=constant), pytest.raises(lc.errors.GradientError, match=constant):
        learner.run_step(lc.TrainingPhase(), (X, Y))
    state = learner.run_step(lc.ValidationPhase(), (X, Y))
    backend.close(learner.to_host(state.loss), oracle.mse(oracle.mlp(W, X), Y))


def test_predictions_replaced_in_validation_decide_the_loss(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.y_pred = learner.step.y_pred * 2.0

    callback = At(lc.LossBegin, replace, lc.ValidationPhase, writes=("step.y_pred",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    state = learner.run_step(lc.ValidationPhase(), (X, Y))
    backend.close(learner.to_host(state.loss), oracle.mse(2 * oracle.mlp(W, X), Y))


def test_a_replaced_loss_counts_and_is_a_constant(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.loss = learner.step.loss * 0.0 + 5.0

    callback = At(lc.BackwardBegin, replace, writes=("step.loss",))
    learner = make_learner(backend.mlp(W), callbacks=[callback], phases=[Hybrid()])
    with pytest.warns(UserWarning, match=r"replaced step\.loss inside an objective"):
        state = learner.run_step(Hybrid(), (X, Y))
    assert float(learner.to_host(state.loss)) == 5.0
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, np.ones_like(Y)))


def test_replaced_gradients_are_what_the_update_applies(backend: Subject) -> None:
    def replace(learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)

    callback = At(lc.BackwardEnd, replace, writes=("step.grads",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    slopes = oracle.mse_gradient(W, X, Y)
    backend.close(backend.leaves(learner, state.grads), {name: 0.5 * value for name, value in slopes.items()})
    backend.close(backend.weights(learner), {name: W[name] - 0.05 * slopes[name] for name in W})


def test_events_of_a_nested_gradient_reach_host_handlers(backend: Subject) -> None:
    losses: list[float] = []

    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            def inner() -> Any:
                state.loss = lc.losses.mse(learner.model(state.xs), state.ys)
                handle(lc.LossBegin())
                return state.loss

            slopes = learner.gradient(inner)
            return learner.tree.dot(slopes, slopes)

        state.found = learner.gradient(outer)

    callback = At(lc.LossBegin, lambda learner, _: losses.append(float(learner.step.loss)), reads=("step.loss",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    run(learner, body, xs=X, ys=Y)
    backend.close(losses, [oracle.mse(oracle.mlp(W, X), Y)])


class Doubled(lc.Callback):
    """Doubles the predictions, in the program."""

    writes = ("step.y_pred",)

    @lc.on(lc.LossBegin, lc.AbstractTrainingPhase, traced=True)
    def double(self, learner: Any, phase: Any) -> None:
        learner.step.y_pred = learner.step.y_pred * 2.0


class Clipped(lc.Callback):
    """Scales gradients to a norm, in the program."""

    writes = ("step.grads", "step.norm")

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
    def clip(self, learner: Any, phase: Any) -> None:
        norm = learner.tree.global_norm(learner.step.grads)
        learner.step.norm = norm
        learner.step.grads = learner.tree.scale(learner.step.grads, 0.1 / learner.xp.maximum(norm, 0.1))


def test_a_traced_handler_is_differentiated_through(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[Doubled()])
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    y = 2 * oracle.mlp(W, X)
    backend.close(learner.to_host(state.loss), oracle.mse(y, Y))
    backend.close(backend.leaves(learner, state.grads), oracle.mlp_gradient(W, X, 2 * 2 * (y - Y) / Y.size))


def test_a_traced_handler_changes_what_is_applied(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[Clipped()])
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    slopes = oracle.mse_gradient(W, X, Y)
    norm = np.sqrt(sum((slope**2).sum() for slope in slopes.values()))
    assert norm > 0.1
    backend.close(learner.to_host(state.norm), norm)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] * 0.1 / norm for name in W})


def test_traced_handlers_of_the_begin_and_the_end_of_a_step(backend: Subject) -> None:
    class Around(lc.Callback):
        reads = ("step.loss",)
        writes = ("step.xs", "step.double")

        @lc.on(lc.StepBegin, lc.TrainingPhase, traced=True)
        def begin(self, learner: Any, phase: Any) -> None:
            learner.step.xs = learner.step.xs * 0.5

        @lc.on(lc.StepEnd, lc.TrainingPhase, traced=True)
        def end(self, learner: Any, phase: Any) -> None:
            learner.step.double = learner.step.loss * 2.0

    observations: list[Any] = []
    late = At(
        lc.StepEnd, lambda learner, _: observations.append(learner.to_host(learner.step.double)), reads=("step.double",)
    )
    learner = make_learner(backend.mlp(W), callbacks=[Around(), late])
    learner.run_step(lc.TrainingPhase(), (X, Y))
    backend.close(observations, [2 * oracle.mse(oracle.mlp(W, X / 2), Y)])


def test_events_of_ones_own(backend: Subject) -> None:
    class Halfway(lc.Event):
        """Between two updates."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        state.half = learner.model(state.xs)
        handle(Halfway())
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))

    predictions: list[Any] = []
    callback = At(
        Halfway, lambda learner, _: predictions.append(learner.to_host(learner.step.half)), reads=("step.half",)
    )
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    run(learner, body, xs=X, ys=Y)
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    optimizer.update(oracle.mse_gradient(weights, X, Y))
    backend.close(predictions, [oracle.mlp(weights, X)])
    optimizer.update(oracle.mse_gradient(weights, X, Y))
    backend.close(backend.weights(learner), weights)


def test_a_handler_that_reads_a_model_leaves_the_step_alone(backend: Subject) -> None:
    predictions: list[Any] = []

    def look(learner: Any, phase: Any) -> None:
        predictions.append(learner.to_host(learner.model(learner.step.xs)))

    callback = At(lc.BackwardBegin, look, reads=("model", "step.xs"))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    backend.close(predictions, [oracle.mlp(W, X)])
    backend.close(backend.leaves(learner, state.grads), oracle.mse_gradient(W, X, Y))


def test_a_run_within_a_handler_does_not_touch_the_step_around_it(backend: Subject) -> None:
    def validate(learner: Any, phase: Any) -> None:
        learner.run_epoch(lc.ValidationPhase(), [(X2, Y2)])

    callback = At(lc.BackwardBegin, validate, lc.TrainingPhase, only=0)
    learner = make_learner(backend.mlp(W), callbacks=[callback, lc.Recorder(), lc.Metrics()], data=([(X, Y)], None))
    learner.fit(1)
    backend.close(learner.to_host(learner.step.loss), oracle.mse(oracle.mlp(W, X), Y))
    backend.close(learner.history["val_loss"], [oracle.mse(oracle.mlp(W, X2), Y2)])
    slopes = oracle.mse_gradient(W, X, Y)
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W})


# -- throttles


class Twice(lc.TrainingPhase):
    """Fires BackwardEnd twice a step."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = learner.loss_fn(learner.model(state.xs), state.ys)
            return state.loss

        learner.minimize(objective)
        learner.minimize(objective)


def test_a_throttle_decides_when_a_step_begins(backend: Subject) -> None:
    attempts: list[int] = []
    note = At(lc.BackwardEnd, lambda learner, _: attempts.append(learner.attempt), lc.AbstractTrainingPhase)
    learner = make_learner(backend.mlp(W), callbacks=[lc.throttle(note, lc.BackwardEnd, every=3)])
    phase = Twice()
    for _ in range(7):
        learner.run_step(phase, (X, Y))
    assert attempts == [2, 2, 5, 5]


def test_a_throttled_write_changes_the_steps_it_hears_and_no_others(backend: Subject) -> None:
    def halve(learner: Any, phase: Any) -> None:
        learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)

    for traced in (False, True):
        writer = lc.FunctionCallback(halve, lc.BackwardEnd, writes=("step.grads",), traced=traced)
        learner = make_learner(backend.mlp(W), callbacks=[lc.throttle(writer, lc.BackwardEnd, every=2)])
        weights, expected = learner.export_weights(), make_learner(backend.mlp(W))
        train(learner, [(X, Y)] * 4)
        for number in range(4):
            expected.hyper.learning_rate = learner.hyper.learning_rate * (0.5 if number % 2 else 1.0)
            train(expected, [(X, Y)])
        backend.close(learner.export_weights(), expected.export_weights())
        assert any(not np.array_equal(weights[name], learner.export_weights()[name]) for name in weights)


def test_a_throttle_counts_events_between_steps_by_themselves(backend: Subject) -> None:
    class Mine(lc.Event):
        """Fired in the body and between two steps."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs)
        handle(Mine())

    places: list[str] = []
    note = At(Mine, lambda learner, _: places.append("in" if learner.step.outcome is None else "between"), lc.Phase)
    learner, phase = make_learner(backend.mlp(W), callbacks=[lc.throttle(note, Mine, every=2)]), lc.ValidationPhase()
    with lc.run_epoch(learner, phase) as handle:
        for _ in range(4):
            lc.run_step(body, learner, phase, xs=X)
            handle(Mine())
    assert places == ["in", "between"] * 2


def test_throttled_metrics_are_those_of_the_steps_they_hear(backend: Subject) -> None:
    metrics = lc.throttle(lc.Metrics(lc.Metric(lc.losses.mae, "mae")), lc.StepEnd, every=2)
    data = [(X, Y), (X2, Y2)] * 2
    learner = make_learner(backend.mlp(W), callbacks=[metrics], optimizer=lc.SGD(0.0), data=(data, None))
    learner.fit(1)
    y = oracle.mlp(W, X2)
    backend.close(learner.history["loss"], [oracle.mse(y, Y2)])
    backend.close(learner.history["mae"], [np.mean(np.abs(y - Y2))])
