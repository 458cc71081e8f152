"""Values that are noted while a fit runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loopcore._utils.history_names import prefix_of
from loopcore._utils.validation import is_whole
from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, Listener, Resolution, on
from loopcore.callbacks.log import FLUSH, Logs, unwritten
from loopcore.errors import CallbackError
from loopcore.events import EpochBegin, EpochEnd, Event, StepEnd
from loopcore.history import Series
from loopcore.loggers.base import Histogram, Loggable, Logger
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView


class Noted:
    """The latest values of one trace in one phase, newest last.

    Attributes:
        values: the latest ones.
        numbers: of the step, or of the round, at which each was noted.
        size: how many are kept.
        count: of all there ever were.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: deque[Any] = deque(maxlen=size)
        self.numbers: deque[int] = deque(maxlen=size)
        self.count = 0

    def add(self, value: object, number: int) -> None:
        """Add a value with the number of its step or round."""
        self.values.append(value)
        self.numbers.append(number)
        self.count += 1

    def __repr__(self) -> str:
        return f"Noted({self.count} values)"


class Traces(Callback):
    """Note what functions say at an event: ``learner.shared.traces["training"]["name"].values``.

    It reads what it is told to. At an event within a step it cuts that, as every host handler that writes does; at
    StepEnd, reading arrays waits for the step. A checkpoint does not hold the values. For several events take several.

    Writes: shared.traces

    Args:
        functions: by name, each ``fn(learner) -> value``, called with a view that has what ``reads`` says.
        event: class of the event.
        phase: class of the phases.
        reads: as `Callback.reads`.
        size: how many values of each are kept, the latest; at least 1.

    Raises:
        CallbackError: there is no function, one cannot be called, or the size is out of its range.

    Example:
        >>> import loopcore as lc
        >>> weight = lc.Traces({"weight": lambda learner: learner.params.value["w"].item()}, reads=("params",))
        >>> learner = lc.testing.toy_learner(callbacks=[weight], steps=2)
        >>> result = learner.fit(1)
        >>> [round(value, 2) for value in learner.shared.traces["training"]["weight"].values]
        [0.2, 0.36]
    """

    writes = ("shared.traces",)

    def __init__(
        self,
        functions: Mapping[str, Callable[[Any], Any]],
        event: type[Event] = StepEnd,
        phase: type[Phase] = AbstractTrainingPhase,
        *,
        reads: tuple[str, ...] = (),
        size: int = 4096,
    ) -> None:
        if not isinstance(functions, Mapping) or not functions or not all(map(callable, functions.values())):
            raise CallbackError(f"Traces takes functions of the learner by name, {{name: fn}}, not {functions!r}")
        if not is_whole(size, least=1):
            raise CallbackError(f"size={size!r}: a whole number of values, at least 1")
        on(event, phase)  # checks them
        self.functions = dict(functions)
        self.phase = phase
        self.size = size
        self.reads = reads
        self.listeners = (Listener(event, phase, False, "note"),)

    def setup(self, learner: LearnerView) -> None:
        """Make the series that values are noted in, unless there is one."""
        if not hasattr(learner.shared, "traces"):
            learner.shared.traces = Series()

    def resolve_conflict(self, other: Callback) -> Resolution | None:
        """Go together with another one that notes none of the same values."""
        if not isinstance(other, Traces):
            return None
        # Either way round: a phase may be of both classes if one is a base of the other.
        related = issubclass(self.phase, other.phase) or issubclass(other.phase, self.phase)
        return UNRESOLVABLE if related and self.functions.keys() & other.functions.keys() else NO_CONFLICT

    def note(self, learner: LearnerView, phase: Phase, event: Event) -> None:
        """Note a value of each function, unless what ends was not completed."""
        if getattr(event, "outcome", "completed") == "completed":
            rounds = isinstance(event, (EpochBegin, EpochEnd))
            number = learner.epoch.after if rounds else learner.step_number
            for name, fn in self.functions.items():
                record: Noted = learner.shared.traces.of(phase.name, name, lambda: Noted(self.size))
                record.add(fn(learner), number)


class LogTraces(Logs):
    """Log what `Traces` notes: ``trace/name`` of training, ``trace/val_name`` of validation.

    They are written every 1,024 steps, or before a trace that keeps fewer forgets one, and when an epoch ends. The axis
    is that of the completed steps of the phase; for what is noted at events of epochs that of the rounds. What is no
    number is logged if it is an image, a text or another kind of `loopcore.loggers`; an array as a histogram.

    Reads: shared.traces
    Requires: Traces
    Handles: StepEnd, EpochEnd, FitEnd

    Args:
        *loggers: where to.

    Raises:
        CallbackError: there is no logger.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> loss = lc.Traces({"loss": lambda learner: float(learner.step.loss)}, reads=("step.loss",))
        >>> result = lc.testing.toy_learner(callbacks=[loss, lc.LogTraces(logger)], steps=2).fit(1)
        >>> [(step, round(value, 2)) for step, value in logger.entries["trace/loss"]]
        [(1, 1.0), (2, 0.64)]
    """

    reads = ("shared.traces",)
    requires = (Traces,)

    def __init__(self, *loggers: Logger) -> None:
        super().__init__(*loggers)
        self._written_counts: dict[tuple[str, str], int] = {}
        self._limit = 1  # what the traces keep is known after a step

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log what was noted since the last time."""
        self._write(learner)

    @on(StepEnd)
    def end_step(self, learner: LearnerView, phase: Phase) -> None:
        """Log values while the epoch runs, before the oldest are gone."""
        if self._is_due():
            self._write(learner)
            self._flush()

    def _write(self, learner: LearnerView) -> None:
        fewest = 2 * FLUSH
        for phase, series in learner.shared.traces.items():
            for name, record in series.items():
                fewest = min(fewest, record.size)
                new = unwritten(self._written_counts, (phase, name), record.values, record.numbers, record.count)
                for number, value in new:
                    self._log(f"trace/{prefix_of(phase)}{name}", _loggable(learner, value), number)
        self._limit = max(1, fewest // 2)  # an event may be fired twice in a step


def _loggable(learner: LearnerView, value: Any) -> Loggable | float:
    if isinstance(value, int | float | Loggable):
        return value
    host = np.asarray(learner.to_host(value))
    return float(host) if host.ndim == 0 else Histogram(host)
