"""Who hears the steps of one phase, decided once when the callbacks change: what a program is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from zlib import crc32

from loopcore.access.members import GuardedCallback
from loopcore.callback import Callback, Sleeper
from loopcore.dispatch import Handler, MutedEvents, Table, deliver
from loopcore.events import SCOPE_EVENTS, Event, StepBegin, StepEnd, UpdateBegin
from loopcore.execution.plan import Plan, hears, may_fire
from loopcore.phases.base import Phase
from loopcore.protocols import Body, Fire, LearnerParts
from loopcore.state import State

_BODY_KEY = crc32(b"body")
_STEP_BEGIN = StepBegin()
_STEP_END = StepEnd("completed")


class StepHandlers:
    """The handlers of the steps of one phase, and what they need of a step; a `Runner` runs it.

    Args:
        learner, phase, plan: whose steps, and how they run.
        members: all callbacks with their views.

    Attributes:
        handle: what a body fires its events by; a trace puts its own in its place.
        scopes, inner: handlers by event, around the body and within it.
        begin, end: host handlers of StepBegin and StepEnd.
        guarded: whether somebody decides on each update.
        kept, deferred: step values that outlive the step, and those that are left for the host.
        keeps_all: whether all of them outlive it.
        traced: callbacks of the phase, each with its traced methods.
        changes_grads: whether one of them declares to write the gradients.
        sleepers: those that are asked whether they hear a step.
        stream: of the random draws of the body.
    """

    def __init__(self, learner: LearnerParts, phase: Phase, plan: Plan, members: Sequence[GuardedCallback]) -> None:
        self.learner = learner
        self.backend = cast(Any, learner.backend)
        self.handle: Fire = self._fire
        self.phase = phase
        self.plan = plan
        self.name = phase.name
        self.scopes = Table(members, type(phase), scopes=True)
        self.inner = Table(members, type(phase), scopes=False)
        self.begin, self._begin_traced = _host_and_traced(self.scopes[StepBegin])
        self.end, self._end_traced = _host_and_traced(self.scopes[StepEnd])
        self.guarded = bool(self.inner[UpdateBegin])
        self._cutting = self.inner.within_steps()
        self.kept = frozenset(plan.kept) | frozenset(phase.carries)
        self.deferred = frozenset(plan.deferred)
        self.keeps_all = "*" in plan.kept
        self._look_at([member.callback for member in members if hears(member.callback, phase)])
        self.stream = crc32(self.name.encode("utf-8", "surrogatepass"), _BODY_KEY)

    def _look_at(self, callbacks: Sequence[Callback]) -> None:
        """Note what the callbacks that hear the phase do to its steps."""
        self.traced = [(callback.identity(), _traced_methods(callback.identity())) for callback in callbacks]
        self.changes_grads = any(path in ("step", "step.grads") for callback in callbacks for path in callback.writes)
        self.sleepers = tuple(callback for callback in callbacks if isinstance(callback, Sleeper) and callback.sleeps)

    def _fire(self, event: Event) -> None:
        handlers = self.inner[type(event)]
        if handlers:
            deliver(handlers, self.phase, event)

    def wake(self) -> MutedEvents:
        """Let every sleeper decide on the step that begins; returns what matters to its program of what they say."""
        muted: list[tuple[int, type[Event]]] = []
        for listener_callback in self.sleepers:
            events = [
                listener.event
                for listener in listener_callback.listeners
                if listener.traced or _is_inner(listener.event)
            ]
            for event in listener_callback.wake(self.phase):
                if any(issubclass(event_heard, event) or issubclass(event, event_heard) for event_heard in events):
                    muted.append((id(listener_callback), event))
        return frozenset(muted)

    def rest(self) -> None:
        """The step has ended."""
        for callback in self.sleepers:
            callback.rest(self.phase)

    def awake(self, event: type[Event], asleep: MutedEvents) -> tuple[Handler, ...]:
        """The handlers of an event within a step, without those that a throttle put to sleep for this one."""
        handlers = self.inner[event]
        return tuple(h for h in handlers if not _sleeps(h, event, asleep)) if asleep else handlers

    def cut_by(self, asleep: MutedEvents, body: Body | None = None) -> bool:
        """Whether a host handler may cut the step; that of this body, if it is known."""
        is_body_of_phase = body is not None and body == self.phase.step
        events = (h.listener.event for h in self._cutting if not _sleeps(h, h.listener.event, asleep))
        return any(not is_body_of_phase or may_fire(self.phase, event) for event in events)

    def call(self, body: Body, state: State, handle: Callable[[Event], None]) -> None:
        """A step from its first traced handler to the last."""
        if self._begin_traced:
            deliver(self._begin_traced, self.phase, _STEP_BEGIN)
        body(self.learner, handle, state)
        if self._end_traced:
            state.outcome = "completed"
            deliver(self._end_traced, self.phase, _STEP_END)


def _host_and_traced(handlers: Sequence[Handler]) -> tuple[tuple[Handler, ...], tuple[Handler, ...]]:
    """The handlers that run on the host, and those that are part of a compiled step."""
    host = tuple(handler for handler in handlers if not handler.traced)
    return host, tuple(handler for handler in handlers if handler.traced)


def _traced_methods(callback: Callback) -> tuple[str, ...]:
    return tuple(listener.method for listener in callback.listeners if listener.traced)


def _sleeps(handler: Handler, event: type[Event], asleep: MutedEvents) -> bool:
    return any(callback_id == id(handler.callback) and issubclass(event, through) for callback_id, through in asleep)


def _is_inner(event: type[Event]) -> bool:
    return not issubclass(event, SCOPE_EVENTS)
