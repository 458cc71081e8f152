"""Counts completed epochs and steps."""

from __future__ import annotations

from loopcore.callback import Callback, on
from loopcore.events import EpochBegin, EpochEnd, StepEnd
from loopcore.history import History, Tally, tallies_of
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerView, StateDict


class Recorder(Callback):
    """Keeps ``shared.history``: completed epochs and steps, by the name of the phase. Joins by default.

    Writes: shared.history
    Handles: EpochBegin, StepEnd, EpochEnd

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(steps=4)
        >>> result = learner.fit(2)
        >>> learner.shared.history["training"]
        Counts(epochs=2, steps=8, steps_epoch=4)
    """

    writes = ("shared.history",)

    _running: tuple[Phase | None, Tally] = None, Tally()  # the phase whose epoch began last, and its counts

    def setup(self, learner: LearnerView) -> None:
        """Start with no counts, unless a checkpoint or an earlier recorder left some."""
        self._running = None, Tally()
        if not hasattr(learner.shared, "history"):
            learner.shared.history = History()

    @on(EpochBegin)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Set the steps of the running epoch to 0."""
        counts = self._counts(learner, phase)
        counts.steps_epoch = 0
        self._running = phase, counts

    @on(StepEnd)
    def end_step(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Count the step if it was completed."""
        running, counts = self._running
        # A step outside of its epoch, or within another phase's: the counts that are at hand are those of another
        # phase.
        if running is not phase:
            counts = self._counts(learner, phase)
        counts.attempts += 1
        if event.outcome == "completed":
            counts.steps += 1
            counts.steps_epoch += 1

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Count the epoch if it was completed."""
        if event.outcome == "completed":
            self._counts(learner, phase).epochs += 1

    def _counts(self, learner: LearnerView, phase: Phase) -> Tally:
        counts, name = tallies_of(learner.shared.history), phase.name
        return counts.get(name) or counts.setdefault(name, Tally())

    def state_dict(self) -> StateDict:
        """Return nothing: the counts live in ``shared.history``, which a checkpoint saves."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Drop the counts at hand, since loading may have replaced them."""
        self._running = None, Tally()
