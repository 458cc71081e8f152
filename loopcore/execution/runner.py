"""All that a step of one phase needs, decided once when the callbacks change, and how it is run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from loopcore.access.members import GuardedCallback
from loopcore.backend.protocol import DrawKey
from loopcore.dispatch import MutedEvents, warn_unfired
from loopcore.execution.carry import check_carry, check_started, detach_carry
from loopcore.execution.plan import Plan
from loopcore.execution.program_cache import Programs, programs_of
from loopcore.execution.segments import Undrawable
from loopcore.execution.step_handlers import StepHandlers
from loopcore.handles.randomness import override
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import Body, LearnerParts
from loopcore.state import State, place


class Runner(StepHandlers):
    """All that a step of one phase needs. Made once per phase and list of callbacks; called at every step.

    Args:
        learner, phase, plan, members: as of `StepHandlers`.
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
        super().__init__(learner, phase, plan, members)
        self.training = training
        self.carry: dict[str, Any] | None = None
        self._choose_programs({} if programs is None else programs)

    def _choose_programs(self, by_phase: dict[Hashable, Programs]) -> None:
        """Take the programs of an equal phase, or new ones, unless steps run eagerly."""
        backend = self.backend
        self.programs = None if self.plan.kind == "eager" else programs_of(self, by_phase)
        self.unchecked = self.programs is None or self.programs.first is self  # until a step was completed
        self.feeds = self.programs is not None and hasattr(backend, "feed")
        self.convert = backend.feed if self.feeds else backend.convert
        self._in_parts = bool(backend.compiles and not backend.replays)
        self.plain = self.programs is None and not (self.phase.carries or self._begin_traced or self._end_traced)

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
                try:
                    self.programs.run(self, body, key, state, reads, asleep)
                except Undrawable:  # nothing has been run: the host draws within the body, from this step on
                    self.run(body, key, state, reads, asleep)
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
