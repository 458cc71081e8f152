"""Values that are noted while a fit runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from loopcore.callback import Callback, Listener, on
from loopcore.errors import CallbackError
from loopcore.events import Event, StepEnd
from loopcore.history import Series
from loopcore.phases import AbstractTrainingPhase, Phase


class Trace:
    """What `Traces` notes, and when.

    Args:
        fn: ``fn(learner) -> value``, called with a view that has what ``reads`` says.
        name: what it is called in ``shared.traces``.
        event: class of the event.
        phase: class of the phases.
        reads: as `Callback.reads`.

    Raises:
        CallbackError: ``fn`` cannot be called.

    Example:
        >>> import loopcore as lc
        >>> lc.Trace(lambda learner: float(learner.step.loss), "loss", reads=("step.loss",)).name
        'loss'
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        name: str,
        event: type[Event] = StepEnd,
        phase: type[Phase] = AbstractTrainingPhase,
        *,
        reads: tuple[str, ...] = (),
    ) -> None:
        if not callable(fn):
            raise CallbackError(f"Trace takes a function of the learner, not {fn!r}")
        on(event, phase)  # checks them
        self.fn, self.name, self.event, self.phase, self.reads = fn, name, event, phase, reads

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, {self.event.__name__}, {self.phase.__name__})"


class Noted:
    """The latest values of one trace in one phase, newest last.

    Attributes:
        values: the latest ones.
        count: of all there ever were.
    """

    def __init__(self, size: int) -> None:
        self.values: deque[Any] = deque(maxlen=size)
        self.count = 0

    def add(self, value: Any) -> None:
        """Add a value."""
        self.values.append(value)
        self.count += 1

    def __repr__(self) -> str:
        return f"Noted({list(self.values)})"


class Traces(Callback):
    """Note what functions say at an event: ``learner.shared.traces["training"]["name"].values``.

    It also reads what its traces read. A trace of an event within a step cuts it, as every host handler does; at
    StepEnd, reading arrays waits for the step. A checkpoint does not hold the values.

    Writes: shared.traces

    Args:
        *traces: what is noted.
        size: how many values of each trace are kept, the latest; at least 1.

    Raises:
        CallbackError: there is no trace, two have one name, or the size is out of its range.

    Example:
        >>> import loopcore as lc
        >>> weight = lc.Trace(lambda learner: learner.params.value["w"].item(), "weight", reads=("params",))
        >>> learner = lc.testing.toy_learner(callbacks=[lc.Traces(weight)], steps=2)
        >>> result = learner.fit(1)
        >>> [round(value, 2) for value in learner.shared.traces["training"]["weight"].values]
        [0.2, 0.36]
    """

    writes = ("shared.traces",)

    def __init__(self, *traces: Trace, size: int = 4096) -> None:
        wrong = [trace for trace in traces if not isinstance(trace, Trace)]
        if wrong or not traces:
            raise CallbackError("Traces takes lc.Trace(fn, name)" + (f", not {wrong[0]!r}" if wrong else ""))
        names = [trace.name for trace in traces]
        if len(set(names)) < len(names):
            raise CallbackError(f"two traces have one name: {', '.join(names)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise CallbackError(f"size={size!r}: a whole number of values, at least 1")
        self.traces = traces
        self.size = size
        self.reads = tuple(dict.fromkeys(path for trace in traces for path in trace.reads))
        listeners: list[Listener] = []
        for number, trace in enumerate(traces):
            setattr(self, f"_note_{number}", self._noting(trace))
            listeners.append(Listener(trace.event, trace.phase, False, f"_note_{number}"))
        self.listeners = tuple(listeners)

    def setup(self, learner: Any) -> None:
        """Make room."""
        if not hasattr(learner.shared, "traces"):
            learner.shared.traces = Series()

    def _noting(self, trace: Trace) -> Callable[..., None]:
        def note(learner: Any, phase: Any, event: Any) -> None:
            if getattr(event, "outcome", "completed") == "completed":
                noted: Noted = learner.shared.traces.of(phase.name, trace.name, lambda: Noted(self.size))
                noted.add(trace.fn(learner))

        return note
