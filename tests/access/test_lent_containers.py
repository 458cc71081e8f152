"""Values that a host handler changes in place, or replaces inside an objective."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import GradientError, LossError
from loopcore.testing import toy_learner

XS = np.ones((4, 1))
BATCH = (XS, XS)


def at(event: type[lc.Event], fn: Any, **declared: Any) -> lc.FunctionCallback:
    return lc.FunctionCallback(lambda learner, phase: fn(learner), event, **declared)


def weight(learner: lc.Learner) -> float:
    return float(learner.params.value["w"].item())


# ---- containers


def test_a_declared_change_in_place_takes_effect() -> None:
    def change(learner: Any) -> None:
        learner.step.grads["w"] = learner.step.grads["w"] * 0.5
        learner.step.grads["w"] = learner.step.grads["w"] * 0.5
        assert learner.step.grads["w"].item() == -0.5

    learner = toy_learner([at(lc.BackwardEnd, change, writes=("step.grads",))], steps=1, reads=("step.grads",))
    learner.fit(1)
    np.testing.assert_allclose(weight(learner), 0.05, rtol=1e-15)
    assert learner.step.grads["w"].item() == -0.5


def test_it_takes_effect_for_the_next_handler_of_the_event() -> None:
    seen: list[float] = []

    class Changes(lc.Callback):
        writes = ("step",)

        @lc.on(lc.BackwardEnd)
        def change(self, learner: Any, phase: Any) -> None:
            learner.step.grads.update(w=learner.step.grads["w"] * 0.0)

    class Looks(lc.Callback):
        reads = ("step.grads",)

        @lc.on(lc.BackwardEnd)
        def look(self, learner: Any, phase: Any) -> None:
            seen.append(learner.step.grads["w"].item())

    toy_learner([Looks(), Changes()], steps=1).fit(1)
    assert seen == [0.0]


@pytest.mark.parametrize("reads", [("step.grads",), ("step",)])
def test_an_undeclared_change_in_place_is_refused(reads: tuple[str, ...]) -> None:
    class Halves(lc.Callback):
        @lc.on(lc.BackwardEnd)
        def halve(self, learner: Any, phase: Any) -> None:
            learner.step.grads["w"] = learner.step.grads["w"] * 0.5

    Halves.reads = reads
    learner = toy_learner([Halves()])
    with pytest.raises(lc.AccessError) as caught:
        learner.fit(1)
    assert "Halves changes step.grads in place, which it does not declare. Add to class Halves" in str(caught.value)
    assert str(caught.value).endswith("writes = ('step.grads',)")
    assert caught.value.__notes__ == ["raised by callback Halves at BackwardEnd of phase 'training'"]
    assert weight(learner) == 0.0


def deep(learner: Any) -> None:
    learner.step.parts["rows"][1]["c"] = np.full(1, 5.0)


def append(learner: Any) -> None:
    learner.step.parts["rows"].append(1.0)


def delete(learner: Any) -> None:
    del learner.step.parts["a"]


class Parts(lc.AbstractValidationPhase):
    """Writes a nested value."""

    data_key = "training"
    reads = ("step.parts",)

    def unpack(self, batch: Any) -> Any:
        return {"xs": batch[0]}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.parts = {"a": state.xs, "rows": [state.xs, {"c": state.xs}]}
        handle(lc.LossBegin())


@pytest.mark.parametrize("change", [deep, append, delete])
def test_changes_at_any_depth(change: Any) -> None:
    learner = toy_learner([at(lc.LossBegin, change, writes=("step.parts",))], phases=[Parts()], steps=1)
    learner.fit(1)
    parts = learner.step.parts
    if change is deep:
        np.testing.assert_array_equal(parts["rows"][1]["c"], [5.0])
    assert len(parts["rows"]) == (3 if change is append else 2) and ("a" in parts) is (change is not delete)
    learner = toy_learner([at(lc.LossBegin, change, reads=("step.parts",))], phases=[Parts()], steps=1)
    with pytest.raises(lc.AccessError, match=r"changes step\.parts in place"):
        learner.fit(1)


def test_what_one_reads_without_a_change_is_left_alone() -> None:
    kept: list[Any] = []

    def look(learner: Any) -> None:
        grads = learner.step.grads
        assert learner.step.grads is grads and list(grads) == ["w"]
        kept.append(grads)

    def later(learner: Any) -> None:
        kept[-1]["w"] = "mine"  # it belongs to the handler once the handler is over

    learner = toy_learner([at(lc.BackwardEnd, look, reads=("step.grads",)), at(lc.StepEnd, later)], steps=2)
    learner.fit(1)
    assert len(kept) == 2 and weight(learner) > 0.3


def test_an_assignment_goes_before_what_was_done_to_the_old_value() -> None:
    def assign(learner: Any) -> None:
        grads = learner.step.grads
        grads["w"] = np.full(1, 100.0)
        learner.step.grads = {"w": np.full(1, -2.0)}

    def assign_itself(learner: Any) -> None:
        grads = learner.step.grads
        learner.step.grads = grads
        grads["w"] = np.full(1, -3.0)

    for change, expected in ((assign, 0.2), (assign_itself, 0.3)):
        learner = toy_learner([at(lc.BackwardEnd, change, writes=("step.grads",))], steps=1)
        learner.fit(1)
        np.testing.assert_allclose(weight(learner), expected, rtol=1e-15)


def test_changes_made_before_a_cancel_stay() -> None:
    def change(learner: Any) -> None:
        learner.step.parts["a"] = np.zeros(1)
        raise lc.CancelStepException("enough")

    learner = toy_learner([at(lc.LossBegin, change, writes=("step.parts",))], phases=[Parts()], steps=1)
    learner.fit(1)
    assert learner.step.outcome == "cancelled"
    np.testing.assert_array_equal(learner.step.parts["a"], [0.0])


def test_a_step_within_a_handler_does_not_end_its_changes() -> None:
    class Nests(lc.Callback):
        writes = ("step.grads",)

        def __init__(self) -> None:
            self.depth = 0

        @lc.on(lc.BackwardEnd)
        def change(self, learner: Any, phase: Any) -> None:
            if self.depth:
                learner.step.grads["w"] = learner.step.grads["w"] * 0.0
                return
            self.depth += 1
            grads = learner.step.grads
            learner.run_step(lc.TrainingPhase(), BATCH)
            grads["w"] = np.full(1, -1.0)

    learner = toy_learner([Nests()], steps=1)
    learner.fit(1)
    np.testing.assert_allclose(weight(learner), 0.1, rtol=1e-15)


def test_a_step_after_the_read_of_a_handler_outside_of_steps() -> None:
    def change(learner: Any) -> None:
        grads = learner.step.grads
        learner.run_step(lc.ValidationPhase(), BATCH)
        grads["w"] = np.zeros(1)

    learner = toy_learner([at(lc.FitEnd, change, reads=("step.grads",))])
    with pytest.raises(lc.AccessError, match=r"changes step\.grads in place"):
        learner.fit(1)


def test_shared_containers() -> None:
    class Writes(lc.Callback):
        writes = ("shared.table",)

        def setup(self, learner: Any) -> None:
            table: dict[str, Any] = {"a": np.zeros(2)}
            learner.shared.table = table
            learner.shared.table["b"] = [1]

        @lc.on(lc.StepEnd)
        def write(self, learner: Any, phase: Any) -> None:
            learner.shared.table["b"].append(2)
            learner.shared.table["a"][0] += 1.0

    class Reads(lc.Callback):
        reads = ("shared.table",)

        @lc.on(lc.EpochEnd)
        def read(self, learner: Any, phase: Any) -> None:
            learner.shared.table["b"].append(3)

    learner = toy_learner([Writes()], steps=2)
    learner.fit(1)
    assert learner.shared.table["b"] == [1, 2, 2] and learner.shared.table["a"].tolist() == [2.0, 0.0]
    learner.callbacks.add(Reads())
    with pytest.raises(lc.AccessError, match=r"changes shared\.table in place.*writes = \('shared\.table',\)"):
        learner.fit(1)
    assert 3 not in learner.shared.table["b"]


def test_a_change_in_setup_counts_too() -> None:
    class Late(lc.Callback):
        reads = ("shared.table",)

        def setup(self, learner: Any) -> None:
            learner.shared.table["b"] = 1

    learner = toy_learner()
    learner.shared.table = {"a": 1}
    with pytest.raises(lc.AccessError, match=r"Late changes shared\.table in place"):
        learner.callbacks.add(Late())
    assert learner.shared.table == {"a": 1} and learner.callbacks.get(Late) is None


def test_an_array_is_read_only() -> None:
    def change(learner: Any) -> None:
        learner.step.grads["w"][:] = 0.0

    learner = toy_learner([at(lc.BackwardEnd, change, writes=("step.grads",))])
    with pytest.raises(ValueError, match="read-only"):
        learner.fit(1)


# ---- constants inside an objective


class Doubles(lc.Callback):
    """Replaces the predictions."""

    writes = ("step.y_pred",)

    @lc.on(lc.LossBegin)
    def double(self, learner: Any, phase: Any) -> None:
        learner.step.y_pred = learner.step.y_pred * 2.0


class Penalised(lc.TrainingPhase):
    """Reaches the parameters by two ways."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            state.loss = lc.losses.mse(state.y_pred, state.ys)
            return state.loss + learner.xp.sum(learner.params.value["w"])

        learner.minimize(objective)


CONSTANT = "inside an objective: it is a constant to the gradient there; use traced=True to differentiate through it"


def test_the_error_names_the_callback_that_made_a_constant() -> None:
    learner = toy_learner([Doubles()])
    with pytest.warns(UserWarning) as warned, pytest.raises(GradientError) as caught:
        learner.fit(1)
    assert [str(one.message) for one in warned] == [f"Doubles replaced step.y_pred {CONSTANT}"]
    assert warned[0].filename == __file__
    text = str(caught.value)
    assert text.startswith("the loss depends on none of 'w'")
    assert text.endswith(f"In this step Doubles replaced step.y_pred {CONSTANT}")


def test_a_number_for_a_loss_is_named_too() -> None:
    learner = toy_learner(
        [at(lc.BackwardBegin, lambda learner: setattr(learner.step, "loss", "low"), writes=("step",))]
    )
    with pytest.warns(UserWarning, match=r"FunctionCallback replaced step\.loss"), pytest.raises(LossError) as caught:
        learner.fit(1)
    assert "FunctionCallback replaced step.loss inside an objective" in str(caught.value)


def test_one_warning_for_each_callback_and_value() -> None:
    learner = toy_learner([Doubles()], phases=[Penalised()], steps=3)
    with pytest.warns(UserWarning) as warned:
        learner.fit(2)
    assert len(warned) == 1
    np.testing.assert_allclose(weight(learner), -0.6, rtol=1e-12)  # the penalty alone has a gradient


def test_a_container_changed_in_place_warns_like_an_assignment() -> None:
    class Tree(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                y = learner.model(state.xs)
                state.parts = {"a": y, "b": y}
                handle(lc.LossBegin())
                state.loss = learner.xp.sum(state.parts["a"]) + learner.xp.sum(state.parts["b"])
                return state.loss

            learner.minimize(objective)

    def change(learner: Any) -> None:
        learner.step.parts["b"] = learner.step.parts["b"] * 2.0

    learner = toy_learner([at(lc.LossBegin, change, writes=("step.parts",))], phases=[Tree()], steps=1)
    with pytest.warns(UserWarning, match=r"FunctionCallback replaced step\.parts inside an objective"):
        learner.fit(1)
    np.testing.assert_allclose(weight(learner), -0.4, rtol=1e-15)


def test_a_constant_next_to_a_differentiated_leaf_may_be_replaced() -> None:
    class Tree(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                state.parts = {"a": learner.model(state.xs), "b": state.ys}
                handle(lc.LossBegin())
                state.loss = lc.losses.mse(state.parts["a"], state.parts["b"])
                return state.loss

            learner.minimize(objective)

    def change(learner: Any) -> None:
        learner.step.parts["b"] = learner.step.parts["b"] * 2.0

    learner = toy_learner([at(lc.LossBegin, change, writes=("step.parts",))], phases=[Tree()], steps=1)
    learner.fit(1)
    np.testing.assert_allclose(weight(learner), 0.4, rtol=1e-15)


@pytest.mark.parametrize(
    ("event", "change", "path"),
    [
        (lc.LossBegin, lambda learner: setattr(learner.step, "ys", learner.step.ys * 0.5), "step.ys"),
        (lc.LossBegin, lambda learner: setattr(learner.step, "y_pred", learner.step.y_pred), "step.y_pred"),
        (lc.LossBegin, lambda learner: setattr(learner.step, "extra", learner.step.y_pred * 2), "step"),
        (lc.BackwardEnd, lambda learner: setattr(learner.step, "y_pred", XS), "step.y_pred"),
        (lc.BackwardEnd, lambda learner: setattr(learner.step, "grads", {"w": np.ones(1)}), "step.grads"),
        (lc.StepBegin, lambda learner: setattr(learner.step, "xs", learner.step.xs * 2), "step.xs"),
    ],
    ids=["labels", "handed back", "new", "after", "gradients", "before"],
)
def test_what_costs_no_gradient_does_not_warn(event: type[lc.Event], change: Any, path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy_learner([at(event, change, writes=(path,))]).fit(1)


def test_predictions_may_be_replaced_in_validation() -> None:
    learner = toy_learner([at(lc.LossBegin, lambda learner: None, reads=("step.y_pred",)), Doubles()])
    state = learner.run_step(lc.ValidationPhase(), BATCH)
    assert float(state.loss) == 1.0
