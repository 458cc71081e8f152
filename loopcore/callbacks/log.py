"""Callbacks that write what happens to loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loopcore.callback import Callback, on
from loopcore.errors import CallbackError, OptimizerError
from loopcore.events import EpochEnd, FitBegin, FitEnd, StepEnd
from loopcore.history import prefix_of
from loopcore.loggers.base import Loggable, Logger
from loopcore.phases import AbstractTrainingPhase


class Logs(Callback):
    """Base of what writes to loggers: holds them, flushes them when epochs end and when a fit does.

    Handles: EpochEnd, FitEnd

    Args:
        *loggers: where to.

    Raises:
        CallbackError: there is no logger.
    """

    def __init__(self, *loggers: Logger) -> None:
        if not loggers or not all(isinstance(logger, Logger) for logger in loggers):
            name = type(self).__name__
            raise CallbackError(f"{name} takes loggers: write {name}(lc.loggers.CSVLogger())")
        self.loggers = loggers

    def _log(self, name: str, value: Loggable | float, step: int) -> None:
        for logger in self.loggers:
            logger.log(name, value, step)

    def write(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Log what there is when an epoch has ended."""

    @on(EpochEnd)
    def end_epoch(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Log it, and make it readable for others."""
        self.write(learner, phase, event)
        self._flush()

    @on(FitEnd)
    def end_fit(self, learner: Any, phase: Any) -> None:
        """Make everything readable for others."""
        self._flush()

    def _flush(self) -> None:
        for logger in self.loggers:
            logger.flush()


class LogMetrics(Logs):
    """Log the metrics of every epoch, and those of every step.

    Names are those of the history; by steps they begin with ``step/``, and count the completed steps of their phase.
    Values of steps are written when an epoch ends, from what `Metrics` has fetched by then: it costs a step nothing.

    Reads: shared.metrics_epoch, shared.metrics_step, shared.history
    Handles: EpochEnd, FitEnd

    Args:
        *loggers: where to.
        steps: whether values of steps are logged too.

    Raises:
        CallbackError: there is no logger.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> result = lc.testing.toy_learner(callbacks=[lc.LogMetrics(logger)], steps=2).fit(1)
        >>> {name: len(entries) for name, entries in logger.entries.items()}
        {'loss': 1, 'step/loss': 2}
    """

    reads = ("shared.metrics_epoch", "shared.metrics_step", "shared.history")

    def __init__(self, *loggers: Logger, steps: bool = True) -> None:
        super().__init__(*loggers)
        self.steps = steps
        self._written: dict[tuple[str, str], int] = {}

    def write(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Write what the epoch measured."""
        prefix, epochs = prefix_of(phase.name), learner.shared.history[phase].epochs
        if event.outcome == "completed":
            for name, values in learner.shared.metrics_epoch.get(phase.name, {}).items():
                if values and values[-1] is not None:
                    self._log(prefix + name, values[-1], epochs)
        if self.steps:
            for name, ring in learner.shared.metrics_step.get(phase.name, {}).items():
                for number, value in unwritten(self._written, (phase.name, name), ring.latest(), ring.count):
                    self._log(f"step/{prefix}{name}", float(value), number)

    def state_dict(self) -> dict[str, Any]:
        """How many values of each series were written."""
        return {"written": [[*key, count] for key, count in self._written.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind them."""
        self._written = {(phase, name): count for phase, name, count in state["written"]}


class LogHyperParams(Logs):
    """Log hyperparameters: all of them once, and then what changed, by completed training steps.

    Values of steps are written when an epoch ends.

    Reads: hyper
    Handles: FitBegin, StepEnd, EpochEnd, FitEnd

    Args:
        *loggers: where to.

    Raises:
        CallbackError: there is no logger.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(1.0, 0.0, 4)})
        >>> result = lc.testing.toy_learner(callbacks=[lc.LogHyperParams(logger), rate], steps=3).fit(1)
        >>> logger.entries
        {'hyper/learning_rate': [(0, 1.0), (2, 0.75), (3, 0.5)]}
    """

    reads = ("hyper",)

    def __init__(self, *loggers: Logger) -> None:
        super().__init__(*loggers)
        self._steps = 0
        self._last: dict[str, float] = {}
        self._pending: list[tuple[str, float, int]] = []

    @on(FitBegin)
    def begin(self, learner: Any, phase: Any) -> None:
        """Note what is new."""
        for name in learner.hyper:
            try:
                self._note(name, learner.hyper[name])
            except OptimizerError:  # a library keeps it where nobody can read it
                continue

    @on(StepEnd, AbstractTrainingPhase)
    def step(self, learner: Any, phase: Any, event: StepEnd) -> None:
        """Note what the step ran with, where that changed."""
        if event.outcome == "completed":
            self._steps += 1
            for name in self._last:
                self._note(name, learner.hyper[name])

    def _note(self, name: str, value: float) -> None:
        if self._last.get(name) != value:
            self._last[name] = value
            self._pending.append((name, value, self._steps))

    def write(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Write what was noted."""
        for name, value, step in self._pending:
            self._log(f"hyper/{name}", value, step)
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and the last values."""
        return {"steps": self._steps, "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self._steps, self._last = int(state["steps"]), dict(state["last"])


class LogVisualization(Logs):
    """Log what a function makes of the learner when an epoch ends: an `Image`, a `Figure`, a `Text`, any kind.

    It also reads what it is told to.

    Reads: shared.history
    Handles: EpochEnd, FitEnd

    Args:
        make: ``make(learner) -> value``, called with a view that has what ``reads`` says.
        *loggers: where to.
        name: what it is logged as.
        reads: as `Callback.reads`.
        phase: class of the phases whose epochs count.

    Raises:
        CallbackError: there is no logger, or ``make`` cannot be called.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> shout = lc.LogVisualization(lambda learner: lc.loggers.Text("done"), logger, name="note")
        >>> result = lc.testing.toy_learner(callbacks=[shout]).fit(1)
        >>> logger.entries
        {'note': [(1, 'done')]}
    """

    reads: tuple[str, ...] = ("shared.history",)

    def __init__(
        self,
        make: Callable[[Any], Loggable | float],
        *loggers: Logger,
        name: str,
        reads: tuple[str, ...] = (),
        phase: type[Any] = AbstractTrainingPhase,
    ) -> None:
        super().__init__(*loggers)
        if not callable(make):
            raise CallbackError(f"LogVisualization takes a function of the learner, not {make!r}")
        self.make = make
        self.name = name
        self.phase = phase
        self.reads = ("shared.history", *reads)

    def write(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Write what the function makes."""
        if isinstance(phase, self.phase) and event.outcome == "completed":
            self._log(self.name, self.make(learner), learner.shared.history[phase].epochs)


def unwritten(
    written: dict[tuple[str, str], int], key: tuple[str, str], latest: Sequence[Any], count: int
) -> Iterator[tuple[int, Any]]:
    """What of a series is still to be written, each value with its number from 1; then all of it is.

    Args:
        written: how many values of each series were.
        key: of the series.
        latest: its last values; older ones may be gone.
        count: how many it had so far.
    """
    first = count - len(latest)
    for number in range(max(written.get(key, 0), first), count):
        yield number + 1, latest[number - first]
    written[key] = count
