"""Callbacks: what they declare, and how a method becomes a handler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from loopcore._utils.text import clean
from loopcore.errors import CallbackError, EventError
from loopcore.events import OUTSIDE_STEPS, Event

if TYPE_CHECKING:
    from loopcore.phases.base import Phase

Method = TypeVar("Method", bound=Callable[..., None])


@dataclass(frozen=True)
class RunFirst:
    """Answer of `Callback.resolve_conflict`: this callback runs before the other one.

    Example:
        >>> import loopcore as lc
        >>> class Noise(lc.Callback):
        ...     writes = ("step.xs",)
        >>> class Crop(lc.Callback):
        ...     writes = ("step.xs",)
        ...
        ...     def resolve_conflict(self, other):
        ...         return lc.RunFirst(self) if isinstance(other, Noise) else None
        >>> learner = lc.testing.toy_learner([Noise(), Crop()], default_callbacks=False, quiet=False)
        >>> [type(callback).__name__ for callback in learner.callbacks]
        ['Crop', 'Noise']
    """

    callback: Callback


class Resolution:
    """A constant answer of `Callback.resolve_conflict`, told apart by identity."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


NO_CONFLICT = Resolution("NO_CONFLICT")
UNRESOLVABLE = Resolution("UNRESOLVABLE")


@dataclass(frozen=True)
class Listener:
    """One ``@on`` of a method: which event in which phase, and whether the handler is traced."""

    event: type[Event]
    phase: type[Phase] | None
    traced: bool
    method: str


def on(event: type[Event], phase: type[Phase] | None = None, *, traced: bool = False) -> Callable[[Method], Method]:
    """Make a method of a `Callback` the handler of an event. A method may have several.

    The method takes ``(self, learner, phase)``, or ``(self, learner, phase, event)`` to see the event itself.

    Args:
        event: the class of the event; its subclasses are heard too.
        phase: the class of the phase; its subclasses count too. Default: every phase.
        traced: the handler is pure array code on declared state and becomes part of the compiled step. Only for
            events within a step.

    Raises:
        EventError: ``event`` is no Event class, for instance an instance of one.
        CallbackError: a traced handler of an event outside steps, or ``phase`` is no class.

    Example:
        >>> import loopcore as lc
        >>> class Greeter(lc.Callback):
        ...     @lc.on(lc.EpochBegin, lc.TrainingPhase)
        ...     def greet(self, learner, phase):
        ...         print("a new epoch")
    """
    if not (isinstance(event, type) and issubclass(event, Event)):
        hint = f"write @on({type(event).__name__}, ...)" if isinstance(event, Event) else "pass a subclass of Event"
        raise EventError(f"@on takes the class of an event, not {event!r}: {hint}")
    if phase is not None and not isinstance(phase, type):
        raise CallbackError(f"@on takes the class of a phase, not {phase!r}: write {type(phase).__name__}")
    if traced and issubclass(event, OUTSIDE_STEPS):
        raise CallbackError(f"{event.__name__} is not fired within a step, so its handlers cannot be traced")

    def mark(method: Method) -> Method:
        marks = (Listener(event, phase, traced, ""),)  # the name is filled in by __init_subclass__
        method.__dict__["_listeners"] = getattr(method, "_listeners", ()) + marks
        return method

    return mark


class Callback:
    """Something that listens to a loop. Declares what it reads and writes; its order follows from that.

    Class attributes (or properties):
        reads: dotted paths its handlers read: ``"step.loss"``, ``"step"``, ``"model"``, ``"params"``,
            ``"optimizer"``, ``"hyper"``, ``"shared.history"``, ``"data"``. A path covers everything below it.
        writes: dotted paths its handlers write (and may read).
        traced_reads: paths that only its traced handlers read, so that no step has to hand them back.
        leaves: step values that its traced handlers leave for its host handlers at StepEnd. These take them by
            ``learner.collect(name, ...)`` and look at them later, with ``numpy.asarray``: that costs a compiled step
            next to nothing, where reading a value costs a transfer. Nobody else sees them.
        carries: paths such as ``"shared.average"`` whose arrays pass from step to step and belong to a checkpoint.
        run_after, run_before: callback classes it runs after or before, where they are present. ``(Callback,)``
            means all the others that do not say the same.
        requires: callback classes that must be present; it runs after them.

    Example:
        >>> import loopcore as lc
        >>> class LossPrinter(lc.Callback):
        ...     reads = ("step.loss",)
        ...
        ...     @lc.on(lc.StepEnd, lc.TrainingPhase)
        ...     def report(self, learner, phase):
        ...         print(f"loss {float(learner.step.loss):.2f}")
        >>> learner = lc.testing.toy_learner(callbacks=[LossPrinter()], default_callbacks=False, steps=1)
        >>> result = learner.fit(1)
        loss 1.00
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    traced_reads: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    run_after: tuple[type[Callback], ...] = ()
    run_before: tuple[type[Callback], ...] = ()
    requires: tuple[type[Callback], ...] = ()
    listeners: tuple[Listener, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        listeners: list[Listener] = []
        methods: list[Any] = []
        # By the attributes of the class, base classes too: a subclass that overrides a handler without ``@on`` takes it
        # off, as with any other method.
        for name in dir(cls):
            # Statically, so that no property of the user's runs while a class is being made.
            method = inspect.getattr_static(cls, name)
            marked: tuple[Listener, ...] = getattr(method, "_listeners", ())
            if marked and not any(method is other for other in methods):  # one method may have two names
                methods.append(method)
                _check_signature(cls, name)
                listeners += [replace(listener, method=name) for listener in marked]
        cls.listeners = tuple(listeners)

    def setup(self, learner: Any) -> None:
        """Called once when the callback joins a learner, in callback order, with the same guarded view as handlers."""

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        """Say how this callback and another one that touches the same path get along.

        Args:
            other: writes a path that this one writes or reads, or the reverse.

        Returns:
            ``RunFirst(callback)``, ``NO_CONFLICT``, ``UNRESOLVABLE``, or None for no opinion. Both sides are asked;
            answers that contradict each other are an error.
        """
        return None

    def __repr__(self) -> str:
        return f"<{name_of(self)}>"

    def identity(self) -> Callback:
        """The callback this one stands for: itself, or what it wraps."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: JSON values. Arrays are what it ``carries``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class Sleeper(Callback):
    """A callback that hears some steps and sleeps through others, which it decides when a step begins.

    What it sleeps through neither cuts a compiled step nor is part of its program.

    Attributes:
        sleeps: False if it hears every step anyway, and need not be asked.
    """

    sleeps = True

    def wake(self, phase: Phase) -> tuple[type[Event], ...]:
        """Which events it sleeps through in the step that begins now; asked once a step."""
        raise TypeError(f"{type(self).__name__} does not say what it hears of a step: define wake(self, phase)")

    def rest(self, phase: Phase) -> None:
        """Called when the step that `wake` was asked about has ended."""


def name_of(callback: Callback) -> str:
    """The name of a callback in messages: its class, and for a wrapper also what it wraps."""
    inner = callback.identity()
    name = clean(type(inner).__qualname__.rsplit("<locals>.", 1)[-1])
    return name if inner is callback else f"{type(callback).__name__}({name})"


def is_observer(callback: Callback) -> bool:
    """Whether a callback declares that it changes nothing."""
    return not (callback.writes or callback.leaves or callback.carries)


def _check_signature(cls: type[Callback], name: str) -> None:
    method = getattr(cls, name)
    try:
        # The call that will be made is tried on the signature: counting parameters would go wrong on defaults and
        # ``*args``.
        inspect.signature(method).bind(None, None, None)
    except TypeError:
        try:
            inspect.signature(method).bind(None, None, None, None)
        except TypeError:
            code = getattr(inspect.unwrap(method), "__code__", None)
            place = "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"
            raise CallbackError(
                f"{cls.__qualname__}.{name}{place} cannot be a handler with the "
                f"signature {inspect.signature(method)}: write def {name}(self, learner, phase), or add a fourth "
                "parameter for the event"
            ) from None


def wants_event(method: Callable[..., None]) -> bool:
    """Whether a bound handler takes the event as a third argument without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # Without a default: one that has a default is the handler's own, and the event must not end up in it.
    parameters = [p for p in inspect.signature(method).parameters.values() if p.kind in kinds]
    return len(parameters) >= 3 and parameters[2].default is inspect.Parameter.empty
