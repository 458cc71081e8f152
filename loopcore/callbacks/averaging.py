"""Averages of the weights over the steps of a run."""

from __future__ import annotations

from loopcore._utils.validation import is_number, is_whole
from loopcore.backend.array_namespace import ArrayNamespace
from loopcore.backend.protocol import Array, Tree
from loopcore.callback import Callback, on
from loopcore.callbacks.accumulation import AccumulatedUpdate, GradientAccumulation
from loopcore.callbacks.clipping import GradientClipping
from loopcore.callbacks.counting import counter, is_float, whole_counter
from loopcore.callbacks.device import ToDevice
from loopcore.callbacks.stopping import StopOnNaNLoss
from loopcore.events import EpochBegin, EpochEnd, FitBegin, FitEnd, StepBegin, StepEnd
from loopcore.phases.base import AbstractTrainingPhase, AbstractValidationPhase, Phase
from loopcore.protocols import LearnerView


class AveragedWeights(Callback):
    """Keep an average of the weights, and validate with it.

    After each update, and only then, the average moves towards the new weights: by ``1 - decay`` (an exponential
    average, EMA), or with ``decay=None`` so that all updates count alike (stochastic weight averaging, SWA). Buffers,
    such as BatchNorm's statistics, are averaged with the parameters; integers among them are the present ones. Only
    what is trained is averaged. It begins with the weights of the first training step that it hears, so that what was
    loaded before counts, and is kept in float32 where the weights have 16 bits. Every epoch of an
    AbstractValidationPhase runs with the average in the place of the weights, which come back when it ends, however it
    ends; who saves the model at EpochEnd sees the weights.

    After a fit, ``learner.shared.averaged_params`` and ``learner.shared.averaged_buffers`` are the average:
    ``learner.params.value = learner.shared.averaged_params`` makes it the model.

    Reads: step.updated
    Writes: shared.averaged_params, shared.averaged_buffers, shared.averaged_updates, params, buffers
    Runs after: ToDevice, GradientAccumulation, GradientClipping, StopOnNaNLoss
    Handles: FitBegin, StepBegin, StepEnd (traced), EpochBegin, EpochEnd, FitEnd

    Args:
        decay: what an update leaves of the average, in [0, 1); None for the mean of all updates.
        warmup: begin with a smaller decay, ``min(decay, (1 + k) / (10 + k))`` after the k-th update.
        debias: leave out the weights before the first update, as Adam does with its moments: the decay after the
            k-th update is ``1 - (1 - decay) / (1 - decay ** k)``.
        start: updates to wait for. Until then the average is the present weights.

    Raises:
        ValueError: ``decay`` is not in [0, 1), both ways of beginning are asked for, or ``start`` is no such number.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.AveragedWeights(0.5)], steps=2)
        >>> result = learner.fit(1)  # the weight is 0, then 0.2, then 0.36
        >>> learner.params.value["w"], learner.shared.averaged_params["w"].round(6)
        (array([0.36]), array([0.23]))
    """

    traced_reads = ("step.updated",)
    writes = (
        *("shared.averaged_params", "shared.averaged_buffers", "shared.averaged_updates"),
        *("params", "buffers"),
    )
    carries = ("shared.averaged_params", "shared.averaged_buffers", "shared.averaged_updates")
    run_after = (ToDevice, GradientAccumulation, GradientClipping, StopOnNaNLoss)

    def __init__(
        self, decay: float | None = 0.999, *, warmup: bool = False, debias: bool = False, start: int = 0
    ) -> None:
        if decay is not None and not (is_number(decay) and 0 <= decay < 1):
            raise ValueError(f"the decay of AveragedWeights is in [0, 1), for instance 0.999, or None, not {decay!r}")
        if (warmup and debias) or (decay is None and (warmup or debias)):
            raise ValueError("AveragedWeights begins with warmup=True or debias=True, not both; a mean needs neither")
        if not is_whole(start, least=0):
            raise ValueError(f"AveragedWeights starts after a whole number of updates, at least 0, not {start!r}")
        self.decay, self.warmup, self.debias, self.start = decay, warmup, debias, start
        self._heard_step = False  # whether it heard a step
        # phases that run with the average, the innermost last, with the weights and buffers to put back afterwards
        self._weights: list[tuple[Phase, Tree, Tree]] = []

    def setup(self, learner: LearnerView) -> None:
        """Make room for the average, unless there is one."""
        if not hasattr(learner.shared, "averaged_updates"):
            learner.shared.averaged_updates = whole_counter(learner)
            self._begin(learner)
        self._heard_step = False
        dtypes: list[str] = []
        for tree in (learner.params.value, learner.buffers.value):
            learner.tree.map(lambda x: dtypes.append(str(x.dtype)), tree)
        self.narrow = any("float16" in dtype for dtype in dtypes)

    def _begin(self, learner: LearnerView) -> None:
        """Begin with the present weights, unless a checkpoint brought an average."""
        shared = learner.shared
        if float(learner.to_host(shared.averaged_updates)) == 0:
            shared.averaged_params = _wide(learner, learner.params.value)
            shared.averaged_buffers = _wide(learner, learner.buffers.value)

    @on(StepBegin, AbstractTrainingPhase)
    def start_with(self, learner: LearnerView, phase: Phase) -> None:
        """Begin the average with the weights of the first step."""
        if not self._heard_step:
            self._heard_step = True
            self._begin(learner)

    @on(StepEnd, AbstractTrainingPhase, traced=True)
    @on(StepEnd, AccumulatedUpdate, traced=True)
    def average(self, learner: LearnerView, phase: Phase) -> None:
        """Move the average towards the weights, if there was an update."""
        shared, updated = learner.shared, learner.step.updated
        if updated is None or updated is False:
            return
        count = shared.averaged_updates + 1
        wide = counter(learner).dtype
        t = self._part(learner.xp, learner.xp.astype(count - self.start, wide))
        # The device decides on the update: where it made none, the average moves by a share of 0.
        if updated is not True:
            count = shared.averaged_updates + learner.xp.astype(updated, count.dtype)
            t = learner.xp.astype(updated, wide) * t
        params, buffers = learner.params.value, learner.buffers.value
        if self.narrow:
            params, buffers = _wide(learner, params), _wide(learner, buffers)
        shared.averaged_params = learner.tree.lerp(shared.averaged_params, params, t)
        if buffers:
            mean = learner.tree.lerp(shared.averaged_buffers, buffers, t)
            shared.averaged_buffers = learner.tree.map(lambda a, b: a if is_float(b) else b, mean, buffers)
        shared.averaged_updates = count

    def _part(self, xp: ArrayNamespace, k: Array) -> Array | float:
        """How far the average moves after the k-th update since it started: a float, or a 0-d array."""
        decay = self.decay
        if decay is None:
            return 1.0 / xp.clip(k, min=1.0)
        if self.debias:
            return (1.0 - decay) / (1.0 - decay ** xp.clip(k, min=1.0))
        # The rule of TensorFlow's ExponentialMovingAverage: 9 / (10 + k) is 1 - (1 + k) / (10 + k).
        t = xp.clip(9.0 / (10.0 + xp.clip(k, min=0.0)), min=1.0 - decay) if self.warmup else 1.0 - decay
        return xp.where(k > 0, xp.full_like(k, t) if type(t) is float else t, xp.ones_like(k)) if self.start else t

    @on(EpochBegin, AbstractValidationPhase)
    def use(self, learner: LearnerView, phase: Phase) -> None:
        """Put the average in the place of the weights while the phase validates."""
        if not self._heard_step:
            self._begin(learner)
        # Kept before anything is replaced, and below dropped after all is back: an interrupt between two lines finds
        # them.
        self._weights.append((phase, learner.params.value, learner.buffers.value))
        learner.params.value, learner.buffers.value = learner.shared.averaged_params, learner.shared.averaged_buffers

    @on(EpochEnd, AbstractValidationPhase)
    def bring_back(self, learner: LearnerView, phase: Phase) -> None:
        """Put the weights back when the phase has validated."""
        if self._weights and self._weights[-1][0] is phase:  # else it did not hear the begin, as under throttle
            self._put_back(learner)

    @on(FitBegin)
    @on(FitEnd)
    def bring_all_back(self, learner: LearnerView, phase: None) -> None:
        """Put the weights back that an interrupt kept from coming back."""
        while self._weights:
            self._put_back(learner)

    def _put_back(self, learner: LearnerView) -> None:
        _, learner.params.value, learner.buffers.value = self._weights[-1]
        self._weights.pop()


def _wide(learner: LearnerView, tree: Tree) -> Tree:
    """Convert floats of 16 bits to float32: in less an average stands still once its steps are below half a digit."""
    xp = learner.xp
    return learner.tree.map(lambda x: xp.astype(x, xp.float32) if "float16" in str(x.dtype) else x, tree)
