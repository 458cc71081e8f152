"""The loop itself: how a step and an epoch open, run and close.

A scope that was opened is closed once, whatever happens inside: its end event says how it ended. A cancel ends its
scope and is absorbed there; every other exception goes through unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from loopcore.backend.protocol import DrawKey
from loopcore.dispatch import NOBODY, Handler, deliver, merge
from loopcore.errors import CancelEpochException, CancelException, CancelScopeError, CancelStepException
from loopcore.events import EndEvent, EpochBegin, EpochEnd, Event, Outcome, StepBegin, StepEnd
from loopcore.loop.advice import advise
from loopcore.protocols import Body, Fire, LearnerParts
from loopcore.state import State, place

if TYPE_CHECKING:
    from loopcore.execution.runner import Runner
    from loopcore.phases.base import Phase

_STEP_BEGIN = StepBegin()
_EPOCH_BEGIN = EpochBegin()


class EpochInfo:
    """The running epoch of a phase, ``learner.epoch``; read-only for callbacks.

    Attributes:
        phase: its phase.
        length: number of batches, or None where the data does not tell.
        attempted, completed: steps so far.
        last: whether no other phase of the fit follows in this round.
        nested: whether it runs inside another epoch.
        round: the round it belongs to, counted from 1 over all fits; None for predictions, and for what is measured
            by hand outside of rounds.
        after: the round at which its values stand: its own, else the last one there was, 0 before the first.
        within: completed steps of the phase around it when it began; None for one that is not nested.
        outcome: how it ended; None while it runs.
        over: whether it ended for good: completed, or by a `CancelEpochException`, and not since the fit was stopped.
        metrics: what `Metrics` measured in it, by key of the history.
    """

    __slots__ = (
        *("after", "attempted", "completed", "last", "length", "metrics", "nested", "outcome", "over", "pending"),
        *("phase", "round", "within"),
    )

    def __init__(
        self,
        phase: Phase,
        length: int | None,
        *,
        last: bool,
        nested: bool,
        round: int | None = None,
        after: int = 0,
        within: int | None = None,
    ) -> None:
        self.phase = phase
        self.length = length
        self.last = last
        self.nested = nested
        self.round = round
        self.after = after if round is None else round
        self.within = within
        self.over = False
        self.metrics: dict[str, Any] = {}
        self.attempted = 0
        self.completed = 0
        self.outcome: Outcome | None = None
        self.pending: CancelException | None = None

    def __repr__(self) -> str:
        steps = self.completed if self.length is None else f"{self.completed} of {self.length}"
        return f"EpochInfo({self.phase.name!r}, round={self.round}, steps={steps}, outcome={self.outcome!r})"


def run_step(body: Body, learner: LearnerParts, phase: Phase, /, *, reads: Any = (), **initial_state: Any) -> State:
    """Run one step: StepBegin, the body, StepEnd. The primitive under every driver.

    Args:
        body: ``body(handle, state)`` or ``body(learner, handle, state)``; array code as in `Phase.step`.
        learner: whose callbacks listen.
        phase: which handlers listen, and the mode of the models.
        reads: step values to keep besides the declared ones, such as ``("step.y_pred",)``; ``("step",)`` for all.
        **initial_state: values of the state, converted to arrays of the backend.

    Returns:
        The state with the loss and every value that somebody declared to read. Its ``outcome`` tells whether the
        step was completed, skipped (cancelled at StepBegin) or cancelled.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner(default_callbacks=False)
        >>> def body(handle, state):
        ...     state.loss = learner.xp.mean((state.xs - 1.0) ** 2)
        >>> float(lc.run_step(body, learner, lc.ValidationPhase(), xs=np.array([3.0, -1.0])).loss)
        4.0
    """
    # By the signature and not by a try: a TypeError of the body itself would be taken for one of the call.
    count = _parameters(body) if callable(body) else 0
    if count < 2:
        raise TypeError(
            f"a body is a function body(handle, state) or body(learner, handle, state), not {body!r}: to run the step "
            "of a phase write learner.run_step(phase, batch)"
        )
    taking = _with_learner(body) if count == 2 else body
    return execute_step(taking, learner, phase, initial_state, learner.runs.names_of(reads))


def _with_learner(body: Body) -> Body:
    @wraps(body, assigned=(), updated=())  # a program is kept for the body itself
    def taking(learner: LearnerParts, handle: Callable[[Event], None], state: State) -> None:
        body(handle, state)

    return taking


def _parameters(body: Body) -> int:
    """Count the parameters that a body takes; those with a default are its own."""
    # A short way for functions, since a loop by hand asks at every step; `inspect.signature` takes some 10 us.
    code: CodeType | None = getattr(body, "__code__", None)
    if code is not None:
        count = code.co_argcount - len(getattr(body, "__defaults__", None) or ()) - int(inspect.ismethod(body))
        return 3 if code.co_flags & inspect.CO_VARARGS else count
    parameters = inspect.signature(body).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 3
    return sum(
        parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
        for parameter in parameters
    )


def execute_step(
    body: Body, learner: LearnerParts, phase: Phase, initial: Mapping[str, Any], reads: frozenset[str] = frozenset()
) -> State:
    """Run one step from the parts of a batch."""
    runs = learner.runs
    runner = runs.runners.get(id(phase)) or runs.runner_of(phase)
    outer = runs.present()
    state: State | None = None
    opened = has_begun = ended = closed = False
    asleep = NOBODY
    error: BaseException | None = None
    outcome: Outcome
    try:
        fresh: State = runs.open_step(runner, initial)
        state = fresh
        try:
            if phase.carries:
                runner.start_carry(state)
            if runner.sleepers:
                asleep = runner.wake()
            opened = True  # from here on somebody may have heard StepBegin
            if runner.begin:
                deliver(runner.begin, phase, _STEP_BEGIN)
            has_begun = True
            key = tuple.__new__(DrawKey, (learner.seed, runner.stream, runs.attempt))  # DrawKey(...): twice as long
            if runner.plain:
                runner.backend.run_body(body, key, learner, runner.handle, state)
            else:
                runner.run(body, key, state, reads, asleep)
            outcome = "completed"
            if runner.unchecked:
                runner.check_events()
            epoch = runs.epoch
            if epoch is not None and epoch.outcome is None:
                epoch.completed += 1
        except BaseException as caught:
            outcome, error = _broken_off(caught, has_begun, learner, phase, runner.name)
        state.outcome = outcome
        ended = True
        if opened and runner.end:
            error = _end_step(runner.end, phase, outcome, error)
        if opened and runner.sleepers:
            runner.rest()
        _leave_kept(runner, state, reads, initial)
        runs.close_step(outer, state)
        closed = True
    finally:
        if not closed:  # it was refused, or an interrupt hit the loop itself
            _give_up(runs, runner, phase, state if opened and not ended else None, outer)
    if error is not None:
        try:
            raise error
        finally:
            error = None  # the frame must not keep the exception that keeps the frame
    return state  # pyright: ignore[reportReturnType]  # without an error there is one


def _broken_off(
    error: BaseException, has_begun: bool, learner: LearnerParts, phase: Phase, name: str
) -> tuple[Outcome, BaseException | None]:
    """How a step ended that was not completed, and what goes on: a cancel of the step itself goes no further."""
    missed = learner.runs.missed
    missed[name] = missed.get(name, 0) + 1
    if isinstance(error, CancelException):
        return "cancelled" if has_begun else "skipped", None if isinstance(error, CancelStepException) else error
    if has_begun:
        advise(error, learner, phase)
    return "failed", error


def _end_step(
    handlers: tuple[Handler, ...], phase: Phase, outcome: Outcome, error: BaseException | None
) -> BaseException | None:
    """Deliver StepEnd; returns what goes on."""
    try:
        deliver(handlers, phase, StepEnd(outcome))
    except BaseException as second:
        return _beyond_step(merge(error, second))  # no name is bound to it: its traceback has this frame
    return error


def _beyond_step(error: BaseException) -> BaseException | None:
    """What goes on of an error at the end of a step: the step that a cancel would end is over."""
    return None if isinstance(error, CancelStepException) else error


def _leave_kept(runner: Runner, state: State, reads: frozenset[str], initial: Mapping[str, Any]) -> None:
    """Drop the values of a step that nobody declared to read; parts of its batch that stay become native."""
    values = state.__dict__
    if not (runner.keeps_all or "*" in reads):
        dropped = runner.learner.runs.record.dropped = values.keys() - (runner.kept | reads if reads else runner.kept)
        for name in dropped:
            del values[name]
    if runner.feeds and not values.keys().isdisjoint(initial):
        place(runner.backend, state)


def _give_up(runs: Any, runner: Runner, phase: Phase, state: State | None, outer: tuple[Any, ...]) -> None:
    """Close a step that did not close itself; with a state, StepEnd is still to be delivered."""
    try:
        if state is not None:
            state.outcome = "failed"
            deliver(runner.end, phase, StepEnd("failed"))
            runner.rest()
    finally:
        runs.close_step(outer, state)


def close_scope(
    handlers: tuple[Handler, ...], phase: Phase | None, event: EndEvent, error: BaseException | None
) -> BaseException | None:
    """Deliver an end event while ``error`` may be on its way; returns what goes on."""
    try:
        deliver(handlers, phase, event)
    except BaseException as second:
        return merge(error, second)
    return error


class run_epoch:  # noqa: N801 - read as a function: with run_epoch(learner, phase)
    """Open an epoch of a phase for hand-written loops; closes it once, however the block ends.

    A `CancelEpochException` raised in the block, or by a handler, ends the epoch and is absorbed. If a handler of
    EpochBegin raised it, the first step in the block raises it again, so that the block is left at once.

    Args:
        learner: whose callbacks listen.
        phase: the phase of the steps in the block.
        length: number of steps, where it is known; for progress bars.

    Raises:
        CancelScopeError: the block let a `CancelStepException` out; no step was open.

    Example:
        >>> import loopcore as lc
        >>> learner, phase = lc.testing.toy_learner(), lc.TrainingPhase()
        >>> with lc.run_epoch(learner, phase) as handle:
        ...     for batch in learner.data["training"]:
        ...         if learner.run_step(phase, batch).loss < 0.1:
        ...             raise lc.CancelEpochException("low loss reached")
        >>> learner.epoch.outcome
        'cancelled'
    """

    def __init__(self, learner: LearnerParts, phase: Phase, *, length: int | None = None) -> None:
        self._learner = learner
        self._phase = phase
        self._length = length
        self._has_begun = self._ended = False

    def __enter__(self) -> Fire:
        """Fire EpochBegin; returns ``handle``, which fires events of your own."""
        runs, phase = self._learner.runs, self._phase
        self._runner = runner = runs.runner_of(phase)
        # An epoch within another one of its phase must neither go on from what that one carries, nor take it away.
        self._outer, self._carry = runs.outside_epoch(), runner.carry
        entered = False
        try:
            self._info = runs.open_epoch(self, phase, self._length)
            runner.carry = None
            try:
                deliver(runner.scopes[EpochBegin], phase, _EPOCH_BEGIN)
                self._learner.heed_frozen()
                self._has_begun = True
            except CancelEpochException as cancel:
                # A context manager cannot skip its block. `Session.open_step` raises it at the first step in there.
                self._info.pending = cancel
            except BaseException as error:
                # Python calls no `__exit__` where `__enter__` raises, so the epoch is closed here.
                going = self._close(error)
                if going is error or going is None:
                    raise
                raise going from error
            entered = True
        finally:
            if not entered:
                self.abandon()
        return cast(Fire, runner.handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Fire EpochEnd with the outcome; absorb a CancelEpochException."""
        closed = False
        try:
            going = self._close(error)
            closed = True
        finally:
            if not closed:
                self.abandon()
        if going is None:
            return True
        if going is error:
            return False
        try:
            raise going
        finally:
            going = None

    def _close(self, error: BaseException | None) -> BaseException | None:
        info, runner = self._info, self._runner
        # It has left every step, so that nobody is there to absorb it: most likely it was meant for the epoch.
        if isinstance(error, CancelStepException):
            error = no_scope(error, "step")
        if error is None and info.pending is None:
            info.outcome = "completed"
        elif error is None or isinstance(error, CancelException):
            info.outcome = "cancelled" if self._has_begun else "skipped"
        else:
            info.outcome = "failed"
        info.pending = None
        # Not over is what a stopped fit or an error left: a checkpoint of it goes on within this epoch.
        info.over = error is None or isinstance(error, CancelEpochException)
        if isinstance(error, CancelEpochException):
            error = None
        # Before EpochEnd: what a handler runs there begins anew.
        runner.carry = self._carry if info.nested else None
        self._ended = True
        error = close_scope(runner.scopes[EpochEnd], self._phase, EpochEnd(info.outcome), error)
        self._learner.runs.last_epoch = info
        self._learner.runs.close_epoch(self._outer)
        # At the end of an epoch and not after the first step: an objective may reach a parameter in some steps only.
        if error is None and runner.training:
            self._learner.name_unreached()
        if isinstance(error, CancelStepException):
            return no_scope(error, "step")
        return None if isinstance(error, CancelEpochException) else error

    def abandon(self) -> None:
        """Close what of the epoch is still open, where an interrupt hit the loop itself."""
        runs, info = self._learner.runs, getattr(self, "_info", None)
        try:
            if info is not None and not self._ended:
                self._ended = True
                info.outcome, info.pending, self._runner.carry = "failed", None, self._carry if info.nested else None
                deliver(self._runner.scopes[EpochEnd], self._phase, EpochEnd("failed"))
        finally:
            runs.close_epoch(self._outer)


def no_scope(cancel: CancelException, scope: str) -> CancelScopeError:
    """Make the error for a cancel that left all scopes it could have ended."""
    by = f" (raised by {cancel.raised_by})" if cancel.raised_by else ""
    wider = "CancelEpochException or CancelFittingException" if scope == "step" else "CancelFittingException"
    # A new error in place of the cancel: it is no cancel any more, and whoever catches cancels must not swallow it.
    error = CancelScopeError(f"{type(cancel).__name__}{by}: no {scope} is open here to be cancelled. Raise {wider}")
    error.__cause__ = cancel
    return error
