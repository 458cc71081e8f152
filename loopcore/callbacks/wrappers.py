"""Callbacks made from functions and from other callbacks."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopcore.callback import Callback, Listener, Resolution, RunFirst, Sleeper, on, wants_event
from loopcore.errors import CallbackError, EventError
from loopcore.events import EpochBegin, EpochEnd, Event, FitBegin, FitEnd

if TYPE_CHECKING:
    from loopcore.phases import Phase

_OUTSIDE_STEPS = (FitBegin, FitEnd, EpochBegin, EpochEnd)


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

    def call(self, learner: Any, phase: Any) -> None:
        """Call the function."""
        self.fn(learner, phase)


def _check_function(fn: Any) -> None:
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        came = f"one with the signature {inspect.signature(fn)}" if callable(fn) else repr(fn)
        raise CallbackError(f"FunctionCallback takes a function fn(learner, phase), not {came}") from None
    except ValueError:  # a builtin without a signature
        return


class Throttle(Sleeper):
    """A callback that hears one event only now and then; made by `throttle`.

    Of the events of a step it hears all or none: which one, it decides when the step begins.
    """

    def __init__(
        self,
        callback: Callback,
        event: type[Event],
        every: int | None,
        seconds: float | None,
        when: Callable[[Any], bool] | None = None,
    ) -> None:
        self.callback = callback
        self._when = when
        self._event = event
        self._every = every
        self._seconds = seconds
        self._counts: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._awake: dict[str, list[bool]] = {}  # of the steps that run, by phase, the innermost last
        self._of_steps = False  # whether it throttles an event of a step
        self.reads = callback.reads
        self.writes = callback.writes
        self.traced_reads = callback.traced_reads
        self.leaves = callback.leaves
        self.carries = callback.carries
        self.run_after = callback.run_after
        self.run_before = callback.run_before
        self.requires = callback.requires
        listeners: list[Listener] = []
        for index, listener in enumerate(callback.listeners):
            name = f"_call_{index}"
            setattr(self, name, self._caller(listener))
            listeners.append(replace(listener, method=name))
        listeners.append(Listener(FitBegin, None, False, "_restart"))
        self.listeners = tuple(listeners)

    def setup(self, learner: Any) -> None:
        """Set up the wrapped callback."""
        self.callback.setup(learner)

    def identity(self) -> Callback:
        """The wrapped callback."""
        return self.callback.identity()

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        """Answer for the wrapped callback."""
        return self.callback.resolve_conflict(other)

    def state_dict(self) -> dict[str, Any]:
        """The counts and the state of the wrapped callback."""
        return {"counts": dict(self._counts), "callback": self.callback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._counts = dict(state["counts"])
        self.callback.load_state_dict(state["callback"])

    def _caller(self, listener: Listener) -> Callable[..., None]:
        method = getattr(self.callback, listener.method)
        with_event = wants_event(method)
        throttled = issubclass(listener.event, self._event) or issubclass(self._event, listener.event)
        self._of_steps |= throttled and not issubclass(listener.event, _OUTSIDE_STEPS)

        def call(learner: Any, phase: Any, event: Any) -> None:
            if throttled and isinstance(event, self._event):
                steps = None if isinstance(event, _OUTSIDE_STEPS) else self._awake.get(phase.name)
                if not (steps[-1] if steps else self._due(listener.method, phase)):
                    return
            if with_event:
                method(learner, phase, event)
            else:
                method(learner, phase)

        return call

    def wake(self, phase: Any) -> tuple[type[Event], ...]:
        """Decide on the step that begins now."""
        inner = self.callback.wake(phase) if isinstance(self.callback, Sleeper) else ()
        if not self._of_steps:
            return inner
        heard = self._due("step", phase)
        self._awake.setdefault(phase.name, []).append(heard)
        return inner if heard else (*inner, self._event)

    def rest(self, phase: Any) -> None:
        """An event that is fired between two steps counts by itself."""
        if isinstance(self.callback, Sleeper):
            self.callback.rest(phase)
        if self._of_steps:
            self._awake[phase.name].pop()

    def _due(self, method: str, phase: Any) -> bool:
        if self._when is not None:
            return bool(self._when(phase))
        key = method if phase is None else f"{method}/{phase.name}"
        if self._every is not None:
            count = self._counts.get(key, 0) + 1
            self._counts[key] = count % self._every
            return count == self._every
        now = time.monotonic()
        if key in self._last and now - self._last[key] < (self._seconds or 0.0):
            return False
        self._last[key] = now
        return True

    def _restart(self, learner: Any, phase: Any) -> None:
        self._last.clear()


def throttle(
    callback: Callback,
    event: type[Event],
    *,
    every: int | None = None,
    seconds: float | None = None,
    when: Callable[[Any], bool] | None = None,
) -> Throttle:
    """Let a callback hear an event only every n-th time, at most once in some seconds, or on a condition.

    Other events reach it as before. It counts each phase by itself, keeps its count across fits, and keeps access,
    order, requirements and identity of the callback: ``learner.callbacks.get`` finds the wrapped one.

    Args:
        callback: what to wrap.
        event: class of the event to thin out.
        every: it hears the n-th, 2n-th, ... event; at least 1.
        seconds: it hears an event if the last it heard is at least so long ago; the first one always.
        when: it hears an event if ``when(phase)`` is true; asked when the step begins, of other events when they come.

    Returns:
        The wrapped callback.

    Raises:
        CallbackError: not exactly one of ``every``, ``seconds`` and ``when``, one out of range, or the callback is a
            class or does not listen to the event.
        EventError: ``event`` is no event class.

    Example:
        >>> import loopcore as lc
        >>> calls = []
        >>> note = lc.FunctionCallback(lambda learner, phase: calls.append(1), lc.StepEnd)
        >>> result = lc.testing.toy_learner(callbacks=[lc.throttle(note, lc.StepEnd, every=3)], steps=8).fit(1)
        >>> len(calls)
        2
    """
    if not isinstance(callback, Callback):
        raise CallbackError(f"throttle wraps an instance of Callback, not {callback!r}")
    if not (isinstance(event, type) and issubclass(event, Event)):
        raise EventError(f"throttle takes the class of an event, not {event!r}")
    if (every is None) + (seconds is None) + (when is None) != 2:
        raise CallbackError("throttle takes every=n, seconds=s or when=condition, one of them")
    if when is not None and not callable(when):
        raise CallbackError(f"when={when!r}: a function of the phase that says whether the callback hears the event")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise CallbackError(f"every={every!r}: a whole number of events, at least 1")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise CallbackError(f"seconds={seconds!r}: a time above 0")
    if not any(
        issubclass(listener.event, event) or issubclass(event, listener.event) for listener in callback.listeners
    ):
        raise CallbackError(f"{type(callback).__name__} does not listen to {event.__name__}: nothing to throttle")
    return Throttle(callback, event, every, seconds, when)
