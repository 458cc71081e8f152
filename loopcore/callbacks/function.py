"""A callback from one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loopcore.callback import Callback, Listener, on
from loopcore.errors import CallbackError
from loopcore.events import Event
from loopcore.protocols import LearnerView

if TYPE_CHECKING:
    from loopcore.phases.base import Phase


class FunctionCallback(Callback):
    """A callback from one function.

    Args:
        fn: ``fn(learner, phase)``, called with the guarded view.
        event: class of the event.
        phase: class of the phase. Default: every phase.
        reads: as `Callback.reads`.
        writes: as `Callback.writes`.
        traced: the function is pure array code and part of a compiled step.

    Raises:
        EventError: ``event`` is no event class.
        CallbackError: ``fn`` cannot be called with ``(learner, phase)``.

    Example:
        >>> import loopcore as lc
        >>> losses = []
        >>> keep = lc.FunctionCallback(
        ...     lambda learner, phase: losses.append(float(learner.step.loss)),
        ...     lc.StepEnd, lc.TrainingPhase, reads=("step.loss",),
        ... )
        >>> result = lc.testing.toy_learner(callbacks=[keep], steps=2).fit(1)
        >>> [round(loss, 2) for loss in losses]
        [1.0, 0.64]
    """

    def __init__(
        self,
        fn: Callable[[Any, Any], None],
        event: type[Event],
        phase: type[Phase] | None = None,
        *,
        reads: tuple[str, ...] = (),
        writes: tuple[str, ...] = (),
        traced: bool = False,
    ) -> None:
        on(event, phase, traced=traced)  # checks the arguments
        _check_function(fn)
        self.fn = fn
        self.reads = reads
        self.writes = writes
        self.listeners = (Listener(event, phase, traced, "call"),)

    def call(self, learner: LearnerView, phase: Phase) -> None:
        """Call the function."""
        self.fn(learner, phase)


def _check_function(fn: Callable[..., object]) -> None:
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        description = f"one with the signature {inspect.signature(fn)}" if callable(fn) else repr(fn)
        raise CallbackError(f"FunctionCallback takes a function fn(learner, phase), not {description}") from None
    except ValueError:  # a builtin without a signature
        return
