"""Sharpness-aware minimization (Foret et al., 2020, https://arxiv.org/abs/2010.01412) on handwritten digits.

Two gradients a step: one says where the loss rises fastest, the other is taken there, at other values of the
parameters, which are never written. The second forward pass leaves the statistics of BatchNorm alone.

    python -m examples.sam --backend torch

Result, on scikit-learn's 1,797 digits, half of them for training: the accuracy on the others is over 0.97, and a step
of length 0.5 up the gradient raises the training loss by less than three quarters of what it does after plain SGD.
"""

from __future__ import annotations

from typing import Any

import loopcore as lc
from examples import common


class Sharpness(lc.TrainingPhase):
    """With ``radius=0`` it is plain training."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            _, state.y_pred = learner.model(state.xs)
            state.loss = learner.losses.cross_entropy(state.y_pred, state.ys)
            return state.loss

        def objective_there() -> Any:
            return learner.losses.cross_entropy(learner.model(state.xs, update_state=False)[1], state.ys)

        if self.radius == 0:
            learner.minimize(objective)
        else:
            there = uphill(learner, learner.gradient(objective), self.radius)
            learner.minimize(objective_there, at=there)


def uphill(learner: lc.Learner, grads: Any, radius: float) -> Any:
    """The parameters after a step of a given length up the gradient."""
    tree = learner.tree
    return tree.add(learner.params.value, tree.scale(grads, radius / (tree.global_norm(grads) + 1e-12)))


class Held(lc.ValidationPhase):
    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        _, state.y_pred = learner.model(state.xs)
        state.loss = learner.losses.cross_entropy(state.y_pred, state.ys)


class Rise(lc.AbstractValidationPhase):
    """How much a step up the gradient raises the loss."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = learner.losses.cross_entropy(learner.model(state.xs)[1], state.ys)
            return state.loss

        def objective_there() -> Any:
            state.there = learner.losses.cross_entropy(learner.model(state.xs)[1], state.ys)
            return state.there

        grads = learner.gradient(objective)
        learner.gradient(objective_there, at=uphill(learner, grads, self.radius))
        state.rise = state.there - state.loss


class Anneal(lc.Callback):
    """Lowers the learning rate to nothing, so that the last steps are no noise."""

    reads = ("shared.history",)
    writes = ("hyper.learning_rate",)

    def __init__(self, start: float, epochs: int) -> None:
        self.start = start
        self.epochs = epochs

    @lc.on(lc.EpochBegin, lc.AbstractTrainingPhase)
    def lower(self, learner: Any, phase: lc.Phase) -> None:
        learner.hyper.learning_rate = self.start * (1 - learner.shared.history[phase].epochs / self.epochs)


def make(
    native: Any, train: Any, valid: Any, *, radius: float = 0.2, epochs: int = 40, seed: int = 0, **options: Any
) -> lc.Learner:
    """A learner for images ``(n, pixels)`` and labels ``(n,)``."""
    model = native.normalised(train[0].shape[1], 64, 10, seed=seed)
    parts: dict[str, Any] = {"callbacks": [lc.Metrics(lc.accuracy), Anneal(0.05, epochs)], "seed": seed, **options}
    batches = lc.data.batches(train, 64, shuffle=True, seed=seed, drop_last=True), lc.data.batches(valid, 500)
    return lc.Learner(model, optimizer=lc.Momentum(0.05), data=batches, phases=[Sharpness(radius), Held()], **parts)


def rise(learner: lc.Learner, pair: Any, radius: float) -> float:
    """What a step up the gradient adds to the loss of a trained model."""
    state = learner.run_step(Rise(radius), {"xs": pair[0], "ys": pair[1]}, reads=("step.rise",))
    return float(state.rise)


def main() -> None:
    options = common.arguments(__doc__, epochs=40)
    train, valid = lc.data.split(common.digits(), 0.5, seed=0)
    radii = [0.1, 0.2, 0.3, 0.4, 0.5]
    rises: dict[str, list[float]] = {}
    for name, radius in ("SGD", 0.0), ("SAM", 0.2):
        learner = make(
            common.models(options.backend), train, valid, radius=radius, epochs=options.epochs, seed=options.seed
        )
        learner.fit(options.epochs)
        rises[name] = [0.0, *(rise(learner, train, length) for length in radii)]
        print(f"{name}: accuracy {learner.history['val_accuracy'][-1]:.4f}, rise of the loss {rises[name][-1]:.4f}")
    picture, label = options.pictures / "sam.png", "length of a step up the gradient"
    common.lines(picture, [0.0, *radii], rises, label, "rise of the training loss")


if __name__ == "__main__":
    main()
