"""Limits of gradients."""

from __future__ import annotations

from loopcore._utils.validation import is_number
from loopcore.callback import Callback, on
from loopcore.callbacks.accumulation import AccumulatedUpdate, GradientAccumulation
from loopcore.events import BackwardEnd
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView


class GradientClipping(Callback):
    """Limit the size of every gradient before it is applied.

    With both limits the norm comes first. Where gradients are accumulated, their mean is clipped once, when it is
    applied, and not the gradient of each batch. A gradient that is not finite stays so; `StopOnNaNLoss` sees to it.

    Reads: step.window, step.grads
    Writes: step.grads
    Runs after: GradientAccumulation
    Handles: BackwardEnd (traced)

    Args:
        norm: largest Euclidean norm of all gradients together; a longer gradient keeps its direction.
        value: largest absolute value of each number.

    Raises:
        ValueError: neither limit is given, or one is no positive number.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.GradientClipping(norm=0.5)], steps=1)
        >>> result = learner.fit(1)  # without the limit, the gradient -2 gives 0.2
        >>> learner.params.value["w"].round(6)
        array([0.05])
    """

    traced_reads = ("step.window", "step.grads")
    writes = ("step.grads",)
    run_after = (GradientAccumulation,)

    def __init__(self, norm: float | None = None, value: float | None = None) -> None:
        limits = [limit for limit in (norm, value) if limit is not None]
        if not limits or not all(is_number(limit) and limit > 0 for limit in limits):
            raise ValueError(f"GradientClipping takes a positive norm or value, not norm={norm!r}, value={value!r}")
        self.norm = None if norm is None else float(norm)
        self.value = None if value is None else float(value)

    @on(BackwardEnd, AbstractTrainingPhase, traced=True)
    @on(BackwardEnd, AccumulatedUpdate, traced=True)
    def clip(self, learner: LearnerView, phase: Phase) -> None:
        """Scale or cut ``step.grads``; not while a window is open, which withholds the update."""
        step, tree, xp = learner.step, learner.tree, learner.xp
        if not getattr(step, "window", (True, True))[1]:
            return
        if self.norm is not None:
            length = tree.global_norm(step.grads)
            # A length that is NaN is not greater than anything, and one that is infinite makes NaN of the gradient:
            # either way it stays bad, and the guard sees it.
            scale = xp.where(length > self.norm, self.norm / length, xp.ones_like(length))
            step.grads = tree.scale(step.grads, scale)
        if self.value is not None:
            most = self.value
            step.grads = tree.map(lambda grad: xp.clip(grad, -most, most), step.grads)
