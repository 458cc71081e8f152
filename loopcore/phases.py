"""What a step is: phases unpack a batch, run the step body, and say what an epoch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from loopcore.errors import NoDataError, UnpackError
from loopcore.events import BackwardBegin, Event, LossBegin
from loopcore.loop import run_epoch
from loopcore.state import State

if TYPE_CHECKING:
    from loopcore.learner import Learner

Handle: TypeAlias = Callable[[Event], None]


class Phase:
    """A kind of step. Subclass `AbstractTrainingPhase` or `AbstractValidationPhase` and write `step`.

    Class attributes:
        data_key: which data of the learner it runs on; None runs without data.
        reads: step values, such as ``"step.y_pred"``, kept after each step besides the loss.
        carries: step values that pass to the next step, detached; `start` makes them.
        compile: False runs the body eagerly on every backend.

    Example:
        >>> import loopcore as lc
        >>> class Distance(lc.AbstractTrainingPhase):
        ...     data_key = "training"
        ...
        ...     def step(self, learner, handle, state):
        ...         def objective():
        ...             error = learner.model(state.xs) - state.ys
        ...             state.loss = learner.xp.mean(learner.xp.abs(error))
        ...             return state.loss
        ...
        ...         learner.minimize(objective)
        >>> Distance().name
        'training'
    """

    data_key: str | None = None
    reads: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    compile: bool = True

    @property
    def name(self) -> str:
        """The key of its counters and its history: ``data_key``, else the name of the class."""
        return self.data_key or type(self).__name__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def unpack(self, batch: Any) -> Mapping[str, Any]:
        """Name the parts of a batch; they become values of the state. Runs on the host, before conversion.

        Args:
            batch: one item of the data. A mapping is the state as it is.

        Raises:
            UnpackError: the batch is no mapping; a phase with other batches overrides this method.
        """
        if isinstance(batch, Mapping):
            return batch
        raise UnpackError(
            f"{type(self).__name__} got a batch of type {type(batch).__name__} and does not know its parts: yield "
            "dicts, or define unpack(self, batch) that returns a dict of names and values"
        )

    def setup(self, learner: Learner) -> None:
        """Called once when the phase joins a learner."""

    def start(self, learner: Learner, state: State) -> None:
        """Write the first values of `carries` into ``state``, from the first batch of an epoch."""

    def step(self, learner: Learner, handle: Handle, state: State) -> None:
        """The step body: array code on ``state`` with the verbs of ``learner``, the same on every backend.

        Args:
            learner: gives models, parameters, gradients, updates and array functions.
            handle: fires an event, ``handle(LossBegin())``.
            state: the parts of the batch; what the body writes is seen by callbacks.
        """
        raise TypeError(f"{type(self).__name__} has no step body: define step(self, learner, handle, state)")

    def epoch(self, learner: Learner, data: Any) -> None:
        """One pass over the data. Override it for loops that are more than that.

        Args:
            learner: runs the steps.
            data: the batches of this epoch, or None for a phase without data.
        """
        if data is None:
            raise NoDataError(
                f"{type(self).__name__} has data_key = None and the default epoch, which walks over data: set "
                "data_key, call run_epoch(phase, data), or override epoch(self, learner, data)"
            )
        with run_epoch(learner, self):
            for batch in data:
                learner.run_step(self, batch)


class AbstractTrainingPhase(Phase):
    """Base of phases that train: models run in training mode, and schedules and guards listen to them.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> class Decay(lc.AbstractTrainingPhase):
        ...     def step(self, learner, handle, state):
        ...         learner.minimize(lambda: learner.tree.dot(learner.params.value, learner.params.value))
        >>> learner = lc.testing.toy_learner(model=(lambda params, x: x, {"w": np.ones(1)}))
        >>> state = learner.run_step(Decay(), {})
        >>> learner.params.value["w"]
        array([0.8])
    """


class AbstractValidationPhase(Phase):
    """Base of phases that measure: models run in evaluation mode; skipped by ``fit`` when they have no data.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> class Testing(lc.AbstractValidationPhase):
        ...     data_key = "testing"
        ...
        ...     def step(self, learner, handle, state):
        ...         state.loss = lc.losses.mae(learner.model(state.xs), state.ys)
        >>> batch = {"xs": np.ones((4, 1)), "ys": np.full((4, 1), 3.0)}
        >>> learner = lc.testing.toy_learner(data={"testing": [batch]}, phases=[Testing()])
        >>> result = learner.fit(1)
        >>> learner.history["testing_loss"]
        [3.0]
    """


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
        """``(xs, ys)`` -> ``{"xs": xs, "ys": ys}``; a mapping is the state as it is."""
        if type(batch) is tuple and len(batch) == 2:
            return {"xs": batch[0], "ys": batch[1]}
        return _xs_ys(self, batch)

    def step(self, learner: Learner, handle: Handle, state: State) -> None:
        """Forward, loss, gradient and update, with an event at every seam."""

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
        """``(xs, ys)`` -> ``{"xs": xs, "ys": ys}``; a mapping is the state as it is."""
        return _xs_ys(self, batch)

    def step(self, learner: Learner, handle: Handle, state: State) -> None:
        """Forward and loss."""
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
        """``"prediction"``."""
        return "prediction"

    def unpack(self, batch: Any) -> Mapping[str, Any]:
        """``xs``, ``(xs,)`` or ``(xs, ys)`` -> ``{"xs": xs}``; a mapping is the state as it is."""
        if isinstance(batch, Mapping):
            return batch
        if not isinstance(batch, (tuple, list)):
            return {"xs": batch}
        if len(batch) in (1, 2):
            return {"xs": batch[0]}
        raise UnpackError(_wrong_parts(self, len(batch), "xs, (xs,) or (xs, ys)"))

    def step(self, learner: Learner, handle: Handle, state: State) -> None:
        """Forward."""
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


def _wrong_parts(phase: Phase, count: int, wanted: str) -> str:
    return (
        f"{type(phase).__name__} takes batches {wanted}, but got one with {count} parts: nothing is dropped silently. "
        "Yield dicts, or subclass the phase and define unpack(self, batch) that names the parts"
    )
