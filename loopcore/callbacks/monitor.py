"""Following one metric: what early stopping, checkpoints and plateaus look at when an epoch ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Literal

from loopcore._utils.history_names import PREFIXES, prefix_of
from loopcore.callbacks.unguarded import unguarded
from loopcore.errors import CallbackError
from loopcore.events import EpochEnd
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerView

Mode = Literal["min", "max"]


def monitored(learner: LearnerView, phase: Phase, event: EpochEnd, key: str) -> float | None:
    """The value of a metric for the epoch that ends, if it is one of the metric's phase and has a value.

    Predictions, and what is measured by hand outside of rounds, have none.

    Args:
        learner: the view of a callback that reads ``shared.metrics_epoch``.
        phase: of the epoch that ends.
        event: its EpochEnd.
        key: of the history, such as ``"val_loss"``.

    Raises:
        UnknownMetricError: a round is over, nobody measured it, and no phase that is still to come will; names what
            there is.
        CallbackError: its values are no numbers.
    """
    epoch = learner.epoch
    if event.outcome != "completed" or epoch.round is None:
        return None
    history = learner.history
    if key not in history:
        # Not before the round is over: validation comes after training, and its metrics are not known in the first
        # epoch.
        if epoch.last and not epoch.nested and not _may_come(learner, key):
            history.phase_of(key)  # raises
        return None
    if history.phase_of(key) != phase.name:
        return None
    value = epoch.metrics.get(key)
    if isinstance(value, list):
        raise CallbackError(f"{key!r} has a list of values in each round, and none of them is better: monitor a number")
    return None if value is None else float(value)


def _may_come(learner: LearnerView, key: str) -> bool:
    """Tell whether the phase of a metric has measured nothing yet and may do so in a later round."""
    measured = set(learner.shared.metrics_epoch)
    phase_names = {*(phase.name for phase in learner.phases), *PREFIXES, *measured}
    # The longest prefix wins: the training phase has none, which every key begins with.
    phase = max(
        (name for name in phase_names if key.startswith(prefix_of(name))), key=lambda name: len(prefix_of(name))
    )
    data = unguarded(learner).data  # only its keys: no callback has to declare that it reads data for a message
    return phase not in measured and (phase in data or any(p.name == phase and not p.data_key for p in learner.phases))


def unmeasured(class_name: str, key: str) -> str:
    """Word the warning for a fit that ends without a value of the metric."""
    return (
        f"{class_name} watched {key!r}, which had no value in this fit: run the phase that measures it in a round, or "
        "watch another metric"
    )


def ranked(values: Sequence[float | None], mode: Mode) -> list[int]:
    """Places of values, the best first; of equal ones the newer, and what is no number (NaN, None) last.

    Example:
        >>> ranked([3.0, float("nan"), 1.0, None, 1.0, float("inf")], "min")
        [4, 2, 0, 5, 3, 1]
    """

    def key(place: int) -> tuple[bool, float, int]:
        value = values[place]
        if value is None or isnan(value):
            # NaN compares false with everything, so that a plain sort would leave it anywhere.
            return True, 0.0, -place
        return False, value if mode == "min" else -value, -place

    return sorted(range(len(values)), key=key)


def worst(values: Sequence[float | None], mode: Mode, keep: int) -> list[int]:
    """List the places of what is neither among the best ``keep`` nor the latest.

    Example:
        >>> worst([2.0, 1.0, 3.0], "min", 1)
        [0]
    """
    return [place for place in ranked(values, mode)[keep:] if place != len(values) - 1]


def check_mode(mode: str) -> None:
    """Refuse a mode that is neither "min" nor "max"."""
    if mode not in ("min", "max"):
        raise CallbackError(f'mode={mode!r}: what is better, "min" or "max"')
