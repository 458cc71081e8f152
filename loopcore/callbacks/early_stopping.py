"""Callbacks that end a fit in time: when a metric gets no better, and after so many steps or seconds."""

from __future__ import annotations

import warnings
from time import monotonic

from loopcore._utils.validation import is_number, is_whole
from loopcore.callback import Callback, on
from loopcore.callbacks.monitor import Mode, check_mode, monitored, unmeasured
from loopcore.criteria import Criterion, NumberSinceBest
from loopcore.errors import CallbackError, CancelFittingException
from loopcore.events import EpochBegin, EpochEnd, FitBegin, FitEnd, StepEnd
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView, StateDict


class EarlyStopping(Callback):
    """Stop the fit when a metric gets no better.

    It looks when an epoch of the metric's phase ends, and at nothing that is measured by hand outside of rounds; what
    else listens to that event still runs. A new fit begins anew, unless `load_state_dict` came before it. A fit that
    measured nothing of the metric warns when it ends.

    Reads: shared.metrics_epoch
    Handles: FitBegin, EpochEnd, FitEnd

    Args:
        patience: stop when the best value is so many epochs ago, at least 1.
        monitor: key of the history.
        mode: what is better, ``"min"`` or ``"max"``.
        min_delta: how much better than the best a value has to be for ``patience``, at least 0.
        criterion: one of `loopcore.criteria` instead of ``patience``; with ``mode="max"`` it sees the negative values.
        training: key of the history whose values `PQ` compares with.

    Raises:
        CallbackError: both or neither of ``patience`` and ``criterion``, an unknown mode, an argument out of its
            range, or ``min_delta`` beside a criterion.
        UnknownMetricError: nobody measures that metric; found when a round is over in which its phase, if there is one,
            measured others.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.EarlyStopping(criterion=lc.criteria.Threshold(0.2), monitor="loss")
        >>> result = lc.testing.toy_learner(callbacks=[stop]).fit(100)
        >>> result.status, result.stopped_by, result.epochs
        ('stopped', 'EarlyStopping', 2)
        >>> result.reason
        'loss is 0.009498 after 2 epochs: Threshold(value=0.2)'
    """

    reads = ("shared.metrics_epoch",)

    def __init__(
        self,
        patience: int | None = None,
        monitor: str = "val_loss",
        *,
        mode: Mode = "min",
        min_delta: float = 0.0,
        criterion: Criterion | None = None,
        training: str = "loss",
    ) -> None:
        if (patience is None) == (criterion is None):
            raise CallbackError(
                "EarlyStopping takes a patience, or criterion=lc.criteria.Threshold(...), one of the two"
            )
        check_mode(mode)
        self.criterion = _checked(criterion, min_delta) if patience is None else _patient(patience, min_delta)
        self.monitor = monitor
        self.mode = mode
        self.training = training
        self._epochs = 0
        self._resumed = False
        self._rounds = False  # whether a round ended without a value of the metric
        self._has_value = False  # whether there was a value

    @on(FitBegin)
    def begin(self, learner: LearnerView, phase: None) -> None:
        """Forget what the criterion saw of earlier fits, unless a checkpoint brought it."""
        # A run that was loaded goes on with what the criterion saw before it was saved.
        if not self._resumed:
            self.criterion.reset()
            self._epochs = 0
        self._resumed = False

    @on(FitEnd)
    def end(self, learner: LearnerView, phase: None, event: FitEnd) -> None:
        """Warn if the fit measured nothing of the metric."""
        if event.outcome == "completed" and self._rounds and not self._has_value:
            self._has_value = True  # so that it warns once
            warnings.warn(unmeasured("EarlyStopping", self.monitor), stacklevel=2)

    @on(EpochEnd)
    def look(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Hand the value of the epoch to the criterion, and stop the fit if it says so."""
        if self.training in learner.history:
            training = monitored(learner, phase, event, self.training)
            if training is not None:
                self.criterion.update_training(training)
        value = monitored(learner, phase, event, self.monitor)
        if value is None:
            # Only rounds make a missing value suspicious: what is measured by hand need not have it.
            self._rounds |= learner.epoch.round is not None
            return
        self._has_value = True
        self._epochs += 1
        if self.criterion.update(value if self.mode == "min" else -value):
            raise CancelFittingException(
                f"{self.monitor} is {value:.4g} after {self._epochs} epochs: {self.criterion!r}"
            )

    def state_dict(self) -> StateDict:
        """Return what the criterion has seen, and after how many epochs."""
        return {"criterion": self.criterion.state_dict(), "epochs": self._epochs}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back what the criterion has seen; the next fit does not begin anew."""
        self.criterion.load_state_dict(state["criterion"])
        self._epochs, self._resumed = int(state["epochs"]), True


def _patient(patience: int | None, min_delta: float) -> Criterion:
    """Make the criterion that a patience stands for."""
    if not is_whole(patience, least=1):
        hint = f", as in EarlyStopping(3, {patience!r})" if isinstance(patience, str) else ""
        raise CallbackError(f"EarlyStopping({patience!r}): patience is a whole number of epochs, at least 1{hint}")
    try:
        return NumberSinceBest(patience, min_delta)
    except ValueError as error:
        raise CallbackError(f"EarlyStopping got {error}") from None


def _checked(criterion: object, min_delta: float) -> Criterion:
    """Check that what the user gave is a criterion, and return it."""
    if not isinstance(criterion, Criterion):
        suggestion = f"{criterion.__name__}()" if isinstance(criterion, type) else "lc.criteria.Threshold(0.1)"
        raise CallbackError(f"criterion={criterion!r} is none of lc.criteria: write criterion={suggestion}")
    if min_delta != 0:
        raise CallbackError(
            f"min_delta={min_delta!r} belongs to a patience, {type(criterion).__name__} does not look at it: write it "
            f"into the criterion, such as criterion=lc.criteria.NumberSinceBest(3, min_delta={min_delta!r})"
        )
    return criterion


class MaxSteps(Callback):
    """Stop when so many training steps have been completed, over all fits.

    Handles: EpochBegin, StepEnd

    Args:
        steps: at least 1.

    Raises:
        CallbackError: it is no such number.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(callbacks=[lc.MaxSteps(5)], steps=3)
        >>> learner.fit(10).reason, learner.shared.history["training"].steps
        ('5 training steps are completed', 5)
    """

    def __init__(self, steps: int) -> None:
        if not is_whole(steps, least=1):
            raise CallbackError(f"MaxSteps({steps!r}): a whole number of steps, at least 1")
        self.steps = steps
        self.count = 0

    @on(EpochBegin, AbstractTrainingPhase)
    def begin(self, learner: LearnerView, phase: Phase) -> None:
        """Begin no epoch after the last step, as where a checkpoint of a finished run goes on."""
        self._look()

    @on(StepEnd, AbstractTrainingPhase)
    def step(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Count the step if it was completed, and stop the fit after the last one."""
        self.count += event.outcome == "completed"
        self._look()

    def _look(self) -> None:
        if self.count >= self.steps:
            raise CancelFittingException(f"{self.steps} training steps are completed")

    def state_dict(self) -> StateDict:
        """Return how many training steps were completed."""
        return {"count": self.count}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from the number of steps that a checkpoint has."""
        self.count = int(state["count"])


class MaxTime(Callback):
    """Stop when a fit has taken so many seconds; at the end of a training step.

    Handles: FitBegin, StepEnd

    Args:
        seconds: above 0.

    Raises:
        CallbackError: it is no such number.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(callbacks=[lc.MaxTime(1e-9)]).fit(10).stopped_by
        'MaxTime'
    """

    def __init__(self, seconds: float) -> None:
        if not (is_number(seconds) and seconds > 0):
            raise CallbackError(f"MaxTime({seconds!r}): a time in seconds, above 0")
        self.seconds = seconds
        self._begin = monotonic()

    @on(FitBegin)
    def begin(self, learner: LearnerView, phase: None) -> None:
        """Start the clock of the fit."""
        self._begin = monotonic()

    @on(StepEnd, AbstractTrainingPhase)
    def look(self, learner: LearnerView, phase: Phase) -> None:
        """Stop the fit if its time is over."""
        if monotonic() - self._begin >= self.seconds:
            raise CancelFittingException(f"the fit took {self.seconds:g} seconds")
