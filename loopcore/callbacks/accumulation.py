"""Gradients of several batches in one update."""

from __future__ import annotations

from dataclasses import dataclass

from loopcore._utils.validation import is_whole
from loopcore.backend.array_namespace import ArrayNamespace
from loopcore.backend.protocol import Array, Tree
from loopcore.callback import Callback, on
from loopcore.callbacks.counting import counter
from loopcore.callbacks.device import ToDevice
from loopcore.errors import CallbackError
from loopcore.events import BackwardEnd, EpochEnd, StepBegin, StepEnd
from loopcore.phases.base import AbstractTrainingPhase, Fire, Phase
from loopcore.protocols import LearnerView, StateDict
from loopcore.state import State


class AccumulatedUpdate(Phase):
    """The step with which `GradientAccumulation` applies what is left when an epoch ends before its window is full.

    It has no batch and no forward pass: it fires BackwardEnd and updates. It is no AbstractTrainingPhase; callbacks
    that change gradients or look at updates listen to it by its own name, as `GradientClipping` does.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.GradientAccumulation(2)])
        >>> batches = learner.data["training"]
        >>> epoch = learner.run_epoch(lc.TrainingPhase(), (batch for batch in batches[:3]))
        >>> learner.shared.history["AccumulatedUpdate"].steps
        1
    """

    def step(self, learner: LearnerView, handle: Fire, state: State) -> None:
        """Fire BackwardEnd on the mean gradient, and update with it."""
        state.grads = learner.shared.accumulated[0]
        handle(BackwardEnd())
        learner.update(state.grads)


@dataclass
class Accumulated:
    """What `GradientAccumulation` counts, ``learner.shared.accumulation``.

    Attributes:
        batches: completed steps.
        updates: windows that were applied; one whose update another callback withheld counts too.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.GradientAccumulation(2)], steps=6)
        >>> result = learner.fit(1)
        >>> learner.shared.accumulation.updates
        3
    """

    batches: int = 0
    updates: int = 0


class GradientAccumulation(Callback):
    """Update once in ``n`` steps, with the mean of their gradients, as if their batches were one.

    The mean is weighted by samples (``state.weight``, else the length of the batch), so that a smaller batch counts
    for less. A window never reaches into the next epoch: in the last step of an epoch, or right after it where the
    data does not tell its length, what there is is applied, as the mean over what there is. An epoch that is cancelled
    drops it. Steps that were not completed do not count. One whose StepBegin it does not hear, as under `throttle`, is
    in no window: it updates by itself.

    In the steps between, ``state.updated`` is False; schedules by steps count windows. Clipping and
    all other changes of gradients that declare ``run_after = (GradientAccumulation,)`` see the mean; a window whose
    update another callback withholds is dropped.
    On backends that compile, steps that open, continue and close a window are programs of their own.

    Reads: step.grads, step.pooled
    Writes: step.grads, step.apply, step.window, step.pooled, shared.accumulated, shared.accumulation, params, optimizer
    Runs after: ToDevice
    Handles: StepBegin, BackwardEnd (traced), StepEnd (also traced), EpochEnd

    Args:
        n: steps to an update, at least 1.

    Raises:
        ValueError: ``n`` is no positive integer.
        CallbackError: the gradient is not that of all ``learner.params``, or a step has several.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.GradientAccumulation(4)], steps=10)
        >>> result = learner.fit(1)
        >>> learner.shared.accumulation
        Accumulated(batches=10, updates=3)
        >>> [round(loss, 4) for loss in learner.history.steps("loss")]
        [1.0, 1.0, 1.0, 1.0, 0.64, 0.64, 0.64, 0.64, 0.4096, 0.4096]
    """

    traced_reads = ("step.grads", "step.pooled")
    writes = (
        *("step.grads", "step.apply", "step.window", "step.pooled"),
        *("shared.accumulated", "shared.accumulation", "params", "optimizer"),
    )
    carries = ("shared.accumulated",)
    run_after = (ToDevice,)

    def __init__(self, n: int) -> None:
        if not is_whole(n, least=1):
            raise ValueError(f"GradientAccumulation takes the number of steps to an update, at least 1, not {n!r}")
        self.n = n
        self._position = 0  # completed steps of the window that is open
        self._leftover_update = AccumulatedUpdate()
        self._counts = Accumulated()

    def setup(self, learner: LearnerView) -> None:
        """Start with an empty window."""
        shared = learner.shared
        shared.accumulated = learner.tree.zeros_like(learner.params.value), counter(learner)
        shared.accumulation = self._counts

    @on(StepBegin, AbstractTrainingPhase)
    def open(self, learner: LearnerView, phase: Phase) -> None:
        """Say whether the step begins a window, and whether it ends one."""
        epoch = learner.epoch
        last = False
        if epoch is not None and epoch.outcome is None and epoch.phase is phase:
            last = epoch.attempted == epoch.length
        # Two Python bools, known before the step: a program for each kind of step, without a condition in it.
        learner.step.window = (self._position == 0, last or self._position + 1 >= self.n)

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    def accumulate(self, learner: LearnerView, phase: Phase) -> None:
        """Bring the gradient into the mean, and withhold the update but for the last step of a window."""
        step, shared = learner.step, learner.shared
        if not hasattr(step, "window"):  # it did not hear StepBegin
            return
        if hasattr(step, "pooled"):
            raise CallbackError(
                f"GradientAccumulation heard BackwardEnd twice in a step of phase {phase.name!r}: it takes one "
                "gradient, of all learner.params, a step"
            )
        begins, ends = step.window
        mean, before = shared.accumulated
        weight = _as_array(learner.xp, learner.sample_weight, before)
        total = weight if begins else before + weight
        # A running mean and not a sum: a window may end early, and what is there is right at any moment.
        step.pooled = _mean(learner, mean, step.grads, weight / total, begins), total
        step.apply = ends
        if ends:
            step.grads = step.pooled[0]

    @on(StepEnd, AbstractTrainingPhase, traced=True)
    def keep(self, learner: LearnerView, phase: Phase) -> None:
        """Keep the mean for the next step, of a step that was completed."""
        step, shared = learner.step, learner.shared
        # At the end and not in `accumulate`: a step that is cancelled in between must leave the window as it was.
        if hasattr(step, "pooled") and not step.window[1]:
            shared.accumulated = step.pooled

    @on(StepEnd, AbstractTrainingPhase)
    def count(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Count a completed step."""
        if event.outcome != "completed" or not hasattr(learner.step, "window"):
            return
        counts = learner.shared.accumulation
        counts.batches += 1
        if learner.step.window[1]:
            counts.updates += 1
            self._position = 0
        else:
            self._position += 1

    @on(EpochEnd, AbstractTrainingPhase)
    def finish(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Apply what is left of a completed epoch."""
        # A step of a phase of its own: clipping, guards and averages hear it, but none that counts training steps does.
        if self._position and event.outcome == "completed":
            learner.run_step(self._leftover_update, {})
            learner.shared.accumulation.updates += 1
        mean, _ = learner.shared.accumulated
        if not bool(learner.to_host(learner.tree.is_bounded(mean))):  # NaN must not come into a checkpoint
            learner.shared.accumulated = learner.tree.zeros_like(mean), counter(learner)
        self._position = 0

    def state_dict(self) -> StateDict:
        """Return the position in the open window, and the counts."""
        return {"position": self._position, "batches": self._counts.batches, "updates": self._counts.updates}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue the window that a checkpoint was taken in."""
        self._position = state["position"]
        self._counts.batches, self._counts.updates = state["batches"], state["updates"]


def _mean(learner: LearnerView, mean: Tree, grads: Tree, share: Array, begins: bool) -> Tree:
    """Return the mean after one more gradient of this share; in the step that begins a window, the gradient."""
    try:
        if begins:
            return learner.tree.map(lambda old_leaf, new_leaf: new_leaf, mean, grads)
        return learner.tree.lerp(mean, grads, share)
    except (TypeError, ValueError, KeyError) as error:
        raise CallbackError(
            "GradientAccumulation takes the gradient of all learner.params, but the step has one of another "
            "structure: take it with wrt=learner.params"
        ) from error


def _as_array(xp: ArrayNamespace, value: Array | float, like: Array) -> Array:
    """Make a 0-d array of the dtype of another one, of a number or of a 0-d array."""
    return xp.full_like(like, value) if type(value) in (int, float) else xp.astype(value, like.dtype)
