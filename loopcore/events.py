"""The moments of a loop.

Which event a phase fires, and what a step's state holds from then on, stands in one table, `STEP_EVENTS`;
the documentation and the tests are generated from it.
"""

from __future__ import annotations

from typing import Literal

Outcome = Literal["completed", "skipped", "cancelled", "failed"]


class Event:
    """A moment of a loop that callbacks can listen to. Subclass it for moments of your own.

    An event is fired as an instance, ``handle(LossBegin())``, and listened to as a class,
    ``@on(LossBegin, Phase)``. A handler of a class also hears its subclasses.

    Example:
        >>> import loopcore as lc
        >>> class FakesMade(lc.Event):
        ...     "Fired when the generator has made its images."
        >>> isinstance(FakesMade(), lc.Event)
        True
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class EndEvent(Event):
    """An event that closes a scope and says how it ended.

    Args:
        outcome: ``completed``; ``skipped`` (cancelled before it began), ``cancelled`` or ``failed``.
    """

    __slots__ = ("outcome",)

    def __init__(self, outcome: Outcome = "completed") -> None:
        self.outcome: Outcome = outcome

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.outcome!r})"


class FitBegin(Event):
    """Fired once when ``fit`` starts, before its first epoch."""

    __slots__ = ()


class FitEnd(EndEvent):
    """Fired once when ``fit`` ends, however it ends."""

    __slots__ = ()


class EpochBegin(Event):
    """Fired when an epoch of a phase starts, before its first batch is fetched."""

    __slots__ = ()


class EpochEnd(EndEvent):
    """Fired when an epoch of a phase ends, once for every EpochBegin, with its outcome."""

    __slots__ = ()


class StepBegin(Event):
    """Fired when a step starts; the parts of the batch are in the state."""

    __slots__ = ()


class LossBegin(Event):
    """Fired after the forward pass and before the loss is computed."""

    __slots__ = ()


class BackwardBegin(Event):
    """Fired after the loss is computed and before its gradient is."""

    __slots__ = ()


class BackwardEnd(Event):
    """Fired after the gradient is computed and before the update applies ``state.grads``."""

    __slots__ = ()


class StepEnd(EndEvent):
    """Fired when a step ends, once for every StepBegin, with its outcome."""

    __slots__ = ()


# phase -> ((event, step values that exist from this event on), ...)
STEP_EVENTS: dict[str, tuple[tuple[type[Event], tuple[str, ...]], ...]] = {
    "TrainingPhase": (
        (StepBegin, ("xs", "ys")),
        (LossBegin, ("y_pred",)),
        (BackwardBegin, ("loss",)),
        (BackwardEnd, ("grads",)),
        (StepEnd, ("updated", "outcome")),
    ),
    "ValidationPhase": (
        (StepBegin, ("xs", "ys")),
        (LossBegin, ("y_pred",)),
        (StepEnd, ("loss", "outcome")),
    ),
    "PredictionPhase": (
        (StepBegin, ("xs",)),
        (StepEnd, ("y_pred", "outcome")),
    ),
}
