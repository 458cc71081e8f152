"""How parameters and gradients are distributed."""

from __future__ import annotations

import warnings

import numpy as np

from loopcore.backend.protocol import Array, Tree
from loopcore.callback import NO_CONFLICT, Callback, Resolution, RunFirst, Sleeper, on
from loopcore.callbacks.accumulation import AccumulatedUpdate
from loopcore.callbacks.log import Logs
from loopcore.events import BackwardEnd, EpochBegin, EpochEnd, Event
from loopcore.handles.parameters import named_leaves
from loopcore.loggers.base import Histogram, Logger
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import EpochView, LearnerView


class LogHistograms(Logs, Sleeper):
    """Log how the parameters are distributed after every training epoch, and the gradients of its last step.

    It fetches all of them then. Gradients are those that the last step applied, after clipping and accumulation. Other
    steps do not hand them back: on backends that compile, the last step of an epoch is a program of its own. Where the
    data does not tell its length every step may be the last, and each hands its gradients back, which costs memory for
    one more copy of them and no transfer.

    Reads: params, shared.history, step.grads
    Writes: step.last_grads
    Handles: EpochBegin, BackwardEnd (traced), EpochEnd, FitEnd

    Args:
        *loggers: where to.
        gradients: whether those are logged too, as ``grads/`` and the name of the parameter.

    Raises:
        CallbackError: there is no logger.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> result = lc.testing.toy_learner([lc.LogHistograms(logger, gradients=True)], steps=2).fit(2)
        >>> {name: len(entries) for name, entries in logger.entries.items()}
        {'params/w': 2, 'grads/w': 2}
        >>> [round(float(histogram.values[0]), 3) for _, histogram in logger.entries["grads/w"]]
        [-1.6, -1.024]
    """

    reads = ("params", "shared.history")

    def __init__(self, *loggers: Logger, gradients: bool = False) -> None:
        super().__init__(*loggers)
        self.gradients = self.sleeps = gradients
        self._epochs: dict[str, EpochView] = {}  # the latest of each phase
        self._awake: list[bool] = []
        self._has_warned = False
        # Declared only where it is asked for: who declares no write and no step event cuts and costs nothing.
        if gradients:
            self.traced_reads = ("step.grads",)
            self.writes = ("step.last_grads",)
        else:
            self.listeners = tuple(
                listener for listener in self.listeners if listener.method not in ("begin_epoch", "keep")
            )

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        """Get along with another LogHistograms, which keeps the same gradients."""
        return NO_CONFLICT if isinstance(other.identity(), LogHistograms) else None

    @on(EpochBegin, AbstractTrainingPhase)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Note which epoch the steps belong to."""
        self._epochs[phase.name] = learner.epoch

    def wake(self, phase: Phase) -> tuple[type[Event], ...]:
        """Sleep through all steps that are not the last of their epoch."""
        last = isinstance(phase, AccumulatedUpdate) or self._may_be_last(phase)
        self._awake.append(last)
        return () if last else (BackwardEnd,)

    def _may_be_last(self, phase: Phase) -> bool:
        epoch = self._epochs.get(phase.name)
        if epoch is None or epoch.phase is not phase or epoch.outcome is not None:
            return False
        # The step has begun when this is asked, so that the last one has the number of batches.
        return epoch.length in (None, epoch.attempted)

    def rest(self, phase: Phase) -> None:
        """Forget whether the step that ended was the last of its epoch."""
        self._awake.pop()

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    @on(BackwardEnd, AccumulatedUpdate, traced=True)
    def keep(self, learner: LearnerView, phase: Phase) -> None:
        """Keep the gradients of the last step of an epoch for the histograms."""
        if self._awake[-1]:
            learner.step.last_grads = learner.step.grads

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Write one histogram for each parameter, and one for its gradient."""
        if event.outcome != "completed" or not isinstance(phase, AbstractTrainingPhase):
            return
        epochs = learner.epoch.after
        for name in learner.params.names:
            self._log(f"params/{name}", _histogram(learner, learner.params[name].value), epochs)
        if self.gradients and learner.epoch.completed:
            for name, gradient in self._last(learner).items():
                self._log(f"grads/{name}", _histogram(learner, gradient), epochs)

    def _last(self, learner: LearnerView) -> dict[str, Array]:
        """Return the gradients of the last step by parameter; warn once where there are none."""
        tree = getattr(learner.step, "last_grads", None)
        gradients = {} if tree is None else named_leaves(learner.params, tree)
        if not (gradients or self._has_warned):
            self._has_warned = True
            reason = "they are not those of learner.params or of one of its models"
            if tree is None:
                reason = "that step was cancelled, or the data ended before its length"
            warnings.warn(f"LogHistograms left out the gradients of the last step of an epoch: {reason}", stacklevel=2)
        return gradients


def _histogram(learner: LearnerView, tree: Tree) -> Histogram:
    leaves: list[Array] = []
    learner.tree.map(leaves.append, learner.to_host(tree))
    return Histogram(np.concatenate([np.ravel(leaf) for leaf in leaves]))
