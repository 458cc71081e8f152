"""What a program and its trace need of the runner that makes them: the one file that both may import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from loopcore.backend.protocol import DrawKey
from loopcore.callback import Callback
from loopcore.dispatch import Handler, MutedEvents
from loopcore.events import Event
from loopcore.execution.plan import Plan
from loopcore.phases.base import Phase
from loopcore.protocols import Body, Fire, LearnerParts
from loopcore.state import State


class StepRunner(Protocol):
    """A runner of the steps of one phase; see `loopcore.execution.runner.Runner`.

    Attributes:
        handle: what a body fires its events by; a trace puts its own in its place.
        kept, deferred: step values that outlive the step, and those that are left for the host.
        keeps_all: whether all of them do.
        traced: callbacks of the phase, each with its traced methods.
        stream: of the random draws of the body.
    """

    learner: LearnerParts
    backend: Any
    phase: Phase
    plan: Plan
    name: str
    kept: frozenset[str]
    deferred: frozenset[str]
    keeps_all: bool
    traced: list[tuple[Callback, tuple[str, ...]]]
    handle: Fire
    stream: int

    def run(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: MutedEvents) -> None:
        """Run a step by the plan of its phase."""
        ...

    def call(self, body: Body, state: State, handle: Callable[[Event], None]) -> None:
        """Run a step from its first traced handler to the last."""
        ...

    def awake(self, event: type[Event], asleep: MutedEvents) -> tuple[Handler, ...]:
        """Return the handlers that hear an event of this step."""
        ...

    def cut_by(self, asleep: MutedEvents, body: Body | None = None) -> bool:
        """Tell whether a host handler may cut the step."""
        ...
