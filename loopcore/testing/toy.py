"""The smallest learner, and a callback that writes down what it hears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loopcore.callback import Callback, on
from loopcore.events import Event
from loopcore.learner import Learner
from loopcore.losses import mse
from loopcore.optimizers import SGD
from loopcore.phases import Phase


def toy_learner(
    callbacks: Sequence[Callback] = (),
    *,
    steps: int = 8,
    target: float = 1.0,
    quiet: bool = True,
    **options: Any,
) -> Learner:
    """A learner on the NumPy backend with one weight ``w`` that starts at 0 and learns ``target``.

    Each step sees the same batch of four ones, so with SGD(0.1) the loss is ``0.64 ** step`` and everything about a
    run can be computed by hand.

    Args:
        callbacks: as for the Learner.
        steps: batches an epoch.
        target: what the model should give; NaN makes the loss NaN.
        quiet: without the printers of the default callbacks.
        **options: any other argument of the Learner.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(steps=1)
        >>> result = learner.fit(3)
        >>> [round(loss, 4) for loss in learner.history["loss"]]
        [1.0, 0.64, 0.4096]
    """
    xs, ys = np.ones((4, 1)), np.full((4, 1), target)
    arguments: dict[str, Any] = {
        "model": (_forward, {"w": np.zeros(1)}),
        "loss_fn": mse,
        "optimizer": SGD(0.1),
        "data": ([(xs, ys)] * steps, None),
    }
    arguments.update(options)
    if quiet and arguments.get("default_callbacks", True):
        callbacks = [*callbacks, *_silent(callbacks)]
    return Learner(**arguments, callbacks=callbacks)


def _forward(params: dict[str, Any], xs: Any) -> Any:
    return xs * params["w"]


def _silent(callbacks: Sequence[Callback]) -> list[Callback]:
    from loopcore.callbacks.progress import MetricsPrinter, ProgressPrinter

    kinds = [type(callback.identity()) for callback in callbacks if isinstance(callback, Callback)]
    return [kind(quiet=True) for kind in (ProgressPrinter, MetricsPrinter) if kind not in kinds]


class Trace(Callback):
    """Writes down every event it hears, as ``(event, phase, outcome)``.

    Example:
        >>> import loopcore as lc
        >>> trace = lc.testing.Trace()
        >>> result = lc.testing.toy_learner(callbacks=[trace], steps=1).fit(1)
        >>> [event for event, phase, outcome in trace.events][:4]
        ['FitBegin', 'EpochBegin', 'StepBegin', 'LossBegin']
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, str | None, str | None]] = []

    @on(Event)
    def note(self, learner: Any, phase: Phase | None, event: Event) -> None:
        """Write it down."""
        outcome = getattr(event, "outcome", None)
        self.events.append((type(event).__name__, None if phase is None else phase.name, outcome))
