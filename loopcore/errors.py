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
├── CheckpointError              a checkpoint that cannot be written or read, or does not fit
│   └── NotFiniteError           weights that are NaN or infinite, where only good ones are to be saved
├── TraceError                   a step that cannot be compiled as it is written
├── CarryError                   a carried value changed its structure, shape or dtype
├── CancelScopeError             a cancel for a scope that is not open
├── ReentrantFitError            fit called while the same learner is in fit
└── OtherThreadError             a learner used in one thread while it runs in another
```
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from loopcore._utils.text import clean


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
        >>> lc.testing.toy_learner([peek]).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.AccessError: FunctionCallback reads step.loss, which it does not declare. ...
    """


class CallbackError(LoopcoreError):
    """A callback, or the set of callbacks, cannot work.

    Example:
        >>> import loopcore as lc
        >>> lc.MaxSteps(0)
        Traceback (most recent call last):
        loopcore.errors.CallbackError: MaxSteps(0): a whole number of steps, at least 1
    """


class ConflictError(CallbackError):
    """Two callbacks write one path and nothing says which runs first.

    Example:
        >>> import loopcore as lc
        >>> class One(lc.Callback): writes = ("step.xs",)
        >>> class Two(lc.Callback): writes = ("step.xs",)
        >>> lc.testing.toy_learner([One(), Two()])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.ConflictError: One and Two both write step.xs, and nothing says which runs first: ...
    """


class CycleError(CallbackError):
    """The declared order of the callbacks runs in a circle; the message names it.

    Args:
        message: what the user reads.
        cycle: the callbacks of the circle, in order; the last runs before the first again.

    Example:
        >>> import loopcore as lc
        >>> class Around(lc.Callback): run_before = run_after = (lc.Metrics,)
        >>> lc.testing.toy_learner([Around()])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.CycleError: these callbacks cannot be put in order:
          Around before Metrics: Around.run_before names Metrics
        ...
    """

    def __init__(self, message: str, cycle: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.cycle = cycle


class MissingWriterError(CallbackError):
    """A callback reads a shared path that nothing writes.

    Example:
        >>> import loopcore as lc
        >>> class Reader(lc.Callback): reads = ("shared.x",)
        >>> lc.testing.toy_learner([Reader()])
        Traceback (most recent call last):
        loopcore.errors.MissingWriterError: Reader reads shared.x, nothing writes it: add a callback that does
    """


class MissingRequirementError(CallbackError):
    """A callback that another one requires is not in the list.

    Example:
        >>> import loopcore as lc
        >>> class Reader(lc.Callback): requires = (lc.Metrics,)
        >>> lc.testing.toy_learner([Reader()], default_callbacks=False)
        Traceback (most recent call last):
        loopcore.errors.MissingRequirementError: Reader requires Metrics: add Metrics()
    """


class BackendError(LoopcoreError):
    """A model, an optimizer or a framework cannot be used.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(device="cuda")
        Traceback (most recent call last):
        loopcore.errors.BackendError: NumPy computes on the CPU, not on 'cuda': leave device out, or pass device='cpu'
    """


class UnknownModelError(BackendError, TypeError):
    """No adapter recognises the model.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(model="resnet")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.UnknownModelError: no backend knows the model of type builtins.str. Pass a ...
    """


class OptimizerError(BackendError, TypeError):
    """The optimizer belongs to another framework than the model, or to no parameter.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(optimizer="adam")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.OptimizerError: builtins.str cannot train a NumPy model: use a neutral optimizer, ...
    """


class MissingFrameworkError(BackendError, ImportError):
    """The framework, or a part of it, is not installed; the message says what installs it.

    Example:
        >>> import loopcore as lc
        >>> try:
        ...     table = lc.testing.toy_learner().history.to_pandas()
        ... except lc.errors.MissingFrameworkError:  # pandas is not installed
        ...     table = None
    """


class DataError(LoopcoreError):
    """Data cannot be fed to a phase.

    Example:
        >>> import loopcore as lc
        >>> lc.data.batches([], 32)
        Traceback (most recent call last):
        loopcore.errors.DataError: there is no array in []: pass arrays, as in batches((x, y), 32)
    """


class NoDataError(DataError):
    """A phase has no data to run on.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(data=None).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.NoDataError: phase 'training' runs on data 'training', which the learner does not have ...
    """


class EmptyDataError(DataError):
    """Data without a single batch.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(data=([], None)).fit(1)
        Traceback (most recent call last):
        loopcore.errors.EmptyDataError: the data of phase 'training' (list) yielded no batch
    """


class DataExhaustedError(EmptyDataError):
    """A one-shot iterator was asked for a second epoch.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> batches = iter([(np.ones((4, 1)), np.ones((4, 1)))])
        >>> lc.testing.toy_learner(data=(batches, None)).fit(2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.DataExhaustedError: the data of phase 'training' is a list_iterator that is used up: ...
    """


class SanityError(LoopcoreError):
    """A `SanityCheck` found something wrong before the fit began; its cause is the first error it met, if any.

    Example:
        >>> import loopcore as lc
        >>> try:
        ...     lc.testing.toy_learner([lc.SanityCheck()], target=float("nan")).fit(1)
        ... except lc.errors.SanityError as error:
        ...     print(error)
        ys of a batch of phase 'training' has values that are NaN or infinite
        the loss of the first step of phase 'training' is nan
    """


class UnpackError(DataError, ValueError):
    """A batch does not have the parts that the phase names.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.testing.toy_learner(data=([np.ones((4, 1))], None)).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.UnpackError: TrainingPhase takes batches (xs, ys), but got one of type ndarray: ...
    """


class EventError(LoopcoreError, TypeError):
    """An event class where an instance is needed, or an instance where a class is.

    Example:
        >>> import loopcore as lc
        >>> lc.on(lc.StepEnd())
        Traceback (most recent call last):
        loopcore.errors.EventError: @on takes the class of an event, not StepEnd('completed'): write @on(StepEnd, ...)
    """


class GradientError(LoopcoreError):
    """An objective that cannot be differentiated as asked.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(loss_fn=lambda y, target: target.mean()).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.GradientError: the loss depends on none of 'w': ...
    """


class LossError(GradientError, ValueError):
    """An objective that did not return a scalar.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(loss_fn=lambda y, target: y - target).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.LossError: the objective returned an array of shape (4, 1), a gradient needs a scalar: ...
    """


class UnknownMetricError(LoopcoreError, KeyError):
    """The history has no metric of a name.

    Args:
        name: that was asked for.
        there: names it has.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> result = learner.fit(1)
        >>> learner.history["los"]
        Traceback (most recent call last):
        loopcore.errors.UnknownMetricError: history has no 'los'. Did you mean 'loss'? It has: loss
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

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name, self.there)


class WeightsError(LoopcoreError, ValueError):
    """Weights whose names, shapes or dtypes do not fit the model; the message lists all of them.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.testing.toy_learner().params.value = {"w": np.zeros(2)}
        Traceback (most recent call last):
        loopcore.errors.WeightsError: the value does not fit:
          w: the model has shape [1], the value [2]
    """


class CheckpointError(LoopcoreError):
    """A checkpoint that cannot be written or read, or does not fit; nothing was changed.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner().load("gone.safetensors")
        Traceback (most recent call last):
        loopcore.errors.CheckpointError: gone.safetensors cannot be read as a checkpoint: there is no such file
    """


class NotFiniteError(CheckpointError):
    """Weights, or what an optimizer keeps, are NaN or infinite, and ``save(..., only_finite=True)`` was asked for.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner()
        >>> learner.params.value = {"w": np.array([np.nan])}
        >>> learner.save("run.safetensors", only_finite=True)
        Traceback (most recent call last):
        loopcore.errors.NotFiniteError: run.safetensors was not written: NaN or infinite numbers in weights/w
    """


class TraceError(LoopcoreError):
    """A step that cannot be compiled as it is written; the message names the line and what to write instead.

    Example:
        >>> import loopcore as lc
        >>> try:
        ...     result = lc.testing.toy_learner().fit(1)
        ... except lc.errors.TraceError as error:  # only where steps are compiled, so never with NumPy
        ...     print(error)
    """


class CarryError(LoopcoreError, ValueError):
    """A carried value changed its structure, shape or dtype within a step.

    Example:
        >>> import loopcore as lc
        >>> class Recurrent(lc.TrainingPhase): carries = ("hidden",)
        >>> lc.testing.toy_learner(phases=[Recurrent()]).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.CarryError: Recurrent carries 'hidden', but no value was there: write state.hidden in ...
    """


class CancelScopeError(LoopcoreError, RuntimeError):
    """A cancel was raised for a step, an epoch or a fit that is not open.

    Example:
        >>> import loopcore as lc
        >>> with lc.run_epoch(lc.testing.toy_learner(), lc.TrainingPhase()):  # doctest: +ELLIPSIS
        ...     raise lc.CancelStepException
        Traceback (most recent call last):
        loopcore.errors.CancelScopeError: CancelStepException: no step is open here to be cancelled. Raise ...
    """


class ReentrantFitError(LoopcoreError, RuntimeError):
    """``fit`` was called while the same learner is in ``fit``.

    Example:
        >>> import loopcore as lc
        >>> again = lc.FunctionCallback(lambda learner, phase: learner.fit(1), lc.EpochEnd)
        >>> lc.testing.toy_learner([again]).fit(1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        loopcore.errors.ReentrantFitError: fit was called while this learner is in fit: ...
    """


class OtherThreadError(LoopcoreError, RuntimeError):
    """A step, an epoch or a fit of a learner was begun in one thread while the learner runs in another.

    Both would write the same weights and counts.

    Example:
        >>> import loopcore as lc, threading
        >>> learner, errors = lc.testing.toy_learner(steps=1), []
        >>> def predict():
        ...     try:
        ...         learner.predict([1.0])
        ...     except lc.errors.OtherThreadError as error:
        ...         errors.append(error)
        >>> def start(learner, phase):
        ...     thread = threading.Thread(target=predict)
        ...     thread.start()
        ...     thread.join()
        >>> learner.callbacks.add(lc.FunctionCallback(start, lc.StepEnd))
        >>> learner.fit(1).status, len(errors)
        ('completed', 1)
    """


class CancelException(Exception):
    """Base of the three cancels. They end a scope cleanly and are no errors.

    Args:
        reason: why, in words; it becomes ``FitResult.reason`` when the fit ends.

    Example:
        >>> import loopcore as lc
        >>> try:
        ...     raise lc.CancelFittingException("good enough")
        ... except lc.errors.CancelException as cancel:
        ...     print(cancel.reason)
        good enough
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
        >>> def stop(learner, phase):
        ...     raise lc.CancelEpochException("enough batches")
        >>> lc.testing.toy_learner([lc.FunctionCallback(stop, lc.StepEnd)]).fit(3).status
        'completed'
    """


class CancelFittingException(CancelException):
    """Ends the running fit, which returns a result with the status ``stopped``.

    Example:
        >>> import loopcore as lc
        >>> def stop(learner, phase):
        ...     raise lc.CancelFittingException("good enough")
        >>> result = lc.testing.toy_learner([lc.FunctionCallback(stop, lc.EpochEnd)]).fit(10)
        >>> result.status, result.reason
        ('stopped', 'good enough')
    """
