"""Values that pass from step to step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import WIDTH, At, batches, make_learner, mlp_weights, square_mlp_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4, outputs=3)
W = square_mlp_weights()


class Recurrent(lc.AbstractTrainingPhase):
    """A hidden state that the model moves on; it is a constant at the begin of the next step."""

    data_key = "training"
    carries: tuple[str, ...] = ("hidden", "count")

    def unpack(self, batch: Any) -> Any:
        return {"xs": batch[0], "ys": batch[1]}

    def start(self, learner: Any, state: Any) -> None:
        state.hidden = {"now": learner.xp.zeros_like(state.xs), "before": learner.xp.zeros_like(state.xs)}
        state.count = learner.xp.zeros((), dtype=learner.xp.int32)

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            hidden = learner.model(state.xs + state.hidden["now"])
            state.hidden = {"now": hidden, "before": state.hidden["now"]}
            state.loss = lc.losses.mse(hidden, state.ys)
            return state.loss

        learner.minimize(objective)
        state.count = state.count + 1


def test_a_carried_tree_by_hand(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), phases=[Recurrent()], callbacks=[lc.Metrics()])
    learner.fit(2)
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    losses, hidden, before = [], np.zeros((5, 3)), np.zeros((5, 3))
    for _ in range(2):
        hidden = before = np.zeros((5, 3))  # each epoch starts anew
        for x, y in PAIRS:
            inputs = x + hidden
            before, hidden = hidden, oracle.mlp(weights, inputs)
            losses.append(oracle.mse(hidden, y))
            optimizer.update(oracle.mse_gradient(weights, inputs, y))
    backend.close(backend.weights(learner), weights)
    backend.close(learner.to_host(learner.step.hidden), {"now": hidden, "before": before})
    assert int(learner.to_host(learner.step.count)) == len(PAIRS)
    backend.close(learner.history["loss"], np.reshape(losses, (2, -1)).mean(axis=1))


def test_carried_values_are_plain(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), phases=[Recurrent()])
    with lc.run_epoch(learner, phase := Recurrent()):
        for pair in PAIRS[:2]:
            state = learner.run_step(phase, pair)
            assert all(backend.native.is_plain(leaf) for leaf in learner.backend.tree_leaves(state.hidden))


def test_carried_values_read_out_are_not_changed_by_later_steps(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    values = []
    with lc.run_epoch(learner, phase := Recurrent()):
        for pair in PAIRS:
            values.append(learner.run_step(phase, pair).hidden)
    backend.close(learner.to_host(values[0]["now"]), oracle.mlp(W, PAIRS[0][0]))


def test_a_host_handler_may_change_them_between_steps(backend: Subject) -> None:
    def forget(learner: Any, phase: Any) -> None:
        learner.step.hidden = learner.tree.zeros_like(learner.step.hidden)

    callback = At(lc.StepBegin, forget, lc.AbstractTrainingPhase, only=2, writes=("step.hidden",))
    learner = make_learner(backend.mlp(W), callbacks=[callback])
    weights, hidden = dict(W), np.zeros((5, 3))
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    with lc.run_epoch(learner, phase := Recurrent()):
        for step, (x, y) in enumerate(PAIRS):
            inputs = x + (hidden if step != 2 else 0)
            hidden = oracle.mlp(weights, inputs)
            backend.close(learner.to_host(learner.run_step(phase, (x, y)).hidden)["now"], hidden)
            optimizer.update(oracle.mse_gradient(weights, inputs, y))
    backend.close(backend.weights(learner), weights)


def test_an_epoch_cut_short_starts_anew(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    phase, counts = Recurrent(), []
    for _ in range(2):
        with lc.run_epoch(learner, phase):
            for pair in PAIRS[:2]:
                counts.append(int(learner.to_host(learner.run_step(phase, pair).count)))
            raise lc.CancelEpochException
    assert counts == [1, 2, 1, 2]


@pytest.mark.parametrize("change", ["shape", "dtype", "structure"])
def test_a_carried_value_that_changes_is_an_error(backend: Subject, change: str) -> None:
    class Changing(Recurrent):
        carries = ("hidden",)

        def start(self, learner: Any, state: Any) -> None:
            state.hidden = {"now": learner.xp.zeros((2, WIDTH))}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            hidden = state.hidden["now"]
            changed = {
                "shape": {"now": learner.xp.zeros((3, WIDTH))},
                "dtype": {"now": learner.xp.astype(hidden, learner.xp.int32)},
                "structure": {"now": hidden, "more": hidden},
            }
            state.hidden = changed[change]

    learner = make_learner(backend.mlp(mlp_weights()), data=(PAIRS, None), phases=[Changing()])
    with pytest.raises(lc.errors.CarryError, match="hidden"):
        learner.fit(1)


def test_a_carried_value_without_a_start_is_an_error(backend: Subject) -> None:
    class Forgetful(Recurrent):
        carries = ("hidden",)

        def start(self, learner: Any, state: Any) -> None:
            pass

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.hidden = state.xs

    learner = make_learner(backend.mlp(W), data=(PAIRS, None), phases=[Forgetful()])
    with pytest.raises(lc.errors.CarryError, match="start"):
        learner.fit(1)
