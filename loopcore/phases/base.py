"""What a step is: a phase unpacks a batch, runs the step body, and says what an epoch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from loopcore.errors import NoDataError, UnpackError
from loopcore.events import Event
from loopcore.state import State

Fire: TypeAlias = Callable[[Event], None]


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

    def setup(self, learner: Any) -> None:
        """Called once when the phase joins a learner."""

    def start(self, learner: Any, state: State) -> None:
        """Write the first values of `carries` into ``state``, from the first batch of an epoch."""

    def step(self, learner: Any, handle: Fire, state: State) -> None:
        """The step body: array code on ``state`` with the verbs of ``learner``, the same on every backend.

        Args:
            learner: gives models, parameters, gradients, updates and array functions.
            handle: fires an event, ``handle(LossBegin())``.
            state: the parts of the batch; what the body writes is seen by callbacks.
        """
        raise TypeError(f"{type(self).__name__} has no step body: define step(self, learner, handle, state)")

    def epoch(self, learner: Any, data: Any) -> None:
        """Run one pass over the data. Override it for loops that are more than that.

        Args:
            learner: runs the steps.
            data: the batches of this epoch, or None for a phase without data.
        """
        if data is None:
            raise NoDataError(
                f"{type(self).__name__} has data_key = None and the default epoch, which walks over data: set "
                "data_key, call run_epoch(phase, data), or override epoch(self, learner, data)"
            )
        # The learner says what opens an epoch: a phase knows nothing of the loop that runs it.
        with learner.runs.epoch_scope(self):
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


def check_phase(phase: Any) -> None:
    """Refuse what is no phase, such as its class."""
    if not isinstance(phase, Phase):
        write = f": write {phase.__name__}()" if isinstance(phase, type) else ""
        raise TypeError(f"a phase is an instance of a subclass of Phase, not {phase!r}{write}")
    if phase.name == "val":
        raise ValueError(
            f"{type(phase).__name__} has the name 'val': its metrics would have the names of validation's, val_loss, "
            "and nobody could tell them apart: give it another name"
        )
