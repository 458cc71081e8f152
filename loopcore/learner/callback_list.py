"""The callbacks of a learner: ordered, guarded, and changed as a whole or not at all."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from loopcore.access.members import GuardedCallback, make_member
from loopcore.callback import Callback, name_of
from loopcore.errors import CallbackError
from loopcore.events import OUTSIDE_STEPS, FitBegin, FitEnd
from loopcore.ordering.declarations import overlaps
from loopcore.ordering.order import Edge, order_callbacks
from loopcore.protocols import LearnerParts
from loopcore.state import settle

C = TypeVar("C", bound=Callback)
_owners: weakref.WeakValueDictionary[int, LearnerParts] = weakref.WeakValueDictionary()  # by id: callbacks need no hash


class CallbackList:
    """Callbacks in the order in which they run. Every change is checked first and then made at once.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> learner.callbacks.remove(learner.callbacks.get(lc.StopOnNaNLoss))
        >>> learner.callbacks.get(lc.StopOnNaNLoss) is None
        True
    """

    def __init__(self, learner: LearnerParts, callbacks: Sequence[Callback]) -> None:
        self._learner = learner
        self._listed: list[Callback] = []
        self.members: tuple[GuardedCallback, ...] = ()
        self.edges: tuple[Edge, ...] = ()
        self._commit(list(callbacks))

    def add(self, *callbacks: Callback) -> None:
        """Add callbacks; where each runs follows from what it declares."""
        _check_apart("add", callbacks)
        self._commit([*self._listed, *callbacks])

    def remove(self, *callbacks: Callback) -> None:
        """Remove callbacks and the shared state that only they write; an error if another one reads it."""
        _check_apart("remove", callbacks)
        removed = [self._present(callback) for callback in callbacks]
        self._commit([callback for callback in self._listed if not any(callback is other for other in removed)])

    def replace(self, old: Callback, new: Callback) -> None:
        """Put a callback in the place of another one."""
        old = self._present(old)
        self._commit([new if callback is old else callback for callback in self._listed])

    def set(self, *callbacks: Callback) -> None:
        """Replace the whole list."""
        _check_apart("set", callbacks)
        self._commit(list(callbacks))

    def get(self, kind: type[C]) -> C | None:
        """The first callback of a class, also if it is wrapped; None if there is none."""
        return next((c for member in self.members if isinstance(c := member.callback.identity(), kind)), None)

    def __iter__(self) -> Iterator[Callback]:
        return (member.callback for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"CallbackList({', '.join(name_of(callback) for callback in self)})"

    def _present(self, callback: Callback) -> Callback:
        for candidate in self._listed:
            if candidate is callback or candidate.identity() is callback:
                return candidate
        raise CallbackError(f"{callback!r} is not a callback of this learner: pass the instance, from callbacks.get")

    def _commit(self, callbacks: list[Callback]) -> None:
        """Order, view and set up; the learner changes only when all of it worked."""
        learner = self._learner
        settle(learner.shared)
        shared = learner.shared.__dict__
        # Views are kept for those who stay: a callback may have kept the one that its `setup` got.
        member_by_id = {id(member.callback): member for member in self.members}
        removed = [member.callback for member in self.members if not any(c is member.callback for c in callbacks)]
        # Before the order is made: for who stays, what only the removed ones wrote is not there any more, and reading
        # it is the error that names a writer.
        stale = _only_written_by(removed, callbacks, shared)
        order = order_callbacks(callbacks, [f"shared.{name}" for name in shared if name not in stale])
        new = [callback for callback in order.callbacks if id(callback) not in member_by_id]
        for callback in new:
            _check_listeners(callback)
            _check_owner(callback, learner)
        members = tuple(member_by_id.get(id(c)) or make_member(learner, c) for c in order.callbacks)
        before = dict(shared)
        try:
            for name in stale:
                del shared[name]
            for member in members:
                if id(member.callback) not in member_by_id:
                    member.callback.setup(member.view)
                    member.loans.settle()
        except BaseException:
            shared.clear()
            shared.update(before)
            _let_go(learner, new)
            raise
        _let_go(learner, removed)
        for callback in removed:
            _owners.pop(id(callback.identity()), None)
        for callback in new:
            _owners[id(callback.identity())] = learner
        self._listed, self.members, self.edges = callbacks, members, order.edges
        learner.runs.forget_runners()


def _let_go(learner: LearnerParts, callbacks: Sequence[Callback]) -> None:
    for callback in (argument.identity() for argument in callbacks):
        if id(callback) in learner.holds:
            learner.hold(by=callback)
            del learner.holds[id(callback)]


def _check_apart(method: str, callbacks: Sequence[Any]) -> None:
    for argument in callbacks:
        if isinstance(argument, (list, tuple)):
            raise CallbackError(
                f"callbacks.{method} takes callbacks one by one, not a {type(argument).__name__} of them: "
                f"write callbacks.{method}(*callbacks)"
            )


def _only_written_by(removed: Sequence[Callback], remaining: Sequence[Callback], shared: dict[str, Any]) -> set[str]:
    def written(name: str, callbacks: Sequence[Callback]) -> bool:
        return any(overlaps(path, f"shared.{name}") for callback in callbacks for path in callback.writes)

    present = [callback for callback in remaining if isinstance(callback, Callback)]
    return {name for name in shared if written(name, removed) and not written(name, present)}


_HOOK = re.compile(
    r"(?:on|before|after)_(?:(fit|train|training|val|validation|valid|test|predict|epoch|step|batch|loss|backward)_)?"
    r"(?:(epoch|step|batch|loss|backward)_)?(begin|start|end)"
)


def _check_hooks(callback: Callback) -> None:
    """Refuse a method with the name of a hook of another library: nobody would call it."""
    methods = {listener.method for listener in callback.listeners}
    for name in dir(type(callback)):
        hook = _HOOK.fullmatch(name)
        if hook and (hook[1] or hook[2]) and name not in methods and callable(getattr(callback, name, None)):
            raise CallbackError(
                f"{name_of(callback)}.{name} is heard by nobody, since a handler says its event: write "
                f"@lc.on({_event_of_hook(*hook.groups())}) above def {name}(self, learner, phase), or give it another "
                "name"
            )


def _event_of_hook(scope: str | None, inner: str | None, moment: str) -> str:
    """The arguments of ``@lc.on`` for what the name of a hook means in the library it comes from."""
    word = inner or scope
    word = "step" if word == "batch" else word if word in ("epoch", "step", "loss", "backward") else "fit"
    event = f"{word.capitalize()}{'End' if moment == 'end' else 'Begin'}"
    event = "BackwardBegin" if event == "LossEnd" else event
    of = ", lc.AbstractValidationPhase" if scope in ("val", "validation", "valid", "test") and inner else ""
    return f"lc.{event}{of}"


def _check_listeners(callback: Callback) -> None:
    _check_hooks(callback.identity())
    for listener in callback.listeners:
        if listener.phase is not None and issubclass(listener.event, (FitBegin, FitEnd)):
            raise CallbackError(
                f"{name_of(callback)}.{listener.method} listens to {listener.event.__name__} of a phase, but a fit has "
                f"no phase: write @on({listener.event.__name__})"
            )
        if listener.traced and listener.event in OUTSIDE_STEPS:
            raise CallbackError(f"{name_of(callback)}.{listener.method} is traced, but runs outside steps")


def _check_owner(callback: Callback, learner: LearnerParts) -> None:
    inner = id(callback.identity())
    if _owners.get(inner, learner) is learner:
        return
    gc.collect()  # a learner that is gone may still wait for the collector
    if inner in _owners:
        raise CallbackError(
            f"{name_of(callback)} belongs to another learner, and two would mix their state: make a new one, or "
            "remove it there first with learner.callbacks.remove"
        )
