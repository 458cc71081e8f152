"""Callbacks that end a fit."""

from __future__ import annotations

from typing import Any

from loopcore.callback import Callback, on
from loopcore.errors import CancelFittingException
from loopcore.events import BackwardEnd, FitBegin, StepEnd
from loopcore.phases import AbstractTrainingPhase


class StopOnNaNLoss(Callback):
    """Stop the fit when the training loss is NaN or infinite, before it reaches a parameter. Joins by default.

    The update of the first bad step is not applied, nor any later one. The guard works on the device; the host
    looks at it when that costs nothing, so the fit may end some steps later; the reason says when it was seen.

    Reads: step.loss
    Writes: step.apply, shared.loss_finite
    Handles: FitBegin, BackwardEnd (traced), StepEnd

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
    writes = ("step.apply", "shared.loss_finite")
    carries = ("shared.loss_finite",)

    def setup(self, learner: Any) -> None:
        """Start with a good mark."""
        learner.shared.loss_finite = True

    @on(FitBegin)
    def begin(self, learner: Any, phase: Any) -> None:
        """A new fit gets a new chance."""
        learner.shared.loss_finite = True

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    def guard(self, learner: Any, phase: Any) -> None:
        """Let no update through once a loss was not finite."""
        loss = getattr(learner.step, "loss", None)
        if loss is None:
            return
        finite = learner.xp.isfinite(loss) & learner.shared.loss_finite
        learner.shared.loss_finite = finite
        learner.step.apply = finite

    @on(StepEnd, AbstractTrainingPhase)
    def look(self, learner: Any, phase: Any) -> None:
        """Stop once the host can see the mark for free."""
        finite = learner.shared.loss_finite
        if finite is not True and learner.is_ready(finite) and not bool(learner.to_host(finite)):
            at = "" if learner.epoch is None else f", seen at step {learner.epoch.attempted} of the epoch"
            raise CancelFittingException(f"the loss of phase {phase.name!r} is not finite{at}")
