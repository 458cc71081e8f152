"""Sharpness-aware minimization, as a phase."""

from __future__ import annotations

from typing import Any

from loopcore.events import BackwardBegin, BackwardEnd, LossBegin
from loopcore.phases.base import Fire
from loopcore.phases.supervised import TrainingPhase
from loopcore.state import State


class SAMTrainingPhase(TrainingPhase):
    """Supervised training towards flat minima (Foret et al., 2020, https://arxiv.org/abs/2010.01412).

    Two gradients a step: one says where the loss rises fastest, the other is taken there, at other values of the
    parameters, which are never written. LossBegin and BackwardBegin are fired for both, so that whoever changes values
    in an objective does so in both; BackwardEnd once, with the gradient that is applied. ``y_pred`` and ``loss`` are
    those of the present parameters, and the second forward pass leaves buffers such as BatchNorm's statistics alone.

    Args:
        rho: length of the step up the gradient, at least 0.

    Raises:
        ValueError: ``rho`` is negative.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(phases=[lc.SAMTrainingPhase(0.5)], steps=1)
        >>> result = learner.fit(1)  # from 0 up to -0.5, where the gradient is -3
        >>> learner.params.value["w"].round(6)
        array([0.3])
    """

    def __init__(self, rho: float = 0.05) -> None:
        if not rho >= 0:
            raise ValueError(f"the rho of SAMTrainingPhase is a length, for instance 0.05, not {rho!r}")
        self.rho = float(rho)

    def step(self, learner: Any, handle: Fire, state: State) -> None:
        """Take a gradient at the parameters, another one up along it, and update with that."""
        tree = learner.tree

        def objective(update_state: bool = True) -> Any:
            state.y_pred = learner.model(state.xs, update_state=update_state)
            handle(LossBegin())
            state.loss = learner.loss_fn(state.y_pred, state.ys)
            handle(BackwardBegin())
            return state.loss

        uphill = learner.gradient(objective)
        outputs = state.y_pred, state.loss
        # Where the gradient is zero there is no way up, and no division by zero.
        scale = self.rho / (tree.global_norm(uphill) + 1e-12)
        params_uphill = tree.add(learner.params.value, tree.scale(uphill, scale))
        state.grads = learner.gradient(lambda: objective(update_state=False), at=params_uphill)
        # The second objective wrote its own, of parameters that the model never had.
        state.y_pred, state.loss = outputs
        handle(BackwardEnd())
        learner.update(state.grads)
