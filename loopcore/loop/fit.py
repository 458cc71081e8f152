"""``fit``: epochs of all phases until done or stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loopcore._utils.validation import is_whole
from loopcore.dispatch import deliver
from loopcore.errors import (
    CancelEpochException,
    CancelException,
    CancelFittingException,
    CancelStepException,
    ReentrantFitError,
)
from loopcore.events import FitBegin, FitEnd, Outcome
from loopcore.loop.batches import phases_of_fit
from loopcore.loop.scopes import EpochInfo, close_scope, no_scope
from loopcore.protocols import LearnerParts

if TYPE_CHECKING:
    from loopcore.phases.base import Phase


@dataclass(frozen=True, repr=False)
class FitResult:
    """How a fit ended.

    Attributes:
        status: ``completed``; ``stopped`` by a `CancelFittingException`; ``interrupted`` by any other exception:
            an error, a cancel without its scope, KeyboardInterrupt (Ctrl-C), SystemExit. That one goes on, so the
            result is found as ``learner.result``, which keeps the one of the last fit, however it ended.
        reason: of the cancel, or the exception, in words; empty for a completed fit.
        stopped_by: the callback that raised it, None where no callback did.
        epochs: rounds over all phases in which every epoch was completed.
        history: ``learner.history``.

    Example:
        >>> import loopcore as lc
        >>> result = lc.testing.toy_learner(target=float("nan")).fit(3)
        >>> result.status, result.stopped_by, result.epochs
        ('stopped', 'StopOnNaNLoss', 0)
    """

    status: Literal["completed", "stopped", "interrupted"]
    reason: str
    stopped_by: str | None
    epochs: int
    history: Mapping[str, list[float | None]]

    def __repr__(self) -> str:
        ended = "" if self.status == "completed" else f"reason={self.reason!r}, stopped_by={self.stopped_by!r}, "
        return f"FitResult({self.status!r}, {ended}epochs={self.epochs}, history={self.history!r})"


def fit(learner: LearnerParts, epochs: int) -> FitResult:
    """Run ``epochs`` rounds over the phases of a learner; see `Learner.fit`."""
    runs = learner.runs
    if runs.fitting:
        raise ReentrantFitError(
            "fit was called while this learner is in fit: run more phases with learner.run_epoch(phase), or fit "
            "another learner"
        )
    if not is_whole(epochs, least=0):
        raise ValueError(f"fit takes a whole number of epochs, at least 0, not {epochs!r}")
    learner.heed_frozen()
    # Everything that can be refused is refused before FitBegin, so that no callback has to undo a fit that never was.
    rounds = phases_of_fit(learner, epochs)
    run = _Run()
    error: BaseException | None = None
    # Whether FitEnd was delivered, or its delivery begun: callbacks hear it once, whatever happens.
    is_told = False
    mark = runs.mark()
    try:
        runs.claim()
        runs.fitting = True
        runs.open()
        # Errors are values from here on: FitEnd comes first, which tells callbacks of them, and only then do they go
        # on.
        error = _misused(run.rounds(learner, rounds, epochs))
        event = FitEnd(_outcome(error))
        handlers = runs.fit_handlers(FitEnd)
        is_told = True
        ended = _misused(close_scope(handlers, None, event, error))
        if ended is error or not isinstance(ended, CancelFittingException):
            error = ended  # else the fit it would cancel is over
        del ended  # the frame must not keep the exception that keeps the frame
        runs.rewind(mark)
        learner.result = result = run.result(error, learner.history)
    except BaseException as late:  # of the loop itself: an interrupt between two lines, or a handler that is not there
        try:
            if runs.fitting and not is_told:
                deliver(runs.fit_handlers(FitEnd), None, FitEnd("failed"))
        finally:
            runs.rewind(mark)
            learner.result = run.result(late, learner.history)
        raise
    try:
        if error is not None and not isinstance(error, CancelFittingException):
            raise error
    finally:
        error = None  # the frame must not keep the exception that keeps the frame
    return result


class _Run:
    def __init__(self) -> None:
        self.epochs = 0

    def rounds(self, learner: LearnerParts, rounds: Sequence[tuple[Phase, Any]], epochs: int) -> BaseException | None:
        """Run all rounds; return what ended them early."""
        try:
            deliver(learner.runs.fit_handlers(FitBegin), None, FitBegin())
            for _ in range(epochs):
                self.round(learner, rounds)
        except BaseException as error:
            return error
        return None

    def round(self, learner: LearnerParts, rounds: Sequence[tuple[Phase, Any]]) -> None:
        """Run an epoch of each phase; it counts if all were completed, also if the last one's end stops the fit."""
        completed, runs = 0, learner.runs
        runs.begin_round()
        for index, (phase, data) in enumerate(rounds, 1):
            try:
                learner.run_epoch(phase, data, last=index == len(rounds))
            # The last epoch of a round may be the one that stops the fit, as with early stopping: the round is complete
            # then.
            except CancelFittingException:
                self.epochs += completed + _is_completed(runs.last_epoch) == len(rounds)
                raise
            completed += _is_completed(runs.last_epoch)
        self.epochs += completed == len(rounds)
        runs.end_round()

    def result(self, error: BaseException | None, history: Mapping[str, list[float | None]]) -> FitResult:
        if isinstance(error, CancelFittingException):
            return FitResult("stopped", error.reason, error.raised_by, self.epochs, history)
        if error is None:
            return FitResult("completed", "", None, self.epochs, history)
        return FitResult("interrupted", f"{type(error).__name__}: {error}", None, self.epochs, history)


def _is_completed(epoch: EpochInfo | None) -> bool:
    return epoch is not None and epoch.outcome == "completed"


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "completed"
    return "cancelled" if isinstance(error, CancelException) else "failed"


def _misused(error: BaseException | None) -> BaseException | None:
    if isinstance(error, CancelStepException):
        return no_scope(error, "step")
    if isinstance(error, CancelEpochException):
        return no_scope(error, "epoch")
    return error
