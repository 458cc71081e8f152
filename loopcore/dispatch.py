"""From ordered callbacks to flat tables: which handlers an event has in a phase, and how they are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from loopcore._utils.packages import CALLBACKS, is_ours
from loopcore.access.members import GuardedCallback
from loopcore.callback import Callback, Listener, name_of, wants_event
from loopcore.errors import CallbackError, CancelEpochException, CancelException, CancelFittingException, EventError
from loopcore.events import SCOPE_EVENTS, Event, StepBegin, StepEnd, UpdateBegin

if TYPE_CHECKING:
    from loopcore.access.lent_containers import LentContainers
    from loopcore.phases.base import Phase

# By the id of a callback, events that it sleeps through in a step.
MutedEvents: TypeAlias = frozenset[tuple[int, type[Event]]]
NOBODY: MutedEvents = frozenset()
_TRAINED = frozenset({"model", "params", "buffers", "optimizer"})


class Handler(NamedTuple):
    """A bound handler with the guarded view it is called with."""

    call: Callable[..., None]
    view: Any
    callback: Callback
    listener: Listener
    event: bool  # whether it takes the event as a third argument
    loans: LentContainers | tuple[()]  # containers it holds while it runs

    @property
    def traced(self) -> bool:
        """Whether it is part of a compiled step."""
        return self.listener.traced


class Table(dict[type[Event], tuple[Handler, ...]]):
    """Handlers by event type for one phase type, filled when an event is first fired. Its keys are what was fired."""

    def __init__(self, members: Sequence[GuardedCallback], phase: type[Phase] | None, scopes: bool) -> None:
        super().__init__()
        self._handlers = tuple(handler for member in members for handler in _handlers(member, phase))
        self._backend = next((member.backend for member in members), None)
        self._scopes = scopes

    def __missing__(self, event: type[Event]) -> tuple[Handler, ...]:
        if not issubclass(event, Event):
            argument = f"{event!r}" if not issubclass(event, type) else "an event class"
            raise EventError(f"handle takes an event, not {argument}: write handle(LossBegin()), with the brackets")
        if not self._scopes and issubclass(event, SCOPE_EVENTS):
            raise EventError(f"{event.__name__} is fired by the loop itself; handle takes the events within a step")
        # Only the first time that an event is fired: after that the table answers, without a call.
        handlers = [handler for handler in self._handlers if _is_heard(event, handler.listener.event)]
        handlers = [_shown(handler, event, self._backend) for handler in handlers]
        if issubclass(event, (StepBegin, StepEnd)):  # host handlers first when a step begins, traced ones when it ends
            handlers.sort(key=lambda handler: handler.traced is issubclass(event, StepBegin))
        self[event] = tuple(handlers)
        return self[event]

    def within_steps(self) -> tuple[Handler, ...]:
        """Return the host handlers of events within a step."""
        return tuple(h for h in self._handlers if not h.traced and not issubclass(h.listener.event, SCOPE_EVENTS))

    def unfired(self) -> tuple[Handler, ...]:
        """Return the handlers of events within a step that no step has fired so far."""
        fired = (*self, *SCOPE_EVENTS, UpdateBegin)
        return tuple(h for h in self._handlers if not any(issubclass(event, h.listener.event) for event in fired))


def _is_heard(event: type[Event], by: type[Event]) -> bool:
    """Whether a handler of one event hears another; the one of the update is heard by those alone who name it."""
    # A callback that hears every event is no reason to ask at each update, which costs a step. See
    # `StepHandlers.guarded`.
    return issubclass(event, by) and (by is not Event or not issubclass(event, UpdateBegin))


def _handlers(member: GuardedCallback, phase: type[Phase] | None) -> list[Handler]:
    handlers: list[Handler] = []
    for listener in member.callback.listeners:
        if listener.phase is None or (phase is not None and issubclass(phase, listener.phase)):
            call = getattr(member.callback, listener.method)
            view = member.traced_view if listener.traced else member.view
            loans = () if listener.traced else member.loans
            handlers.append(Handler(call, view, member.callback, listener, wants_event(call), loans))
    return handlers


def _shown(handler: Handler, event: type[Event], backend: Any) -> Handler:
    """A handler that is called with the present values in the user's own objects, if it may look at these.

    That is between steps, and within one if its callback reads what is trained.
    """
    if handler.traced or not hasattr(backend, "show"):
        return handler
    declared = (*handler.callback.reads, *handler.callback.writes)
    module = type(handler.callback.identity()).__module__
    is_plain = is_ours(module, CALLBACKS) and not module.endswith(".function")  # these keep no object of the user
    looks = not is_plain and any(path.partition(".")[0] in _TRAINED for path in declared)
    if not looks and (issubclass(event, (StepBegin, StepEnd)) or not issubclass(event, SCOPE_EVENTS)):
        return handler
    call = handler.call

    def showing(*args: Any) -> None:
        # On both sides of the call, so that the user's own objects are right while the handler looks, and what it
        # writes counts.
        backend.show()
        try:
            call(*args)
        finally:
            backend.take()

    return handler._replace(call=showing)


def warn_unfired(handlers: Iterable[Handler], phase: Phase) -> None:
    """Warn about handlers whose event a completed step did not fire."""
    for handler in handlers:
        warnings.warn(
            f"{name_of(handler.callback)}.{handler.listener.method} listens to {handler.listener.event.__name__}, but "
            f"a step of {type(phase).__name__} ended without firing it. Fire it in the body: "
            f"handle({handler.listener.event.__name__}()); learner.minimize fires BackwardEnd for you",
            stacklevel=2,
        )


def deliver(handlers: tuple[Handler, ...], phase: Phase | None, event: Event) -> None:
    """Call every handler of an event, then raise what they raised.

    All handlers hear the event, whatever an earlier one raised, so that every begin a callback hears has its end.
    An error goes before a cancel, a wider cancel before a narrower one, and an earlier one before a later one.
    """
    # Errors are collected, not raised, since a handler further down may have something open that this event closes.
    failure: BaseException | None = None
    for handler in handlers:
        if failure is not None and handler.listener.traced:
            continue  # traced handlers run only in steps that complete
        try:
            if handler.event:
                handler.call(handler.view, phase, event)
            else:
                handler.call(handler.view, phase)
        except BaseException as error:
            failure = merge(failure, _explained(error, handler, phase, event))
        # Most handlers lend nothing, and an empty dict is false: no call then.
        if handler.loans:
            failure = _settled(handler, phase, event, failure)
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # a frame and an exception that hold each other wait for the garbage collector


def _settled(
    handler: Handler, phase: Phase | None, event: Event, failure: BaseException | None
) -> BaseException | None:
    """Take back, after a handler, the containers that it got to see, with its changes; return what it raised."""
    try:
        handler.loans.settle()  # type: ignore[union-attr]  # it is not empty
    except BaseException as error:
        return merge(failure, _explained(error, handler, phase, event))
    return failure


def merge(first: BaseException | None, second: BaseException) -> BaseException:
    """Choose which of two exceptions goes on; a second error is noted on the first."""
    if first is None:
        return second
    if _rank(second) > _rank(first):
        return second
    if _rank(second) == _rank(first) and not isinstance(second, CancelException) and second is not first:
        first.add_note(f"then also raised: {type(second).__name__}: {second}")
    return first


def _rank(error: BaseException) -> int:
    if not isinstance(error, CancelException):
        return 3
    if isinstance(error, CancelFittingException):
        return 2
    return 1 if isinstance(error, CancelEpochException) else 0


def _explained(error: BaseException, handler: Handler, phase: Phase | None, event: Event) -> BaseException:
    name = name_of(handler.callback)
    if isinstance(error, CancelException):
        if handler.traced:
            # While a step is traced this exception would leave the trace, and at later steps nothing would raise it.
            wrong = CallbackError(
                f"{name}.{handler.listener.method} is traced and raised {type(error).__name__}: a compiled step cannot "
                "be cancelled from inside. Write the reason to step or shared and raise in a host handler"
            )
            wrong.__cause__ = error
            return wrong
        error.raised_by = error.raised_by or name
        return error
    where = "" if phase is None else f" of phase {phase.name!r}"
    error.add_note(f"raised by callback {name} at {type(event).__name__}{where}")
    return error
