"""Parameters that rest for some epochs."""

from __future__ import annotations

from collections.abc import Mapping

from loopcore._utils.validation import is_whole
from loopcore.callback import NO_CONFLICT, Callback, Resolution, on
from loopcore.errors import CallbackError
from loopcore.events import EpochBegin
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView


class Freeze(Callback):
    """Leave some of the trained parameters as they are, at first or for good.

    No update touches them: neither decay nor momentum moves them, the optimizer keeps its state of them, and no
    gradient of them is computed, see `Learner.hold`. Buffers, such as BatchNorm's statistics, go on changing. A
    compiled step is compiled anew when they thaw. Several go together, also with `Learner.hold`; one that is removed
    lets go what it held. What is never trained needs no callback but no optimizer: pass a
    dict, ``optimizer={"head": lc.Adam(1e-3)}``.

    Reads: shared.history
    Writes: optimizer
    Handles: EpochBegin

    Args:
        *patterns: of full paths, as in ``fnmatch``: ``"encoder.*"``, ``"*bias"``; or one dict from pattern to
            ``epochs``, to thaw one after the other.
        epochs: completed training epochs after which they are trained like all others; None is never.

    Raises:
        CallbackError: there is no pattern, or ``epochs`` is no whole number.
        WeightsError: a pattern matches no trained parameter.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner([lc.Freeze("w", epochs=1)], steps=1)
        >>> result = learner.fit(2)
        >>> learner.history["loss"], learner.params.value["w"]
        ([1.0, 1.0], array([0.2]))
    """

    reads = ("shared.history",)
    writes = ("optimizer",)

    def __init__(self, *patterns: str | Mapping[str, int | None], epochs: int | None = None) -> None:
        first = patterns[0] if patterns else {}
        if isinstance(first, Mapping) and len(patterns) == 1:
            self.epochs = dict(first)
        else:
            self.epochs = {pattern: epochs for pattern in patterns if isinstance(pattern, str)}
        if not self.epochs or len(self.epochs) < len(patterns):
            raise CallbackError('Freeze takes patterns of paths, such as Freeze("encoder.*"), or one dict of them')
        for pattern, end in self.epochs.items():
            if end is not None and not is_whole(end, least=0):
                raise CallbackError(
                    f"Freeze holds {pattern!r} for epochs={end!r}: a whole number, at least 0, or None for good"
                )

    def setup(self, learner: LearnerView) -> None:
        """Hold all parameters that the patterns match."""
        learner.hold(*self.epochs, by=self)

    def resolve_conflict(self, other: Callback) -> Resolution:
        """Get along with every callback: it decides before an epoch, and touches no array."""
        return NO_CONFLICT

    @on(EpochBegin, AbstractTrainingPhase)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Hold the parameters whose epochs are not over yet, and let the others be trained."""
        completed = learner.shared.history[phase].epochs
        patterns = (pattern for pattern, epochs in self.epochs.items() if epochs is None or completed < epochs)
        learner.hold(*patterns, by=self)
