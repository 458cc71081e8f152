"""Collecting garbage at times of one's own choice."""

from __future__ import annotations

import gc

from loopcore._utils.validation import is_whole
from loopcore.callback import Callback, on
from loopcore.errors import CallbackError
from loopcore.events import EpochEnd, StepEnd
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerView


class GarbageCollect(Callback):
    """Collect Python's garbage when an epoch ends, and if that is asked for every so many steps.

    Nothing of the loop is left to the collector; user code with cycles that hold arrays may need it.

    Handles: StepEnd, EpochEnd

    Args:
        every: steps of all phases between two collections; None for epochs alone.

    Raises:
        CallbackError: ``every`` is no positive number.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(callbacks=[lc.GarbageCollect(every=100)]).fit(1).status
        'completed'
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and not is_whole(every, least=1):
            raise CallbackError(f"GarbageCollect(every={every!r}): a whole number of steps, at least 1")
        self.every = every
        self._steps = 0

    @on(StepEnd)
    def count(self, learner: LearnerView, phase: Phase) -> None:
        """Count the step, and collect garbage after every so many."""
        self._steps += 1
        if self.every is not None and self._steps % self.every == 0:
            gc.collect()

    @on(EpochEnd)
    def collect(self, learner: LearnerView, phase: Phase) -> None:
        """Collect garbage at the end of an epoch."""
        gc.collect()
