"""Callbacks that end a fit."""

from __future__ import annotations

from math import isfinite
from typing import Any

from loopcore.callback import NO_CONFLICT, Callback, Resolution, on
from loopcore.errors import CancelFittingException
from loopcore.events import BackwardEnd, FitBegin, StepBegin, StepEnd
from loopcore.phases import AbstractTrainingPhase

_NONE = -1


class StopOnNaNLoss(Callback):
    """Stop the fit when the training loss is NaN or infinite, before it reaches a parameter. Joins by default.

    The update of the first bad step is not applied, nor any later one, and the models keep the buffers (BatchNorm's
    statistics) they had before it; a model with buffers pays for that with a copy of them a step. The guard works on
    the device; the host looks when that costs nothing, so the fit may end some steps later. The reason names the
    first bad step, counted from 1 over all steps of its phase.

    Reads: step.loss
    Writes: step.apply, step.buffers_before, shared.first_bad_step, buffers
    Handles: FitBegin, StepBegin (traced), BackwardEnd (traced), StepEnd

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(target=float("nan"))
        >>> result = learner.fit(1)
        >>> result.status, result.stopped_by
        ('stopped', 'StopOnNaNLoss')
        >>> learner.params.value["w"]
        array([0.])
    """

    traced_reads = ("step.loss",)
    writes = ("step.apply", "step.buffers_before", "shared.first_bad_step", "buffers")
    carries = ("shared.first_bad_step",)

    def setup(self, learner: Any) -> None:
        """Start with a good mark."""
        learner.shared.first_bad_step = _NONE
        if not learner.buffers.value:  # nothing to remember
            self.listeners = tuple(one for one in type(self).listeners if one.event is not StepBegin)

    def resolve_conflict(self, other: Callback) -> Resolution:
        """None with anybody: it withholds updates, and puts buffers back only in a step that is void anyway."""
        return NO_CONFLICT

    @on(FitBegin)
    def begin(self, learner: Any, phase: Any) -> None:
        """A new fit gets a new chance."""
        learner.shared.first_bad_step = _NONE

    @on(StepBegin, AbstractTrainingPhase, traced=True)
    def remember(self, learner: Any, phase: Any) -> None:
        """Keep the buffers as they are before the forward pass."""
        learner.step.buffers_before = learner.buffers.value

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    def guard(self, learner: Any, phase: Any) -> None:
        """Let no update through once a loss was not finite."""
        step, shared = learner.step, learner.shared
        loss = getattr(step, "loss", None)
        if loss is None:
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
        """Stop once the host can see the mark for free."""
        first = learner.shared.first_bad_step
        if type(first) is not int:
            first = int(learner.to_host(first)) if learner.is_ready(first) else _NONE
        if first >= 0:
            raise CancelFittingException(f"the loss of phase {phase.name!r} is not finite at its step {first + 1}")
