"""Callbacks that end a fit."""

from __future__ import annotations

from math import isfinite
from time import monotonic
from typing import Any

from loopcore.callback import NO_CONFLICT, Callback, Resolution, on
from loopcore.callbacks.accumulation import AccumulatedUpdate
from loopcore.errors import CancelFittingException
from loopcore.events import BackwardEnd, EpochEnd, FitBegin, StepBegin, StepEnd
from loopcore.phases import AbstractTrainingPhase

_NONE = -1
_LOOK = 0.1  # seconds between two looks that cost a transfer


class StopOnNaNLoss(Callback):
    """Stop the fit when the training loss is NaN or infinite, before it reaches a parameter. Joins by default.

    The update of the first bad step is not applied, nor any later one, and the models keep the buffers (BatchNorm's
    statistics) they had before it; a model with buffers pays for that with a copy of them a step. The guard works on
    the device. Where a look costs a transfer, the host looks at most ten times a second and when an epoch ends, so the
    fit may end some steps later. The reason names the first bad step, counted from 1 over all steps of its phase.

    Reads: step.loss, step.buffers_before
    Writes: step.apply, step.buffers_before, shared.first_bad_step, buffers
    Handles: FitBegin, StepBegin (traced), BackwardEnd (traced), StepEnd, EpochEnd

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(target=float("nan"))
        >>> result = learner.fit(1)
        >>> result.status, result.stopped_by
        ('stopped', 'StopOnNaNLoss')
        >>> learner.params.value["w"]
        array([0.])
    """

    traced_reads = ("step.loss", "step.buffers_before")
    writes = ("step.apply", "step.buffers_before", "shared.first_bad_step", "buffers")
    carries = ("shared.first_bad_step",)

    def setup(self, learner: Any) -> None:
        """Start with a good mark."""
        self._next = 0.0
        self._mark: Any = None  # what the host saw when it looked last, and could not know yet
        learner.shared.first_bad_step = _NONE
        if not learner.buffers.value:  # nothing to remember
            self.listeners = tuple(one for one in type(self).listeners if one.event is not StepBegin)

    def resolve_conflict(self, other: Callback) -> Resolution:
        """None with anybody: it withholds updates, and puts buffers back only in a step that is void anyway."""
        return NO_CONFLICT

    @on(FitBegin)
    def begin(self, learner: Any, phase: Any) -> None:
        """A new fit gets a new chance."""
        self._mark = None
        learner.shared.first_bad_step = _NONE

    @on(StepBegin, AbstractTrainingPhase, traced=True)
    def remember(self, learner: Any, phase: Any) -> None:
        """Keep the buffers as they are before the forward pass."""
        learner.step.buffers_before = learner.buffers.value

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    @on(BackwardEnd, AccumulatedUpdate, traced=True)
    def guard(self, learner: Any, phase: Any) -> None:
        """Let no update through once a loss was not finite."""
        step, shared = learner.step, learner.shared
        loss = getattr(step, "loss", None)
        if loss is None:
            step.apply = shared.first_bad_step < 0
            return
        loss, first = learner.number(loss), shared.first_bad_step
        if type(loss) is float and type(first) is int:  # both known on the host, which is faster
            if first < 0 and isfinite(loss):
                return
            first, good = (learner.attempt if first < 0 else first), False
        else:
            xp = learner.xp
            first = xp.where((first < 0) & ~xp.isfinite(loss), learner.attempt, first)
            good = first < 0
        shared.first_bad_step, step.apply = first, good
        if hasattr(step, "buffers_before"):
            self._restore(learner, good)

    def _restore(self, learner: Any, good: Any) -> None:
        buffers, before = learner.buffers, learner.step.buffers_before
        if good is False:
            buffers.value = before
        else:
            where = learner.xp.where
            buffers.value = learner.tree.map(lambda new, old: where(good, new, old), buffers.value, before)

    @on(StepEnd, AbstractTrainingPhase)
    def look(self, learner: Any, phase: Any) -> None:
        """Stop once the host can see the mark without waiting."""
        if self._mark is not None:
            now = monotonic()
            if now < self._next or not learner.is_ready(self._mark):
                return
            self._next = now + _LOOK
            _stop(learner, phase, self._mark)
        first = learner.shared.first_bad_step
        known = type(first) is int
        if known or learner.is_ready(first):
            _stop(learner, phase, first)
        self._mark = None if known else first

    @on(EpochEnd, AbstractTrainingPhase)
    def look_again(self, learner: Any, phase: Any) -> None:
        """Stop at the latest now."""
        _stop(learner, phase, learner.shared.first_bad_step)


def _stop(learner: Any, phase: Any, first: Any) -> None:
    bad = first if type(first) is int else int(learner.to_host(first))
    if bad >= 0:
        raise CancelFittingException(f"the loss of phase {phase.name!r} is not finite at its step {bad + 1}")
