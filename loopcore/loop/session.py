"""What is running: the open fit, epochs and steps of one learner, nested or not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any

from loopcore._utils import running_learner
from loopcore._utils.running_learner import Running
from loopcore.dispatch import Handler, Table
from loopcore.errors import DataError, OtherThreadError
from loopcore.events import Event
from loopcore.execution.plan import checked_reads, make_plan, step_names
from loopcore.execution.runner import Runner
from loopcore.loop.scopes import EpochInfo, run_epoch
from loopcore.phases.base import AbstractTrainingPhase, Phase, check_phase
from loopcore.phases.supervised import PredictionPhase
from loopcore.protocols import LearnerParts
from loopcore.state import RESERVED, State, StepRecord, record_of

# Runners keep their phases alive, so that the id of a phase is a safe key. The limit is for loops that make a phase for
# every step.
_MAX_RUNNERS = 64


class Session:
    """Bookkeeping of one learner: the present step and epoch, counts of attempts, and the runner of each phase.

    Nested runs put themselves in front and hand back what was there, so that they never touch the outer ones.

    Attributes:
        step: state of the running step, then of the last one.
        record: what the loop keeps of that step besides its values.
        epoch: the running epoch, then the last one.
        training: whether models run in training mode.
        runner: of the running step; None outside.
        nested_in_step: whether the running step is within another one, which may still need its arrays.
        last_epoch: the epoch that ended last, nested or not.
        attempt: number of the running step among the steps begun in its phase, from 0; names the random draws.
        attempts: steps begun, by phase name.
        missed: of these, the ones that were not completed.
        rounds: how many there were, over all fits and hand-written loops; the axis of what is measured by epochs.
        draws_outside_steps: random draws outside of steps, by owner.
        gradient: how gradients are taken, by the backend or, while a step is compiled, by its trace.
        drawn: while a step is compiled, what gives the draws of the host (of `same_random`) for a stream; else None.
        runners: by the id of their phase; made by `runner_of`.
        peeked: by the id of data somebody looked into: its state before the look, and what its next epoch iterates.
    """

    def __init__(self, learner: LearnerParts) -> None:
        self.step = State()
        self.record = record_of(self.step)
        self.epoch: EpochInfo | None = None
        self.training = False
        self.runner: Runner | None = None
        self.nested_in_step = False
        self.attempts: dict[str, int] = {}
        self.missed: dict[str, int] = {}
        self.rounds = 0
        self._round = 0  # the present one
        self._first: EpochInfo | None = None  # the first epoch of the present round
        self._by_hand: set[str] | None = None  # phases that a round of a hand-written loop had; None in one of a fit
        self.fitting = False
        self.last_epoch: EpochInfo | None = None
        self.last = True
        self.length: int | None = None
        self._learner = learner
        self.attempt: Any = 0
        # An attribute and no method, so that a trace can put its own in its place and an eager step pays for no look at
        # which.
        self.gradient = learner.backend.gradient
        self.drawn: Callable[[int, str, tuple[Any, ...]], Any] | None = None
        self._depth = 0
        self._owner: int | None = None  # the thread in which a step or a fit runs
        self.epochs: list[run_epoch] = []  # the open ones, also one whose EpochEnd is being delivered
        self._scope: AbstractContextManager[Any] | None = None
        self._running: Running | None = None  # the learner that ran when this one began
        self.draws_outside_steps: dict[str, int] = {}
        self.runners: dict[int, Runner] = {}
        self._programs: dict[Hashable, Any] = {}  # of phases and those equal to them
        self.peeked: dict[int, tuple[Any, Iterator[Any]]] = {}
        self._fit_table: Table | None = None

    def place_of(self, loader: Any) -> Any:
        """Return the state of a loader that keeps its place; if somebody looked at its next batch, that of before."""
        # The loader has moved on by one batch, which its next epoch will get all the same.
        begun = self.peeked.get(id(loader))
        return loader.state_dict() if begun is None else begun[0]

    def put_in_place(self, loader: Any, state: Any) -> None:
        """Let a loader go on from a state; what was looked at is forgotten."""
        self.peeked.pop(id(loader), None)
        loader.load_state_dict(state)

    @property
    def in_scope(self) -> bool:
        """Whether a fit, an epoch or a step is open."""
        return self._depth > 0

    @property
    def is_open(self) -> bool:
        """Whether an epoch or a step is running."""
        return self._open_epochs > 0 or self.runner is not None

    @property
    def _open_epochs(self) -> int:
        return len(self.epochs)

    def open(self) -> None:
        """Enter a scope; the outermost one also enters that of the backend."""
        # Once for all that is nested: what the adapter restores when it leaves is the state of before the user's call.
        if self._depth == 0:
            scope = self._learner.backend.scope()
            scope.__enter__()
            self._scope = scope
            self._running = running_learner.current()
            running_learner.enter(self._learner)
        self._depth += 1

    def close(self) -> None:
        """Leave the innermost scope."""
        self._close_to(self._depth - 1)

    def _close_to(self, depth: int) -> None:
        """Leave scopes until ``depth`` of them are open, which may be none."""
        if depth == 0 and self._scope is not None:
            # A scope may be closed in another context than it was opened in, where another learner is the running one.
            if running_learner.current() is self._learner:
                running_learner.enter(self._running)
            # First taken down, then left: an interrupt while the scope closes must not have it closed twice.
            scope, self._scope = self._scope, None
            scope.__exit__(None, None, None)
        self._depth = depth

    def mark(self) -> tuple[Any, ...]:
        """Note what is open, for `rewind`."""
        inner = (self.runner, self.training, self.attempt, self.nested_in_step)
        return (self._open_epochs, self._depth, self.fitting, self._owner, *inner)

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Close what was opened since a `mark` and is open still, as an interrupt of the loop itself leaves it."""
        epochs, depth, self.fitting, self._owner, *inner = mark
        try:
            # The innermost first, each with its EpochEnd, so that a callback hears an end for every begin it heard.
            while self._open_epochs > epochs:
                self.epochs[-1].abandon()
        finally:
            del self.epochs[epochs:]
            self.runner, self.training, self.attempt, self.nested_in_step = inner
            self._close_to(depth)

    def claim(self) -> None:
        """Let this thread run the learner.

        Raises:
            OtherThreadError: it runs in another one.
        """
        me = get_ident()
        if self._owner is None:
            self._owner = me
        elif self._owner != me:
            raise _other_thread()

    def present(self) -> tuple[Any, ...]:
        """Note what a step that begins puts out of its place, for `close_step`."""
        record, owner, depth = self.record, self._owner, self._depth
        return (self.step, record, self.training, self.runner, self.attempt, self.nested_in_step, owner, depth)

    def open_step(self, runner: Runner, initial: Mapping[str, Any]) -> State:
        """Begin a step: its state from the parts of the batch."""
        if self._owner is None:  # as `claim` does, without a call at every step
            self._owner = get_ident()
        elif self._owner != get_ident():
            raise _other_thread()
        # An epoch that a handler of its begin cancelled cannot leave the user's ``with`` block by itself. The first
        # step in the block does it.
        epoch = self.epoch
        if epoch is not None and epoch.outcome is None:
            if epoch.pending is not None:
                raise epoch.pending
            epoch.attempted += 1
        # A set operation, not a loop over the parts: this runs at every step.
        if not RESERVED.isdisjoint(initial):
            names = ", ".join(sorted(RESERVED & initial.keys()))
            raise DataError(f"a batch has a part named {names}, which the state of a step uses itself: rename it")
        state, record = State(), StepRecord()
        state._record = record  # pyright: ignore[reportPrivateUsage]  # a method would be a call at every step
        record.batch = batch = runner.convert(initial)
        if runner.feeds:
            record.fed = {}
        state.__dict__.update(batch)
        # Before the runner of this step takes the place of the one around it.
        self.nested_in_step = self.runner is not None
        if self._depth:
            self._depth += 1
        else:
            self.open()
        self.step, self.record, self.training, self.runner = state, record, runner.training, runner
        name, attempts = runner.name, self.attempts
        # Attempts, not completed steps, name the random draws: a step that is cancelled and tried again draws anew.
        self.attempt = attempts.get(name, 0)
        attempts[name] = self.attempt + 1
        return state

    def close_step(self, outer: tuple[Any, ...], state: State | None) -> None:
        """End a step, however much of it was opened. The outermost one stays readable as ``learner.step``."""
        # The batch is needed for nothing any more, and would stay in memory until the next step has replaced the state.
        if state is not None:
            self.record.batch = None
        step, record, self.training, self.runner, self.attempt, self.nested_in_step, self._owner, depth = outer
        # Within another step that one comes to the front again. The outermost stays readable.
        if self.runner is not None:
            self.step, self.record = step, record
        if depth:
            self._depth = depth
        else:
            self._close_to(0)

    @property
    def step_number(self) -> int:
        """Number of the running step among the completed ones of its phase, from 1."""
        assert self.runner is not None
        return int(self.attempt) + 1 - self.missed.get(self.runner.name, 0)

    def begin_round(self) -> None:
        """Begin the next round, of a fit or of a loop by hand."""
        self._round, self._first, self._by_hand = self.rounds + 1, None, None

    def end_round(self) -> None:
        """Count the present round, whatever became of its epochs."""
        self.rounds = self._round

    def rounds_to_keep(self) -> int:
        """Count the rounds for a checkpoint: one whose first epoch was left in the middle goes on with the run."""
        first = self._first
        # A fit that was stopped in the middle of a round goes on there after a load: its number is not used up yet.
        if first is None or first.round is None:
            return self.rounds
        return first.round if first.over else first.round - 1

    def set_rounds(self, rounds: int) -> None:
        """Go on from a number of rounds."""
        self.rounds, self._round, self._first, self._by_hand = rounds, rounds, None, None

    def _round_of(self, phase: Phase, nested: bool) -> int | None:
        """Decide which round an epoch belongs to; None for predictions, and for what is measured by hand outside."""
        # No metric of predictions belongs to a place on the axis.
        if isinstance(phase, PredictionPhase):
            return None
        if nested:
            return self.epoch.round if self.epoch is not None and self._open_epochs else None
        if self.fitting:
            return self._round
        # A loop by hand does not say where a round begins. A phase that this round has had begins the next one, and so
        # does a training phase, unless the epoch before it said that more would follow.
        phases_of_round, trains = self._by_hand, isinstance(phase, AbstractTrainingPhase)
        goes_on = not trains or (self.epoch is not None and not self.epoch.last)
        if phases_of_round is not None and phase.name not in phases_of_round and goes_on:
            phases_of_round.add(phase.name)
            return self._round
        if not trains:
            return None
        self.begin_round()
        self._by_hand = {phase.name}
        return self._round

    def _steps_around(self) -> int:
        """Count completed steps of the phase around an epoch that begins within another one, or within a step."""
        # The place of a validation every 100 steps on the axis of the training that it interrupts.
        around = self.epoch if self._open_epochs else None
        if around is not None and around.within is not None:
            return around.within
        name = around.phase.name if around is not None else self.runner.name if self.runner is not None else ""
        runs = self.runner is not None and self.runner.name == name and self.step.outcome != "completed"
        return self.attempts.get(name, 0) - self.missed.get(name, 0) - runs

    def open_epoch(self, scope: run_epoch, phase: Phase, length: int | None) -> EpochInfo:
        """Begin an epoch: its length, its round, and its place on the axis."""
        if self._owner is not None and self._owner != get_ident():
            raise _other_thread()
        nested = self.is_open
        # The driver knows the length of the data and says it this way, since the scope that is opened here is the
        # user's too.
        known_length, self.length = self.length if length is None else length, None
        number = self._round_of(phase, nested)
        steps_around = self._steps_around() if nested else None
        # Before anything else is opened: `rewind` closes what is in this list.
        self.epochs.append(scope)
        self.open()
        self.epoch = info = EpochInfo(
            phase, known_length, last=self.last, nested=nested, round=number, after=self.rounds, within=steps_around
        )
        if self._first is None and number is not None and not nested:
            self._first = info
        return info

    def close_epoch(self, outer: tuple[Any, ...]) -> None:
        """End an epoch, however much of it was opened. The outermost one stays readable as ``learner.epoch``."""
        epoch, step, record, depth, epochs = outer
        ended = self.epoch
        # An epoch that did nothing, skipped or interrupted before its first step, uses up no round.
        has_steps = ended is not None and (ended.completed > 0 or ended.outcome == "completed")
        if has_steps and ended is not None and not ended.nested and ended.round is not None:
            self.rounds = max(self.rounds, ended.round)  # also where the rest of the round is never run
        # As with steps: the epoch around comes to the front, the outermost one stays readable.
        if self.epoch is not None and self.epoch.nested:
            self.epoch, self.step, self.record = epoch, step, record
        del self.epochs[epochs:]
        self._close_to(depth)

    def outside_epoch(self) -> tuple[Any, ...]:
        """Note what an epoch that begins puts out of its place, for `close_epoch`."""
        return (self.epoch, self.step, self.record, self._depth, self._open_epochs)

    def names_of(self, reads: Sequence[str]) -> frozenset[str]:
        """Name the step values that the caller of ``run_step`` wants kept."""
        return frozenset(step_names(checked_reads("run_step", reads)))

    def runner_of(self, phase: Phase) -> Runner:
        """Return all that a step of a phase needs; it is made when it is first asked for."""
        runner = self.runners.get(id(phase))
        return self._make_runner(phase) if runner is None else runner

    def _make_runner(self, phase: Phase) -> Runner:
        check_phase(phase)
        learner, backend = self._learner, self._learner.backend
        compiles = backend.compiles and phase.compile and learner.compile is not False
        reason = f"the {backend.name} backend runs steps eagerly" if not backend.compiles else "compile=False"
        replays = compiles and bool(getattr(backend, "replays", False))
        plan = make_plan(
            list(learner.callbacks), phase, learner.reads, compiles=compiles, reason=reason, replays=replays
        )
        trains = isinstance(phase, AbstractTrainingPhase)
        runner = Runner(learner, phase, plan, learner.callbacks.members, trains, self._programs)
        if len(self.runners) >= _MAX_RUNNERS:  # a new phase object every step must not fill the memory
            # The programs stay: equal phases find them again.
            self.runners.clear()
        self.runners[id(phase)] = runner
        return runner

    def epoch_scope(self, phase: Phase) -> run_epoch:
        """Make what opens an epoch of a phase, and closes it."""
        return run_epoch(self._learner, phase)

    def forget_runners(self) -> None:
        """Drop what was decided for the callbacks of before, since they changed."""
        # Handlers, plans and the keys of programs all follow from the callbacks.
        self.runners.clear()
        self._programs.clear()
        self._fit_table = None

    def fit_handlers(self, event: type[Event]) -> tuple[Handler, ...]:
        """Return the handlers of FitBegin or FitEnd."""
        if self._fit_table is None:
            self._fit_table = Table(self._learner.callbacks.members, None, scopes=True)
        return self._fit_table[event]

    def draw_counts(self) -> tuple[str, int, dict[str, int]]:
        """Return phase name, attempt and draw counts by owner, for the next random draw."""
        if self.runner is None:
            return "", 0, self.draws_outside_steps
        record = self.record
        if record.draws is None:
            record.draws = {}
        return self.runner.name, self.attempt, record.draws


def _other_thread() -> OtherThreadError:
    return OtherThreadError(
        "this learner is running in another thread, and both would write the same weights and counts: wait until it is "
        "done, or make a Learner for each thread"
    )
