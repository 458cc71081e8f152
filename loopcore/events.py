"""The moments of a loop.

Which event a phase fires, and what a step's state holds from then on, stands in one table, `STEP_EVENTS`;
the documentation and the tests are generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
    """Fired once when ``fit`` starts, before its first epoch.

    Example:
        >>> import loopcore as lc
        >>> hello = lc.FunctionCallback(lambda learner, phase: print("off we go, phase is", phase), lc.FitBegin)
        >>> result = lc.testing.toy_learner([hello]).fit(2)
        off we go, phase is None
    """

    __slots__ = ()


class FitEnd(EndEvent):
    """Fired once when ``fit`` ends, however it ends.

    Example:
        >>> import loopcore as lc
        >>> trace = lc.testing.Trace()
        >>> result = lc.testing.toy_learner([trace], target=float("nan")).fit(1)
        >>> trace.events[-1]
        ('FitEnd', None, 'cancelled')
    """

    __slots__ = ()


class EpochBegin(Event):
    """Fired when an epoch of a phase starts, before its first batch is fetched.

    Example:
        >>> import loopcore as lc
        >>> show = lc.FunctionCallback(lambda learner, phase: print(phase.name, learner.epoch.length), lc.EpochBegin)
        >>> result = lc.testing.toy_learner([show], steps=3).fit(1)
        training 3
    """

    __slots__ = ()


class EpochEnd(EndEvent):
    """Fired when an epoch of a phase ends, once for every EpochBegin, with its outcome.

    Example:
        >>> import loopcore as lc
        >>> def stop(learner, phase):
        ...     raise lc.CancelEpochException("enough")
        >>> trace = lc.testing.Trace()
        >>> result = lc.testing.toy_learner([trace, lc.FunctionCallback(stop, lc.StepEnd)]).fit(1)
        >>> trace.events[-2]
        ('EpochEnd', 'training', 'cancelled')
    """

    __slots__ = ()


class StepBegin(Event):
    """Fired when a step starts; the parts of the batch are in the state.

    Example:
        >>> import loopcore as lc
        >>> show = lc.FunctionCallback(
        ...     lambda learner, phase: print(learner.step.xs.shape), lc.StepBegin, reads=("step.xs",)
        ... )
        >>> result = lc.testing.toy_learner([show], steps=1).fit(1)
        (4, 1)
    """

    __slots__ = ()


class LossBegin(Event):
    """Fired after the forward pass and before the loss is computed.

    Example:
        >>> import loopcore as lc
        >>> show = lc.FunctionCallback(
        ...     lambda learner, phase: print(learner.step.y_pred.sum()), lc.LossBegin, reads=("step.y_pred",)
        ... )
        >>> result = lc.testing.toy_learner([show], steps=1).fit(1)
        0.0
    """

    __slots__ = ()


class BackwardBegin(Event):
    """Fired after the loss is computed and before its gradient is.

    Example:
        >>> import loopcore as lc
        >>> show = lc.FunctionCallback(
        ...     lambda learner, phase: print(learner.step.loss), lc.BackwardBegin, reads=("step.loss",)
        ... )
        >>> result = lc.testing.toy_learner([show], steps=1).fit(1)
        1.0
    """

    __slots__ = ()


class BackwardEnd(Event):
    """Fired after the gradient is computed and before the update applies ``state.grads``.

    Example:
        >>> import loopcore as lc
        >>> def halve(learner, phase):
        ...     learner.step.grads = learner.tree.scale(learner.step.grads, 0.5)
        >>> halved = lc.FunctionCallback(halve, lc.BackwardEnd, writes=("step.grads",))
        >>> learner = lc.testing.toy_learner([halved], steps=1)
        >>> result = learner.fit(1)
        >>> learner.params.value
        {'w': array([0.1])}
    """

    __slots__ = ()


class UpdateBegin(Event):
    """Fired by ``learner.update`` itself before it applies gradients, whatever the body is and fires.

    For who decides on updates: ``learner.step.apply = False`` withholds this one. It is no moment of a phase, so who
    listens to all events does not hear it, and ``handle`` does not fire it.

    Args:
        grads: what would be applied, by path.
        apply: whether it would be: a bool or a 0-d boolean array.

    Example:
        >>> import loopcore as lc
        >>> from loopcore.events import UpdateBegin
        >>> class Withhold(lc.Callback):
        ...     writes = ("step.apply",)
        ...
        ...     @lc.on(UpdateBegin, lc.AbstractTrainingPhase, traced=True)
        ...     def decide(self, learner, phase, event):
        ...         learner.step.apply = learner.tree.global_norm(event.grads) < 1.9
        >>> learner = lc.testing.toy_learner([Withhold()], steps=1)  # its gradient is -2
        >>> result = learner.fit(1)
        >>> learner.params.value
        {'w': array([0.])}
    """

    __slots__ = ("apply", "grads")

    def __init__(self, grads: Mapping[str, Any], apply: Any) -> None:
        self.grads = grads
        self.apply = apply


class StepEnd(EndEvent):
    """Fired when a step ends, once for every StepBegin, with its outcome.

    Example:
        >>> import loopcore as lc
        >>> class Outcomes(lc.Callback):
        ...     @lc.on(lc.StepEnd)
        ...     def show(self, learner, phase, event):
        ...         print(event.outcome)
        >>> result = lc.testing.toy_learner([Outcomes()], steps=2).fit(1)
        completed
        completed
    """

    __slots__ = ()


OUTSIDE_STEPS = (FitBegin, FitEnd, EpochBegin, EpochEnd)
"""What is fired outside a step, where nothing is traced."""
SCOPE_EVENTS = (*OUTSIDE_STEPS, StepBegin, StepEnd)
"""What the loop itself fires, and a step body does not: the begin and the end of a fit, an epoch and a step."""

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
