"""Who listens decides how a step runs: the plan of a phase, read off the handlers of its callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loopcore.callback import Callback, is_observer, name_of
from loopcore.events import SCOPE_EVENTS, STEP_EVENTS, EpochBegin, Event, FitBegin, FitEnd
from loopcore.ordering.declarations import ROOTS
from loopcore.phases.base import Phase
from loopcore.phases.supervised import PredictionPhase, TrainingPhase, ValidationPhase
from loopcore.state import RESERVED

if TYPE_CHECKING:
    from loopcore.phases.base import Phase

_NOT_AFTER_A_STEP = (FitBegin, FitEnd, EpochBegin)
_FIRED: dict[Any, list[type[Event]]] = {  # within a step, by its body
    # By the function itself: a class that defines a step of its own is not among them, and may fire anything.
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
        deferred: step values that traced handlers leave for their own callback, gone when the step has ended.
        carried: shared paths and step values that pass from step to step.
    """

    kind: Literal["fused", "split", "eager"]
    why: str
    cuts: tuple[tuple[str, tuple[str, ...]], ...]
    looks: frozenset[str]
    kept: dict[str, tuple[str, ...]]
    deferred: dict[str, tuple[str, ...]]
    carried: tuple[str, ...]


def make_plan(
    callbacks: Sequence[Callback],
    phase: Phase,
    reads: Sequence[str],
    *,
    compiles: bool,
    reason: str,
    replays: bool = False,
) -> Plan:
    """Choose the plan of a phase from who listens within its steps.

    Args:
        callbacks: all of the learner, in order.
        phase: the phase.
        reads: step paths the learner was asked to keep.
        compiles: whether the backend can compile a step and nobody said otherwise.
        reason: why it cannot, for `Learner.explain`.
        replays: whether a program may go on while those who only look wait, see `CompilingBackend`.
    """
    listening = [callback for callback in callbacks if hears(callback, phase)]
    cuts = _cuts(listening, phase)
    kept = _kept(listening, phase, reads)
    deferred = _by_name([(name_of(c), c.leaves) for c in listening])
    carried = (*(f"step.{name}" for name in phase.carries), *(path for c in listening for path in c.carries))
    # Who declares a write could change what comes after the event, so the step has to wait for it.
    writers = {name_of(c) for c in listening if not is_observer(c)}
    looks = frozenset(name for _, names in cuts for name in names if name not in writers) if replays else frozenset()
    if not compiles:
        return Plan("eager", reason, cuts, looks, kept, deferred, carried)
    if cuts:
        return Plan("split", "host handlers listen within the step", cuts, looks, kept, deferred, carried)
    return Plan("fused", "no host handler listens within the step", cuts, looks, kept, deferred, carried)


def hears(callback: Callback, phase: Phase) -> bool:
    """Tell whether a callback listens to the steps of a phase or to what follows them.

    Who listens to nothing but the begin of epochs and to the fit may look at the last step, whatever its phase was.
    """
    listeners = [listener for listener in callback.listeners if not issubclass(listener.event, _NOT_AFTER_A_STEP)]
    return any(
        candidate.phase is None or isinstance(phase, candidate.phase) for candidate in listeners or callback.listeners
    )


def _cuts(callbacks: Sequence[Callback], phase: Phase) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names_by_event: dict[str, list[str]] = {}
    for callback in callbacks:
        for listener in callback.listeners:
            inner = not issubclass(listener.event, SCOPE_EVENTS) and not listener.traced
            if (
                inner
                and may_fire(phase, listener.event)
                and (listener.phase is None or isinstance(phase, listener.phase))
            ):
                names_by_event.setdefault(listener.event.__name__, []).append(name_of(callback))
    return tuple((event, tuple(dict.fromkeys(names))) for event, names in names_by_event.items())


def may_fire(phase: Phase, event: type[Event]) -> bool:
    """Tell whether a step may fire an event; what a step of the user's own fires nobody knows before."""
    fired = _FIRED.get(getattr(phase.step, "__func__", None))
    return fired is None or any(issubclass(event_fired, event) for event_fired in fired)


_Who = dict[str, tuple[str, ...]]


def _kept(callbacks: Sequence[Callback], phase: Phase, reads: Sequence[str]) -> _Who:
    # A write is a read as well (`step.grads` is read to be clipped), unless a traced handler alone does both. The loss
    # is kept for the caller, whoever declares it.
    sources = [(name_of(c), (*c.reads, *(path for path in c.writes if path not in c.traced_reads))) for c in callbacks]
    return _by_name([("always", ("step.loss",)), *sources, (type(phase).__name__, phase.reads), ("Learner", reads)])


def _by_name(sources: Sequence[tuple[str, Sequence[str]]]) -> _Who:
    names_by_value: dict[str, list[str]] = {}
    for name_of_reader, paths in sources:
        for name in step_names(paths):
            names_by_value.setdefault(name, []).append(name_of_reader)
    return {name: tuple(dict.fromkeys(name_of_reader)) for name, name_of_reader in names_by_value.items()}


def step_names(paths: Iterable[str]) -> Iterator[str]:
    """Yield the names of step values among dotted paths, ``"*"`` for all; without those that belong to every state."""
    for path in paths:
        root, _, below = path.partition(".")
        name = below.partition(".")[0] or "*"
        if root == "step" and name not in RESERVED:
            yield name


def checked_reads(owner: str, reads: Any) -> tuple[str, ...]:
    """Check the step paths that a phase or the caller wants kept, and return them as a tuple."""
    wrong = [reads] if isinstance(reads, str) else [r for r in reads if str(r).partition(".")[0] not in ROOTS]
    if wrong:
        name = wrong[0] if isinstance(wrong[0], str) else "y_pred"
        path = name if name.startswith("step.") else f"step.{name}"
        raise TypeError(f'{owner} has reads={reads!r}: write a tuple of dotted paths, such as reads=("{path}",)')
    return tuple(reads)
