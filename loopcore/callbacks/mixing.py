"""Inputs and labels that are mixed and smoothed, on the device."""

from __future__ import annotations

from loopcore._utils.validation import is_number, is_whole
from loopcore.backend.array_namespace import ArrayNamespace
from loopcore.backend.protocol import Array, Tree
from loopcore.callback import Callback, on
from loopcore.callbacks.counting import is_float
from loopcore.errors import CallbackError
from loopcore.events import StepBegin
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView


class MixUp(Callback):
    """Train on mixtures of samples and of their labels (Zhang et al., 2018, https://arxiv.org/abs/1710.09412).

    Each batch is mixed with itself in random order, ``lam * x + (1 - lam) * x[order]``, with one ``lam`` of the
    distribution Beta(alpha, alpha) for the batch. Integer labels become one-hot rows first. The loss takes
    probabilities then, as `losses.cross_entropy` does; `accuracy` counts the label with the larger share.

    Reads: step.xs, step.ys
    Writes: step.xs, step.ys
    Handles: StepBegin (traced)

    Args:
        alpha: positive; the larger, the more evenly samples are mixed.
        classes: number of classes, at least 1, for integer labels.

    Raises:
        ValueError: ``alpha`` is not positive, or ``classes`` no such number.
        CallbackError: labels are integers and ``classes`` is not given, or the inputs are no floating arrays.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> batch = (np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]))
        >>> learner = lc.testing.toy_learner([lc.MixUp(0.4)], data=([batch], None), reads=("step",))
        >>> state = learner.run_step(lc.TrainingPhase(), batch)
        >>> np.allclose(state.ys, 2 * state.xs)
        True
    """

    traced_reads = ("step.xs", "step.ys")
    writes = ("step.xs", "step.ys")

    def __init__(self, alpha: float = 0.2, classes: int | None = None) -> None:
        if not (is_number(alpha) and alpha > 0):
            raise ValueError(f"the alpha of MixUp is positive, for instance 0.2, not {alpha!r}")
        self.alpha = float(alpha)
        self.classes = _checked(classes, "MixUp")

    @on(StepBegin, AbstractTrainingPhase, traced=True)
    def mix(self, learner: LearnerView, phase: Phase) -> None:
        """Mix ``step.xs`` and ``step.ys`` with themselves in random order."""
        step, xp = learner.step, learner.xp
        ys = learner.tree.map(lambda leaf: probabilities(leaf, self.classes, xp, "MixUp"), step.ys)
        share = learner.random.beta(self.alpha, self.alpha, ())
        order = learner.random.permutation(_length(learner, ys))

        def mixed(leaf: Array) -> Array:
            if not is_float(leaf):
                raise CallbackError(f"MixUp mixes floating arrays, but a part of step.xs is of dtype {leaf.dtype}")
            other = xp.take(leaf, order, axis=0)
            return other + xp.astype(share, leaf.dtype) * (leaf - other)

        step.xs, step.ys = learner.tree.map(mixed, step.xs), learner.tree.map(mixed, ys)


class LabelSmoothing(Callback):
    """Train on labels that are a little uncertain (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567).

    A one-hot row, or one of probabilities, becomes ``(1 - epsilon) * row + epsilon / classes``. Integer labels become
    one-hot rows first. The loss takes probabilities then, as `losses.cross_entropy` does. Validation is left alone.

    Reads: step.ys
    Writes: step.ys
    Runs after: MixUp
    Handles: StepBegin (traced)

    Args:
        epsilon: in [0, 1].
        classes: number of classes, at least 1, for integer labels.

    Raises:
        ValueError: ``epsilon`` is not in [0, 1], or ``classes`` no such number.
        CallbackError: labels are integers and ``classes`` is not given.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> batch = (np.zeros((2, 4)), np.array([0, 3]))
        >>> learner = lc.testing.toy_learner([lc.LabelSmoothing(0.1, classes=4)], loss_fn=lc.losses.cross_entropy)
        >>> learner.run_step(lc.TrainingPhase(), batch, reads=("step.ys",)).ys.round(3)
        array([[0.925, 0.025, 0.025, 0.025],
               [0.025, 0.025, 0.025, 0.925]])
    """

    traced_reads = ("step.ys",)
    writes = ("step.ys",)
    run_after = (MixUp,)

    def __init__(self, epsilon: float = 0.1, classes: int | None = None) -> None:
        if not (is_number(epsilon) and 0 <= epsilon <= 1):
            raise ValueError(f"the epsilon of LabelSmoothing is in [0, 1], for instance 0.1, not {epsilon!r}")
        self.epsilon = float(epsilon)
        self.classes = _checked(classes, "LabelSmoothing")

    @on(StepBegin, AbstractTrainingPhase, traced=True)
    def smooth(self, learner: LearnerView, phase: Phase) -> None:
        """Move a share of each row of labels to all classes alike."""
        rows = probabilities(learner.step.ys, self.classes, learner.xp, "LabelSmoothing")
        learner.step.ys = rows * (1.0 - self.epsilon) + self.epsilon / rows.shape[-1]


def _checked(classes: int | None, class_name: str) -> int | None:
    if classes is not None and not is_whole(classes, least=1):
        raise ValueError(f"{class_name}(classes={classes!r}): a whole number, at least 1")
    return classes


def probabilities(ys: Array, classes: int | None, xp: ArrayNamespace, class_name: str) -> Array:
    """Convert labels to floats: integers to one-hot rows, floats stay as they are.

    Raises:
        CallbackError: they are integers, and nobody said how many classes there are.
    """
    if is_float(ys):
        return ys
    if classes is None:
        raise CallbackError(
            f"{class_name} got labels of dtype {ys.dtype} and shape {tuple(ys.shape)}, and has to know how many "
            f"classes there are: write {class_name}(..., classes=10)"
        )
    return xp.one_hot(ys, classes)


def _length(learner: LearnerView, tree: Tree) -> int:
    lengths: list[int] = []

    def measure(leaf: Array) -> Array:
        lengths.append(int(leaf.shape[0]))
        return leaf

    learner.tree.map(measure, tree)
    return lengths[0]
