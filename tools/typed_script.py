"""A typed callback and a typed phase, as a user writes them; ``check_typed_script.py`` checks it against the wheel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import numpy as np

import loopcore as lc
from loopcore.handles.hyperparameters import Hyper
from loopcore.handles.models import Models
from loopcore.handles.parameters import ParameterHandle
from loopcore.history import Epochs
from loopcore.loop.scopes import EpochInfo


class LossPrinter(lc.Callback):
    """Print the loss of each step."""

    reads = ("step.loss", "params", "hyper")

    @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
    def on_step_end(self, learner: lc.Learner, phase: lc.Phase) -> None:
        """Every attribute has the type that an editor completes."""
        assert_type(learner.step, Any)  # names and values are those of the phase
        assert_type(learner.xp, Any)  # the namespace is that of the backend
        assert_type(learner.params, ParameterHandle)
        assert_type(learner.epoch, EpochInfo | None)
        assert_type(learner.hyper, Hyper)
        assert_type(learner.hyper.learning_rate, float)
        assert_type(learner.step_number, int)
        print(f"step {learner.step_number} loss {float(learner.step.loss):.4f}")


class Supervised(lc.AbstractTrainingPhase):
    """Supervised learning, written out."""

    data_key = "training"

    def unpack(self, batch: Any) -> dict[str, Any]:
        """Name the parts of a batch."""
        xs, ys = batch
        return {"xs": xs, "ys": ys}

    def step(self, learner: lc.Learner, handle: Callable[[lc.Event], None], state: Any) -> None:
        """The body."""
        assert_type(learner.model, Models)

        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            handle(lc.LossBegin())
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            handle(lc.BackwardBegin())
            return state.loss

        state.grads = learner.gradient(objective)
        handle(lc.BackwardEnd())
        assert_type(learner.update(state.grads), None)


def apply_fn(params: Any, xs: Any) -> Any:
    """A model that belongs to no framework."""
    return lc.xp.asarray(xs) * params["w"]


def main() -> None:
    """Train for two steps."""
    batch = np.ones((4, 1)), np.ones((4, 1))
    learner = lc.Learner(
        (apply_fn, {"w": np.zeros(1)}),
        lc.losses.mse,
        lc.SGD(0.1),
        data=([batch] * 2, None),
        phases=[Supervised()],
        callbacks=[LossPrinter()],
    )
    result = learner.fit(1)
    assert_type(learner.history, Epochs)
    assert_type(result.epochs, int)


if __name__ == "__main__":
    main()
