"""All that a step of one phase needs, decided once when the callbacks change, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast
from zlib import crc32

from loopcore.access.members import GuardedCallback
from loopcore.backend.protocol import DrawKey
from loopcore.callback import Callback, Sleeper
from loopcore.dispatch import Handler, MutedEvents, Table, deliver, warn_unfired
from loopcore.events import SCOPE_EVENTS, Event, StepBegin, StepEnd, UpdateBegin
from loopcore.execution.carry import check_carry, check_started, detach_carry
from loopcore.execution.plan import Plan, hears, may_fire
from loopcore.execution.program_cache import Programs, programs_of
from loopcore.handles.randomness import override
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import Body, Fire, LearnerParts
from loopcore.state import State, place

_BODY_KEY = crc32(b"body")


class Runner:
    """All that a step of one phase needs. Made once per phase and list of callbacks; called at every step.

    Args:
        learner, phase, plan: whose steps, and how they run.
        members: all callbacks with their views.
        training: whether models are in training mode.
        programs: of the phases that there were, by what they depend on; this one uses or adds to them.
    """

    def __init__(
        self,
        learner: LearnerParts,
        phase: Phase,
        plan: Plan,
        members: Sequence[GuardedCallback],
        training: bool,
        programs: dict[Hashable, Programs] | None = None,
    ) -> None:
        self.learner = learner
        self.backend = cast(Any, learner.backend)
        self.handle: Fire = self._fire  # fires an event within a step; while one is compiled, its trace does
        self.phase = phase
        self.plan = plan
        self.name = phase.name
        self.training = training
        self.scopes = Table(members, type(phase), scopes=True)
        self.inner = Table(members, type(phase), scopes=False)
        self.begin, self._begin_traced = _host_and_traced(self.scopes[StepBegin])
        self.end, self._end_traced = _host_and_traced(self.scopes[StepEnd])
        self.guarded = bool(self.inner[UpdateBegin])  # whether somebody decides on each update
        self.kept = frozenset(plan.kept) | frozenset(phase.carries)
        self.deferred = frozenset(plan.deferred)
        self.keeps_all = "*" in plan.kept
        self.carry: dict[str, Any] | None = None
        self._cutting = self.inner.within_steps()
        self._look_at([member.callback for member in members if hears(member.callback, phase)])
        self._choose_programs({} if programs is None else programs)
        self.stream = crc32(self.name.encode("utf-8", "surrogatepass"), _BODY_KEY)

    def _look_at(self, callbacks: Sequence[Callback]) -> None:
        """Note what the callbacks that hear the phase do to its steps."""
        self.traced = [(callback.identity(), _traced_methods(callback.identity())) for callback in callbacks]
        self.changes_grads = any(path in ("step", "step.grads") for callback in callbacks for path in callback.writes)
        self.sleepers = tuple(callback for callback in callbacks if isinstance(callback, Sleeper) and callback.sleeps)

    def _choose_programs(self, by_phase: dict[Hashable, Programs]) -> None:
        """Take the programs of an equal phase, or new ones, unless steps run eagerly."""
        backend = self.backend
        self.programs = None if self.plan.kind == "eager" else programs_of(self, by_phase)
        self.unchecked = self.programs is None or self.programs.first is cast(Any, self)  # until a step was completed
        self.feeds = self.programs is not None and hasattr(backend, "feed")
        self.convert = backend.feed if self.feeds else backend.convert
        self._in_parts = bool(backend.compiles and not backend.replays)
        self.plain = self.programs is None and not (self.phase.carries or self._begin_traced or self._end_traced)

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

    def run(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: MutedEvents) -> None:
        """Run the body by its plan, with carries, and the traced handlers of StepBegin and StepEnd around it."""
        carries = self.phase.carries
        before = {name: state.__dict__[name] for name in carries if name in state.__dict__} if carries else {}
        try:
            if self.programs is None or (override.get() is not None and not self._draws_on_host(asleep, body)):
                if self.feeds:
                    place(self.backend, state)
                self.backend.run_body(self.call, key, body, state, self.handle)
            elif self._in_parts and self.cut_by(asleep, body):
                self.backend.run_parts(self.call, key, body, state, self.handle)
            else:
                self.programs.run(self, body, key, state, reads, asleep)
        finally:
            if carries:
                self.carry = detach_carry(self.backend, state, carries)
        if carries:
            check_carry(self.backend, self.phase, before, state)

    def _draws_on_host(self, asleep: MutedEvents, body: Body) -> bool:
        """Whether a program may have what the host draws before it as inputs."""
        return (
            self.programs is not None and self.programs.drawable and not (self._in_parts and self.cut_by(asleep, body))
        )

    def call(self, body: Body, state: State, handle: Callable[[Event], None]) -> None:
        """A step from its first traced handler to the last."""
        if self._begin_traced:
            deliver(self._begin_traced, self.phase, _STEP_BEGIN)
        body(self.learner, handle, state)
        if self._end_traced:
            state.outcome = "completed"
            deliver(self._end_traced, self.phase, _STEP_END)

    def check_events(self) -> None:
        """After the first completed step: no handler may wait for an event that never comes."""
        self.unchecked = False
        trains = isinstance(self.phase, AbstractTrainingPhase)  # which a handler for any phase may mean
        unfired = (h for h in self.inner.unfired() if trains or h.listener.phase not in (None, Phase))
        warn_unfired(unfired, self.phase)

    def start_carry(self, state: State) -> None:
        """Give a step what the one before it left; the first of an epoch starts anew."""
        if self.carry is None:
            if self.feeds:
                place(self.backend, state)
            self.phase.start(self.learner, state)
            check_started(self.phase, state)
        else:
            state.__dict__.update(self.carry)


def _host_and_traced(handlers: Sequence[Handler]) -> tuple[tuple[Handler, ...], tuple[Handler, ...]]:
    """The handlers that run on the host, and those that are part of a compiled step."""
    host, traced = (tuple(handler for handler in handlers if handler.traced is flag) for flag in (False, True))
    return host, traced


def _traced_methods(callback: Callback) -> tuple[str, ...]:
    return tuple(listener.method for listener in callback.listeners if listener.traced)


def _sleeps(handler: Handler, event: type[Event], asleep: MutedEvents) -> bool:
    return any(callback_id == id(handler.callback) and issubclass(event, through) for callback_id, through in asleep)


def _is_inner(event: type[Event]) -> bool:
    return not issubclass(event, SCOPE_EVENTS)


_STEP_BEGIN = StepBegin()


_STEP_END = StepEnd("completed")
