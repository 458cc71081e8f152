"""Phases of supervised learning: training, validation and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopcore.errors import UnpackError
from loopcore.events import BackwardBegin, LossBegin
from loopcore.phases.base import AbstractTrainingPhase, AbstractValidationPhase, Fire, Phase
from loopcore.state import State


class TrainingPhase(AbstractTrainingPhase):
    """Supervised training on batches ``(xs, ys)`` of the data ``"training"``.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner()
        >>> state = learner.run_step(lc.TrainingPhase(), (np.ones((4, 1)), np.ones((4, 1))))
        >>> float(state.loss), learner.params.value
        (1.0, {'w': array([0.2])})
    """

    data_key = "training"

    def unpack(self, batch: Any) -> Mapping[str, Any]:
        """Name the parts of a pair, ``(xs, ys)`` -> ``{"xs": xs, "ys": ys}``; a mapping is the state as it is."""
        # The usual batch, without a call: this runs at every step.
        if type(batch) is tuple and len(batch) == 2:
            return {"xs": batch[0], "ys": batch[1]}
        return _xs_ys(self, batch)

    def step(self, learner: Any, handle: Fire, state: State) -> None:
        """Run the model, the loss, the gradient and the update, with an event at every seam."""

        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            handle(LossBegin())
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            handle(BackwardBegin())
            return state.loss

        learner.minimize(objective)


class ValidationPhase(AbstractValidationPhase):
    """Loss without training on batches ``(xs, ys)`` of the data ``"validation"``.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner()
        >>> state = learner.run_step(lc.ValidationPhase(), (np.ones((4, 1)), np.ones((4, 1))))
        >>> float(state.loss), learner.params.value
        (1.0, {'w': array([0.])})
    """

    data_key = "validation"

    def unpack(self, batch: Any) -> Mapping[str, Any]:
        """Name the parts of a pair, ``(xs, ys)`` -> ``{"xs": xs, "ys": ys}``; a mapping is the state as it is."""
        return _xs_ys(self, batch)

    def step(self, learner: Any, handle: Fire, state: State) -> None:
        """Run the model and the loss, without a gradient."""
        state.y_pred = learner.model(state.xs)
        handle(LossBegin())
        state.loss = learner.loss_fn(state.y_pred, state.ys)


class PredictionPhase(Phase):
    """The forward pass alone, in evaluation mode: what `Learner.predict` runs.

    The model is called with ``xs``. For a batch that is a mapping without it, `Learner.predict` looks at the signature
    of the model, and calls it by the names of the batch that are there, or with the mapping if none is.

    Attributes:
        names: of the parts of a batch that the model is called by; ``()`` for the mapping as a whole, None for ``xs``.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.testing.toy_learner().run_step(lc.PredictionPhase(), np.ones((2, 1))).y_pred
        array([[0.],
               [0.]])
    """

    reads = ("step.y_pred",)
    names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The key of its counters, whatever data it runs on: ``"prediction"``."""
        return "prediction"

    def unpack(self, batch: Any) -> Mapping[str, Any]:
        """Name the input: ``xs``, ``(xs,)`` or ``(xs, ys)`` -> ``{"xs": xs}``; a mapping is the state as it is."""
        if isinstance(batch, Mapping):
            return batch
        if not isinstance(batch, (tuple, list)):
            return {"xs": batch}
        if len(batch) in (1, 2):
            return {"xs": batch[0]}
        raise UnpackError(_wrong_parts(self, len(batch), "xs, (xs,) or (xs, ys)"))

    def step(self, learner: Any, handle: Fire, state: State) -> None:
        """Run the model on the parts of the batch that it takes."""
        if self.names is None:
            state.y_pred = learner.model(state.xs)
        elif self.names:
            state.y_pred = learner.model(**{name: getattr(state, name) for name in self.names})
        else:
            state.y_pred = learner.model(dict(vars(state)))


def _xs_ys(phase: Phase, batch: Any) -> Mapping[str, Any]:
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2:
            return {"xs": batch[0], "ys": batch[1]}
        raise UnpackError(_wrong_parts(phase, len(batch), "(xs, ys)"))
    if isinstance(batch, Mapping):
        return batch
    raise UnpackError(
        f"{type(phase).__name__} takes batches (xs, ys), but got one of type {type(batch).__name__}: yield pairs, or "
        "subclass the phase and define unpack(self, batch)"
    )


def _wrong_parts(phase: Phase, count: int, expected: str) -> str:
    return (
        f"{type(phase).__name__} takes batches {expected}, but got one with {count} parts: nothing is dropped "
        "silently. Yield dicts, or subclass the phase and define unpack(self, batch) that names the parts"
    )
