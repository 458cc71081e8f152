"""Every error loopcore raises on purpose, and the three exceptions that end a scope.

```
LoopcoreError
├── AccessError                  a callback touched a path it did not declare
├── CallbackError                a callback, or the set of callbacks, cannot work
│   ├── ConflictError            two callbacks write one path and nothing orders them
│   ├── CycleError               the declared order runs in a circle
│   ├── MissingWriterError       a path is read that nothing writes
│   └── MissingRequirementError  a callback another one requires is absent
├── BackendError                 a model, optimizer or framework cannot be used
│   ├── UnknownModelError        no adapter knows this model
│   ├── OptimizerError           an optimizer of another framework, or for no parameter
│   └── MissingFrameworkError    the framework is not installed (also an ImportError)
├── DataError                    data cannot be fed to a phase
│   ├── NoDataError              a phase has no data
│   ├── EmptyDataError           data without a single batch
│   ├── DataExhaustedError       a one-shot iterator is asked for a second epoch
│   └── UnpackError              a batch does not have the parts the phase names
├── EventError                   an event class where an instance is needed, or the reverse
├── GradientError                an objective that cannot be differentiated
│   └── LossError                an objective that did not return a scalar
├── SanityError                  a check before the fit found something wrong
├── UnknownMetricError           the history has no metric of a name (also a KeyError)
├── WeightsError                 weights that do not fit the model
├── TraceError                   a step that cannot be compiled as it is written
├── CarryError                   a carried value changed its structure, shape or dtype
├── CancelScopeError             a cancel for a scope that is not open
└── ReentrantFitError            fit called while the same learner is in fit
```
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from loopcore.text import clean


class LoopcoreError(Exception):
    """Base of every error loopcore raises on purpose.

    Example:
        >>> import loopcore as lc
        >>> try:
        ...     lc.testing.toy_learner(data=([], None)).fit(1)
        ... except lc.LoopcoreError as error:
        ...     print(type(error).__name__)
        EmptyDataError
    """


class AccessError(LoopcoreError):
    """A callback touched state that it did not declare in ``reads`` or ``writes``.

    Example:
        >>> import loopcore as lc
        >>> peek = lc.FunctionCallback(lambda learner, phase: learner.step.loss, lc.StepEnd)
        >>> try:
        ...     lc.testing.toy_learner([peek]).fit(1)
        ... except lc.AccessError as error:
        ...     print(str(error).partition(" ")[2][:15])
        reads step.loss
    """


class CallbackError(LoopcoreError):
    """A callback, or the set of callbacks, cannot work."""


class ConflictError(CallbackError):
    """Two callbacks write one path and nothing says which runs first."""


class CycleError(CallbackError):
    """The declared order of the callbacks runs in a circle; the message names it.

    Args:
        message: what the user reads.
        cycle: the callbacks of the circle, in order; the last runs before the first again.
    """

    def __init__(self, message: str, cycle: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.cycle = cycle


class MissingWriterError(CallbackError):
    """A callback reads a shared path that nothing writes."""


class MissingRequirementError(CallbackError):
    """A callback that another one requires is not in the list."""


class BackendError(LoopcoreError):
    """A model, an optimizer or a framework cannot be used."""


class UnknownModelError(BackendError, TypeError):
    """No adapter recognises the model."""


class OptimizerError(BackendError, TypeError):
    """The optimizer belongs to another framework than the model, or to no parameter."""


class MissingFrameworkError(BackendError, ImportError):
    """The framework is not installed; the message names the extra that installs it."""


class DataError(LoopcoreError):
    """Data cannot be fed to a phase."""


class NoDataError(DataError):
    """A phase has no data to run on."""


class EmptyDataError(DataError):
    """Data without a single batch."""


class DataExhaustedError(EmptyDataError):
    """A one-shot iterator was asked for a second epoch."""


class SanityError(LoopcoreError):
    """A `SanityCheck` found something wrong before the fit began; its cause is the first error itself."""


class UnpackError(DataError, ValueError):
    """A batch does not have the parts that the phase names."""


class EventError(LoopcoreError, TypeError):
    """An event class where an instance is needed, or an instance where a class is."""


class GradientError(LoopcoreError):
    """An objective that cannot be differentiated as asked."""


class LossError(GradientError, ValueError):
    """An objective that did not return a scalar."""


class UnknownMetricError(LoopcoreError, KeyError):
    """The history has no metric of a name.

    Args:
        name: that was asked for.
        there: names it has.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> result = learner.fit(1)
        >>> try:
        ...     learner.history["los"]
        ... except lc.errors.UnknownMetricError as error:
        ...     print(error)
        history has no 'los'. Did you mean 'loss'? It has: loss
    """

    def __init__(self, name: object, there: Sequence[str]) -> None:
        super().__init__(name)
        self.name = name
        self.there = tuple(there)

    def __str__(self) -> str:  # that of KeyError is the repr of the name alone
        if not self.there:
            return f"history has no {self.name!r}: it is empty until an epoch has ended"
        near = " or ".join(map(repr, get_close_matches(str(self.name), self.there)))
        hint = f" Did you mean {near}?" if near else ""
        return f"history has no {self.name!r}.{hint} It has: {', '.join(map(clean, self.there))}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.there)


class WeightsError(LoopcoreError, ValueError):
    """Weights whose names, shapes or dtypes do not fit the model; the message lists all of them."""


class CheckpointError(LoopcoreError):
    """A checkpoint that cannot be written or read, or does not fit; nothing was changed."""


class TraceError(LoopcoreError):
    """A step that cannot be compiled as it is written; the message names the line and what to write instead."""


class CarryError(LoopcoreError, ValueError):
    """A carried value changed its structure, shape or dtype within a step."""


class CancelScopeError(LoopcoreError, RuntimeError):
    """A cancel was raised for a step, an epoch or a fit that is not open."""


class ReentrantFitError(LoopcoreError, RuntimeError):
    """``fit`` was called while the same learner is in ``fit``."""


class CancelException(Exception):
    """Base of the three cancels. They end a scope cleanly and are no errors.

    Args:
        reason: why, in words; it becomes ``FitResult.reason`` when the fit ends.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.raised_by: str | None = None


class CancelStepException(CancelException):
    """Ends the running step. Its ``StepEnd`` has the outcome ``cancelled`` (``skipped`` from StepBegin).

    Example:
        >>> import loopcore as lc
        >>> class SkipOddSteps(lc.Callback):
        ...     reads = ("shared.history",)
        ...
        ...     @lc.on(lc.StepBegin, lc.TrainingPhase)
        ...     def skip(self, learner, phase):
        ...         if learner.shared.history[phase].attempts % 2:
        ...             raise lc.CancelStepException("odd step")
    """


class CancelEpochException(CancelException):
    """Ends the running epoch; a fit goes on with the next phase.

    Example:
        >>> import loopcore as lc
        >>> raise_it = lc.CancelEpochException("enough batches")
        >>> raise_it.reason
        'enough batches'
    """


class CancelFittingException(CancelException):
    """Ends the running fit, which returns a result with the status ``stopped``.

    Example:
        >>> import loopcore as lc
        >>> lc.CancelFittingException("good enough").reason
        'good enough'
    """
