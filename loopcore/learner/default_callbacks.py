"""The callbacks a learner has unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from loopcore.callback import Callback
from loopcore.callbacks.metrics import Metrics
from loopcore.callbacks.progress import MetricsPrinter, ProgressPrinter
from loopcore.callbacks.recorder import Recorder
from loopcore.callbacks.stopping import StopOnNaNLoss


def with_defaults(callbacks: Sequence[Callback]) -> list[Callback]:
    """The given callbacks, and each default one whose kind or whose shared state none of them provides."""
    user_callbacks = list(callbacks)
    for default in (Recorder(), Metrics(), ProgressPrinter(), MetricsPrinter(), StopOnNaNLoss()):
        if not any(_provides(callback, default) for callback in user_callbacks):
            user_callbacks.append(default)
    return user_callbacks


def _provides(callback: Callback, default: Callback) -> bool:
    if not isinstance(callback, Callback):
        return False  # reported, with what to write instead, when the list is ordered
    shared = {path for path in default.writes if path.startswith("shared.")}
    return isinstance(callback.identity(), type(default)) or bool(shared & set(callback.writes))
