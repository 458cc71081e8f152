"""Following one metric: what early stopping, checkpoints and plateaus look at when an epoch ends."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, Literal

from loopcore.errors import CallbackError

Mode = Literal["min", "max"]


def monitored(learner: Any, phase: Any, event: Any, key: str) -> float | None:
    """The value of a metric for the epoch that ends, if it is one of the metric's phase and has a value.

    Args:
        learner: the view of a callback that reads ``shared.metrics_epoch``.
        phase: of the epoch that ends.
        event: its EpochEnd.
        key: of the history, such as ``"val_loss"``.

    Raises:
        UnknownMetricError: a round is over and nobody measured it; names what there is.
    """
    if event.outcome != "completed":
        return None
    history = learner.history
    if key not in history:
        if learner.epoch.last:
            history.phase_of(key)  # raises
        return None
    values: list[float | None] = history[key]
    return values[-1] if history.phase_of(key) == phase.name and values else None


def ranked(values: Sequence[float | None], mode: Mode) -> list[int]:
    """Places of values, the best first; of equal ones the newer, and what is no number (NaN, None) last.

    Example:
        >>> ranked([3.0, float("nan"), 1.0, None, 1.0, float("inf")], "min")
        [4, 2, 0, 5, 3, 1]
    """

    def key(place: int) -> tuple[bool, float, int]:
        value = values[place]
        if value is None or isnan(value):
            return True, 0.0, -place
        return False, value if mode == "min" else -value, -place

    return sorted(range(len(values)), key=key)


def worst(values: Sequence[float | None], mode: Mode, keep: int) -> list[int]:
    """Places of what is neither among the best ``keep`` nor the latest.

    Example:
        >>> worst([2.0, 1.0, 3.0], "min", 1)
        [0]
    """
    return [place for place in ranked(values, mode)[keep:] if place != len(values) - 1]


def check_mode(mode: Any) -> None:
    """Refuse a mode that is neither."""
    if mode not in ("min", "max"):
        raise CallbackError(f'mode={mode!r}: what is better, "min" or "max"')
