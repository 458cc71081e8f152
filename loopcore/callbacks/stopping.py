"""Callbacks that end a fit."""

from __future__ import annotations

from math import isfinite
from time import monotonic

from loopcore.backend.protocol import Array, Tree
from loopcore.callback import NO_CONFLICT, Callback, Resolution, RunFirst, on
from loopcore.callbacks.accumulation import AccumulatedUpdate, GradientAccumulation
from loopcore.callbacks.counting import is_float
from loopcore.errors import CancelFittingException
from loopcore.events import EpochEnd, FitBegin, StepBegin, StepEnd, UpdateBegin
from loopcore.handles.trees import TreeMath
from loopcore.ordering.declarations import overlaps
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView
from loopcore.state import combine_conditions

_NONE = -1  # the mark while no step was bad
# A transfer waits for the device, which would have nothing to do meanwhile.
_LOOK = 0.1  # seconds between two looks, at least
_LOSS, _GRADIENT, _LATER, _BUFFERS, _REST = range(5)  # what was not finite
_WORDS = {
    _LOSS: "the loss of phase {phase!r} is not finite at its step {step}",
    _GRADIENT: "a gradient of phase {phase!r} is not finite, or too large to be squared, at its step {step}",
    _LATER: (
        "a gradient of phase {phase!r} is not finite, or too large to be squared, at its step {step}; the updates "
        "before it in that step were made, and this one and what came after it were not"
    ),
    _BUFFERS: "buffers of a model, such as BatchNorm's statistics, became NaN or infinite in phase {phase!r} at its "
    "step {step}; they are as they were before it",
    _REST: "the mean gradient of what GradientAccumulation had left at the end of phase {phase!r} is not finite",
}


class StopOnNaNLoss(Callback):
    """Stop the fit when the training loss, a gradient or a statistic is NaN or infinite. Joins by default.

    No such number reaches a parameter, the state of an optimizer or a buffer (BatchNorm's statistics). Every
    ``learner.update`` asks it, whatever the body is: once a loss was not finite, or a gradient that would be applied
    was not (or so large that its square is not, which Adam keeps), neither that update happens nor any later one. The
    models keep the buffers they had before the first bad step; a model with buffers pays for that with a copy of them
    a step. An update that somebody else withholds, such as a loss scaling that skips a step, is none of its business.
    A body that updates several times a step may have done so before a later gradient is bad, which the reason says.
    What an optimizer itself makes of finite gradients, and what is assigned to ``params.value``, it does not see before
    the next loss; `Checkpointer` saves no weights that are not finite.

    The guard works on the device. Where a look costs a transfer, the host looks at most ten times a second and when an
    epoch ends, so the fit may end some steps later. The reason names the first bad step, counted from 1 over all steps
    of its phase.

    Reads: step.loss, step.updated, step.buffers_before
    Writes: step.apply, step.buffers_before, shared.first_bad_step, buffers
    Runs after: GradientAccumulation
    Handles: FitBegin, StepBegin (traced), UpdateBegin (traced), StepEnd (also traced), EpochEnd

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(target=float("nan"))
        >>> result = learner.fit(1)
        >>> result.status, result.stopped_by
        ('stopped', 'StopOnNaNLoss')
        >>> learner.params.value["w"]
        array([0.])
    """

    traced_reads = ("step.loss", "step.updated", "step.buffers_before")
    writes = ("step.apply", "step.buffers_before", "shared.first_bad_step", "buffers")
    carries = ("shared.first_bad_step",)
    run_after = (GradientAccumulation,)

    def setup(self, learner: LearnerView) -> None:
        """Mark no step as bad, and note which buffers are finite."""
        self._next = 0.0
        self._mark: Array | None = None  # what the host saw when it looked last, and could not know yet
        learner.shared.first_bad_step = _NONE
        self.watched = _finite_floats(learner)
        # A listener that is not there costs neither a copy nor a place in the program.
        if not learner.buffers.value:
            self.listeners = tuple(listener for listener in type(self).listeners if listener.event is not StepBegin)

    def resolve_conflict(self, other: Callback) -> Resolution | RunFirst:
        """Run after who writes the loss. Nobody else matters: it withholds updates, and puts back void buffers."""
        return RunFirst(other) if any(overlaps(path, "step.loss") for path in other.writes) else NO_CONFLICT

    @on(FitBegin)
    def begin(self, learner: LearnerView, phase: None) -> None:
        """Forget the bad step of an earlier fit."""
        self._mark = None
        learner.shared.first_bad_step = _NONE
        self.watched = _finite_floats(learner)

    @on(StepBegin, AbstractTrainingPhase, traced=True)
    def remember(self, learner: LearnerView, phase: Phase) -> None:
        """Keep the buffers as they are before the forward pass."""
        learner.step.buffers_before = learner.buffers.value

    @on(UpdateBegin, AbstractTrainingPhase, traced=True)
    @on(UpdateBegin, AccumulatedUpdate, traced=True)
    def guard(self, learner: LearnerView, phase: Phase, event: UpdateBegin) -> None:
        """Let no update through once a loss or a gradient was not finite."""
        applied = event.apply
        if applied is True:  # what nearly every step of an eager backend is
            first, loss = learner.shared.first_bad_step, learner.number(getattr(learner.step, "loss", 0.0))
            good = type(first) is int and first < 0 and type(loss) is float and isfinite(loss)
            if good and learner.tree.is_bounded([*event.grads.values()]) is True:
                return
        bounded = True if applied is False else learner.tree.is_bounded([*event.grads.values()])
        if bounded is not True and applied is not True:  # a gradient that is withheld anyway may be NaN
            bounded = not applied or bounded if type(applied) is bool is type(bounded) else ~applied | bounded
        if bounded is True:
            cause = _LOSS
        elif isinstance(phase, AccumulatedUpdate):
            cause = _REST
        else:
            cause = _GRADIENT if learner.step.updated is None else _LATER
        good = self._judged(learner, bounded, cause)
        if good is not True:
            learner.step.apply = good

    @on(StepEnd, AbstractTrainingPhase, traced=True)
    def settle(self, learner: LearnerView, phase: Phase) -> None:
        """Put the buffers back once a step was bad, or if it is they that are; see to a body that updates nothing."""
        step = learner.step
        before = getattr(step, "buffers_before", None) if self.watched else None
        # An update has looked at the loss already. A body without one is looked at here, or its losses would go unseen.
        if before is None and step.updated is not None:
            return
        good = self._judged(learner, self._are_sound(learner, before), _BUFFERS)
        if good is True or before is None:
            return
        buffers = learner.buffers
        if good is False:
            buffers.value = before
        else:
            where = learner.xp.where
            buffers.value = learner.tree.map(lambda new, old: where(good, new, old), buffers.value, before)

    def _judged(self, learner: LearnerView, sound: Array | bool, cause: int) -> Array | bool:
        """Note the step if its loss is not finite or it is not sound otherwise; return whether none was bad so far."""
        shared, xp = learner.shared, learner.xp
        first, loss = shared.first_bad_step, learner.number(getattr(learner.step, "loss", 0.0))
        is_on_host = type(first) is int
        if is_on_host and first >= 0:
            return False
        finite = isfinite(loss) if type(loss) in (int, float) else xp.all(xp.isfinite(loss))
        good = combine_conditions(finite, sound) if type(finite) is bool else finite & sound
        if good is True:
            return True if is_on_host else first < 0
        start = learner.attempt * len(_WORDS)  # step and cause in one number
        mark = start + (cause if finite is True else _LOSS)
        if type(finite) is not bool:
            mark = xp.where(finite, start + cause, start + _LOSS)
        if good is False and is_on_host:
            shared.first_bad_step = mark
            return False
        # The first bad step stays: those after it run on weights that no update touches any more, and say nothing new.
        bad = ~good if is_on_host else (first < 0) & ~good
        shared.first_bad_step = first = xp.where(bad, mark, first)
        return first < 0

    def _are_sound(self, learner: LearnerView, before: Tree) -> Array | bool:
        """Tell whether no buffer that was finite when the fit began became something else."""
        if before is None:
            return True
        tree = learner.tree
        pairs = zip(self.watched, _leaves(tree, learner.buffers.value), _leaves(tree, before), strict=False)
        changed = [new for watched, new, old in pairs if watched and new is not old]
        if not changed or tree.is_bounded(changed) is True:
            return True
        return learner.number(tree.all_finite(changed))  # statistics may be large

    @on(StepEnd, AbstractTrainingPhase)
    def look(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Stop once the host can see the mark without waiting."""
        before = None if event.outcome == "completed" else getattr(learner.step, "buffers_before", None)
        if before is not None and not bool(learner.to_host(self._are_sound(learner, before))):
            learner.buffers.value = before  # a step that was not completed may leave NaN in them
        if self._mark is not None:
            time_now = monotonic()
            # The mark is that of the step before: the device may still be at work on the one that has just been handed
            # to it.
            if time_now < self._next or not learner.is_ready(self._mark):
                return
            self._next = time_now + _LOOK
            _stop(learner, phase, self._mark)
        first = learner.shared.first_bad_step
        is_on_host = type(first) is int
        if is_on_host or learner.is_ready(first):
            _stop(learner, phase, first)
        self._mark = None if is_on_host else first

    @on(EpochEnd, AbstractTrainingPhase)
    def look_again(self, learner: LearnerView, phase: Phase) -> None:
        """Stop at the end of the epoch at the latest, even if that waits for the device."""
        _stop(learner, phase, learner.shared.first_bad_step)


def _stop(learner: LearnerView, phase: Phase, first: Array | int) -> None:
    mark = first if type(first) is int else int(learner.to_host(first))
    if mark >= 0:
        step, cause = divmod(mark, len(_WORDS))
        raise CancelFittingException(_WORDS[cause].format(phase=phase.name, step=step + 1))


def _finite_floats(learner: LearnerView) -> tuple[bool, ...]:
    """Tell of each buffer whether it has floats, all finite: a mask of minus infinity is no sign of trouble."""
    leaves = _leaves(learner.tree, learner.buffers.value)
    return tuple(is_float(leaf) and bool(learner.to_host(learner.tree.all_finite([leaf]))) for leaf in leaves)


def _leaves(tree: TreeMath, values: Tree) -> list[Array]:
    leaves: list[Array] = []
    tree.map(leaves.append, values)
    return leaves
