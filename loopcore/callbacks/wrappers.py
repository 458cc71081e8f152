"""Callbacks made from other callbacks, which hear some of their events only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loopcore._utils.validation import is_number, is_whole
from loopcore.callback import Callback, Listener, Resolution, RunFirst, Sleeper, wants_event
from loopcore.errors import CallbackError, EventError
from loopcore.events import OUTSIDE_STEPS, Event, FitBegin
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerView, StateDict


class Wrapper(Sleeper):
    """Base of the wrappers: a callback that hears an event only when they say so, and everything else as before.

    Of the events of a step it hears all or none: which one, that is decided when the step begins. Access, order,
    requirements, conflicts, identity and state are those of the callback inside.

    Args:
        callback: what to wrap.
        event: class of the event to thin out.
    """

    def __init__(self, callback: Callback, event: type[Event]) -> None:
        _check(type(self).__name__, callback, event)
        self.callback = callback
        self._event = event
        self._awake: dict[str, list[bool]] = {}  # of the steps that run, by phase, the innermost last
        self._of_steps = False  # whether it thins out an event of a step
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
            # A method for each listener, since one method of the callback may listen to several events, not all of them
            # thinned.
            setattr(self, name, self._caller(listener))
            listeners.append(replace(listener, method=name))
        self.listeners = tuple(listeners)

    def _hears(self, key: str, phase: Phase | None) -> bool:
        """Decide whether the callback hears what comes now: the event of one handler, or a step."""
        raise TypeError(f"{type(self).__name__} does not say what it hears: define _hears(self, key, phase)")

    def setup(self, learner: LearnerView) -> None:
        """Set up the wrapped callback."""
        self.callback.setup(learner)

    def identity(self) -> Callback:
        """Return the wrapped callback, however deep it is wrapped."""
        return self.callback.identity()

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        """Answer for the wrapped callback."""
        return self.callback.resolve_conflict(other)

    def state_dict(self) -> StateDict:
        """Return the state of the wrapped callback."""
        return {"callback": self.callback.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back the state of the wrapped callback."""
        self.callback.load_state_dict(state["callback"])

    def _caller(self, listener: Listener) -> Callable[..., None]:
        method = getattr(self.callback, listener.method)
        with_event = wants_event(method)
        # Either way round: a handler of every event hears the one that is thinned out, and others that are not.
        thinned = issubclass(listener.event, self._event) or issubclass(self._event, listener.event)
        self._of_steps |= thinned and not issubclass(listener.event, OUTSIDE_STEPS)

        def call(learner: LearnerView, phase: Phase | None, event: Event) -> None:
            if thinned and isinstance(event, self._event):
                steps = None if phase is None or isinstance(event, OUTSIDE_STEPS) else self._awake.get(phase.name)
                if not (steps[-1] if steps else self._hears(listener.method, phase)):
                    return
            if with_event:
                method(learner, phase, event)
            else:
                method(learner, phase)

        return call

    def wake(self, phase: Phase) -> tuple[type[Event], ...]:
        """Decide whether the callback hears the step that begins, and say what it sleeps through."""
        inner = self.callback.wake(phase) if isinstance(self.callback, Sleeper) else ()
        # Nothing is counted where no event of a step is thinned out: the count would run ahead.
        if not self._of_steps:
            return inner
        hears = self._hears("step", phase)
        self._awake.setdefault(phase.name, []).append(hears)
        return inner if hears else (*inner, self._event)

    def rest(self, phase: Phase) -> None:
        """End the step: an event that is fired between two steps is decided on by itself."""
        if isinstance(self.callback, Sleeper):
            self.callback.rest(phase)
        if self._of_steps:
            self._awake[phase.name].pop()


def _check(name: str, callback: object, event: object) -> None:
    if not isinstance(callback, Callback):
        raise CallbackError(f"{name} wraps an instance of Callback, not {callback!r}")
    if not (isinstance(event, type) and issubclass(event, Event)):
        raise EventError(f"{name} takes the class of an event, not {event!r}")
    if not any(
        issubclass(listener.event, event) or issubclass(event, listener.event) for listener in callback.listeners
    ):
        raise CallbackError(f"{type(callback).__name__} does not listen to {event.__name__}: {name} changes nothing")


class ConditionalCallback(Wrapper):
    """A callback that hears its events only while a condition holds.

    Order, access, conflicts and identity stay those of the callback: ``learner.callbacks.get`` finds it.

    Args:
        callback: what to wrap.
        condition: ``condition(learner, phase) -> bool`` with the view of the callback; asked when a step begins, of
            events outside steps when they come. The phase is None when a fit begins or ends.
        event: class of the events it is asked for; others always reach the callback. Default: all.
        reads: what the condition reads besides, as `Callback.reads`.

    Raises:
        CallbackError: the callback is none, or does not listen to the event; or the condition cannot be called.
        EventError: ``event`` is no event class.

    Example:
        >>> import loopcore as lc
        >>> calls = []
        >>> note = lc.FunctionCallback(lambda learner, phase: calls.append(learner.attempt), lc.StepEnd)
        >>> later = lc.ConditionalCallback(note, lambda learner, phase: learner.attempt >= 2)
        >>> result = lc.testing.toy_learner(callbacks=[later], steps=4).fit(1)
        >>> calls
        [2, 3]
    """

    def __init__(
        self,
        callback: Callback,
        condition: Callable[[Any, Any], bool],
        event: type[Event] = Event,
        *,
        reads: tuple[str, ...] = (),
    ) -> None:
        super().__init__(callback, event)
        if not callable(condition):
            raise CallbackError(f"condition={condition!r}: a function condition(learner, phase) -> bool")
        self.condition = condition
        # The condition gets the view of the callback, which opens what is declared here.
        self.reads = (*callback.reads, *reads)
        self._view: LearnerView | None = None

    def setup(self, learner: LearnerView) -> None:
        """Set up the wrapped callback, and keep the view that the condition gets."""
        self._view = learner
        super().setup(learner)

    def _hears(self, key: str, phase: Phase | None) -> bool:
        return bool(self.condition(self._view, phase))


class Throttle(Wrapper):
    """A callback that hears one event only now and then; made by `throttle`."""

    def __init__(
        self,
        callback: Callback,
        event: type[Event],
        every: int | None,
        seconds: float | None,
        condition: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(callback, event)
        self._condition = condition
        self._every = every
        self._seconds = seconds
        self._counts: dict[str, int] = {}
        self._last: dict[str, float] = {}
        # The clock starts anew: the time between two fits is no time of training.
        self.listeners = (*self.listeners, Listener(FitBegin, None, False, "_restart"))

    def state_dict(self) -> StateDict:
        """Return the counts of events, and the state of the wrapped callback."""
        return {"counts": dict(self._counts), **super().state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back the counts of events, and the state of the wrapped callback."""
        self._counts = dict(state["counts"])
        super().load_state_dict(state)

    def _hears(self, key: str, phase: Phase | None) -> bool:
        if self._condition is not None:
            return bool(self._condition(phase))
        key = key if phase is None else f"{key}/{phase.name}"
        if self._every is not None:
            count = self._counts.get(key, 0) + 1
            # Reset and not counted on: a checkpoint then has a number below n, whatever the length of the run.
            self._counts[key] = count % self._every
            return count == self._every
        time_now = time.monotonic()
        if key in self._last and time_now - self._last[key] < (self._seconds or 0.0):
            return False
        self._last[key] = time_now
        return True

    def _restart(self, learner: LearnerView, phase: Phase) -> None:
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
    _check("throttle", callback, event)
    if (every is None) + (seconds is None) + (when is None) != 2:
        raise CallbackError("throttle takes every=n, seconds=s or when=condition, one of them")
    if when is not None and not callable(when):
        raise CallbackError(f"when={when!r}: a function of the phase that says whether the callback hears the event")
    if every is not None and not is_whole(every, least=1):
        raise CallbackError(f"every={every!r}: a whole number of events, at least 1")
    if seconds is not None and not (is_number(seconds) and seconds > 0):
        raise CallbackError(f"seconds={seconds!r}: a time above 0")
    return Throttle(callback, event, every, seconds, when)
