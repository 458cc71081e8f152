"""Callbacks that cancel a scope when they hear an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import loopcore as lc

WIDER = {"step": lc.CancelStepException, "epoch": lc.CancelEpochException, "fit": lc.CancelFittingException}


def at(event: type[lc.Event], act: Callable[[], None], phase: Any = None, count: int = 1) -> lc.Callback:
    """A callback that acts when it hears an event for the ``count``-th time."""
    heard = 0

    def listen(learner: Any, phase: Any) -> None:
        nonlocal heard
        heard += 1
        if heard == count:
            act()

    return lc.FunctionCallback(listen, event, phase)


def cancel(scope: str, event: type[lc.Event], phase: Any = None, count: int = 1) -> lc.Callback:
    def act() -> None:
        raise WIDER[scope](f"{scope} is over")

    return at(event, act, phase, count)
