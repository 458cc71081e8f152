"""Who listens decides how a step runs.

`make_plan` reads it off the handlers of a phase; a `Runner` holds what a step of one phase needs, decided once when
the callbacks change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast
from zlib import crc32

from loopcore.backend import DrawKey
from loopcore.callback import Callback, Sleeper, name_of, only_looks
from loopcore.carry import check_carry, check_started, detach_carry
from loopcore.dispatch import SCOPE_EVENTS, Asleep, Handler, Member, Table, deliver, warn_unfired
from loopcore.events import STEP_EVENTS, EpochBegin, Event, FitBegin, FitEnd, StepBegin, StepEnd, UpdateBegin
from loopcore.phases import AbstractTrainingPhase, Phase, PredictionPhase, TrainingPhase, ValidationPhase
from loopcore.programs import Programs, programs_of
from loopcore.randomness import override
from loopcore.state import RESERVED, place

if TYPE_CHECKING:
    from loopcore.learner import Learner
    from loopcore.loop import Body
    from loopcore.phases import Phase
    from loopcore.state import State

_BODY_KEY = crc32(b"body")
_OUTSIDE = (FitBegin, FitEnd, EpochBegin)
_FIRED: dict[Any, list[type[Event]]] = {  # within a step, by its body
    phase.step: [event for event, _ in STEP_EVENTS[phase.__name__] if not issubclass(event, SCOPE_EVENTS)]
    for phase in (TrainingPhase, ValidationPhase, PredictionPhase)
}


@dataclass(frozen=True)
class Plan:
    """How the steps of one phase run.

    Attributes:
        kind: ``fused`` (one program), ``split`` (cut where a host handler listens) or ``eager``.
        why: the reason, in words.
        cuts: events within the step that a host handler listens to, with the names of the callbacks.
        looks: names of callbacks among them that declare no writes, which the program need not be cut for.
        kept: step values that outlive the step, with the names of those who read them; ``"*"`` means all.
        left: step values that traced handlers leave for their own callback, gone when the step has ended.
        carried: shared paths and step values that pass from step to step.
    """

    kind: Literal["fused", "split", "eager"]
    why: str
    cuts: tuple[tuple[str, tuple[str, ...]], ...]
    looks: frozenset[str]
    kept: dict[str, tuple[str, ...]]
    left: dict[str, tuple[str, ...]]
    carried: tuple[str, ...]


def make_plan(
    callbacks: Sequence[Callback],
    phase: Phase,
    reads: Sequence[str],
    *,
    compiles: bool,
    why: str,
    replays: bool = False,
) -> Plan:
    """Choose the plan of a phase from who listens within its steps.

    Args:
        callbacks: all of the learner, in order.
        phase: the phase.
        reads: step paths the learner was asked to keep.
        compiles: whether the backend can compile a step and nobody said otherwise.
        why: why it cannot, for `Learner.explain`.
        replays: whether a program may go on while those who only look wait, see `CompilingBackend`.
    """
    listening = [callback for callback in callbacks if _hears(callback, phase)]
    cuts = _cuts(listening, phase)
    kept = _kept(listening, phase, reads)
    left = _by_name([(name_of(c), c.leaves) for c in listening])
    carried = (*(f"step.{name}" for name in phase.carries), *(path for c in listening for path in c.carries))
    writers = {name_of(c) for c in listening if not only_looks(c)}
    looks = frozenset(name for _, names in cuts for name in names if name not in writers) if replays else frozenset()
    if not compiles:
        return Plan("eager", why, cuts, looks, kept, left, carried)
    if cuts:
        return Plan("split", "host handlers listen within the step", cuts, looks, kept, left, carried)
    return Plan("fused", "no host handler listens within the step", cuts, looks, kept, left, carried)


def _hears(callback: Callback, phase: Phase) -> bool:
    """Whether it listens to the steps of a phase or to what follows them.

    Who listens to nothing but the begin of epochs and to the fit may look at the last step, whatever its phase was.
    """
    within = [listener for listener in callback.listeners if not issubclass(listener.event, _OUTSIDE)]
    return any(one.phase is None or isinstance(phase, one.phase) for one in within or callback.listeners)


def _cuts(callbacks: Sequence[Callback], phase: Phase) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: dict[str, list[str]] = {}
    for callback in callbacks:
        for listener in callback.listeners:
            inner = not issubclass(listener.event, SCOPE_EVENTS) and not listener.traced
            if (
                inner
                and _may_fire(phase, listener.event)
                and (listener.phase is None or isinstance(phase, listener.phase))
            ):
                found.setdefault(listener.event.__name__, []).append(name_of(callback))
    return tuple((event, tuple(dict.fromkeys(names))) for event, names in found.items())


def _may_fire(phase: Phase, event: type[Event]) -> bool:
    """Whether a step may fire an event; what the user's own one fires nobody knows before."""
    fired = _FIRED.get(getattr(phase.step, "__func__", None))
    return fired is None or any(issubclass(one, event) for one in fired)


_Who = dict[str, tuple[str, ...]]


def _kept(callbacks: Sequence[Callback], phase: Phase, reads: Sequence[str]) -> _Who:
    sources = [(name_of(c), (*c.reads, *(path for path in c.writes if path not in c.traced_reads))) for c in callbacks]
    return _by_name([("always", ("step.loss",)), *sources, (type(phase).__name__, phase.reads), ("Learner", reads)])


def _by_name(sources: Sequence[tuple[str, Sequence[str]]]) -> _Who:
    found: dict[str, list[str]] = {}
    for who, paths in sources:
        for name in step_names(paths):
            found.setdefault(name, []).append(who)
    return {name: tuple(dict.fromkeys(who)) for name, who in found.items()}


def step_names(paths: Iterable[str]) -> Iterator[str]:
    """Names of the step values among dotted paths, ``"*"`` for all; without those that belong to every state."""
    for path in paths:
        root, _, rest = path.partition(".")
        name = rest.partition(".")[0] or "*"
        if root == "step" and name not in RESERVED:
            yield name


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
        learner: Learner,
        phase: Phase,
        plan: Plan,
        members: Sequence[Member],
        training: bool,
        programs: dict[Hashable, Programs] | None = None,
    ) -> None:
        self.learner = learner
        self.backend = cast(Any, learner.backend)
        self.handle = self._fire  # fires an event within a step; while one is compiled, its trace does
        self.phase = phase
        self.plan = plan
        self.name = phase.name
        self.training = training
        self.scopes = Table(members, type(phase), scopes=True)
        self.inner = Table(members, type(phase), scopes=False)
        begin, end = self.scopes[StepBegin], self.scopes[StepEnd]
        self.begin = tuple(handler for handler in begin if not handler.traced)
        self.end = tuple(handler for handler in end if not handler.traced)
        self.guarded = bool(self.inner[UpdateBegin])  # whether somebody decides on each update
        self._begin_traced = tuple(handler for handler in begin if handler.traced)
        self._end_traced = tuple(handler for handler in end if handler.traced)
        self.kept = frozenset(plan.kept) | frozenset(phase.carries)
        self.left = frozenset(plan.left)
        self.keeps_all = "*" in plan.kept
        self.carry: dict[str, Any] | None = None
        own = [member.callback for member in members if _hears(member.callback, phase)]
        self.traced = [(one.identity(), _traced_methods(one.identity())) for one in own]
        self.changes_grads = any(path in ("step", "step.grads") for one in own for path in one.writes)
        self.programs = None if plan.kind == "eager" else programs_of(self, {} if programs is None else programs)
        self.unchecked = self.programs is None or self.programs.first is self  # until a step was completed
        self.feeds = self.programs is not None and hasattr(self.backend, "feed")
        self.convert = self.backend.feed if self.feeds else self.backend.convert
        self._in_parts = bool(self.backend.compiles and not self.backend.replays)
        self.sleepers = tuple(one for one in own if isinstance(one, Sleeper) and one.sleeps)
        self._cutting = self.inner.within_steps()
        traced = self._begin_traced or self._end_traced
        self.plain = self.programs is None and not (phase.carries or traced)
        self.stream = crc32(self.name.encode("utf-8", "surrogatepass"), _BODY_KEY)

    def _fire(self, event: Event) -> None:
        handlers = self.inner[type(event)]
        if handlers:
            deliver(handlers, self.phase, event)

    def wake(self) -> Asleep:
        """Let every sleeper decide on the step that begins; returns what matters to its program of what they say."""
        found: list[tuple[int, type[Event]]] = []
        for one in self.sleepers:
            within = [listener.event for listener in one.listeners if listener.traced or _is_inner(listener.event)]
            for event in one.wake(self.phase):
                if any(issubclass(heard, event) or issubclass(event, heard) for heard in within):
                    found.append((id(one), event))
        return frozenset(found)

    def rest(self) -> None:
        """The step has ended."""
        for one in self.sleepers:
            one.rest(self.phase)

    def awake(self, event: type[Event], asleep: Asleep) -> tuple[Handler, ...]:
        """The handlers of an event within a step, without those that a throttle put to sleep for this one."""
        handlers = self.inner[event]
        return tuple(h for h in handlers if not _sleeps(h, event, asleep)) if asleep else handlers

    def cut_by(self, asleep: Asleep, body: Body | None = None) -> bool:
        """Whether a host handler may cut the step; that of this body, if it is known."""
        own = body is not None and body == self.phase.step
        events = (h.listener.event for h in self._cutting if not _sleeps(h, h.listener.event, asleep))
        return any(not own or _may_fire(self.phase, event) for event in events)

    def run(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: Asleep) -> None:
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

    def _draws_on_host(self, asleep: Asleep, body: Body) -> bool:
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


def _sleeps(handler: Handler, event: type[Event], asleep: Asleep) -> bool:
    return any(who == id(handler.callback) and issubclass(event, through) for who, through in asleep)


def _traced_methods(callback: Callback) -> tuple[str, ...]:
    return tuple(listener.method for listener in callback.listeners if listener.traced)


def _is_inner(event: type[Event]) -> bool:
    return not issubclass(event, SCOPE_EVENTS)


_STEP_BEGIN = StepBegin()
_STEP_END = StepEnd("completed")
