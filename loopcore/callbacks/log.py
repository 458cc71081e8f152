"""Callbacks that write what happens to loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from loopcore._utils.history_names import prefix_of
from loopcore.callback import Callback, on
from loopcore.callbacks.unguarded import unguarded
from loopcore.errors import CallbackError, OptimizerError
from loopcore.events import EpochEnd, FitBegin, FitEnd, StepBegin, StepEnd
from loopcore.loggers.base import Array, Loggable, Logger
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView, StateDict

Entry = TypeVar("Entry")
# So that a run that is killed has lost no more than these, and a step in a thousand pays for writing.
FLUSH = 1024  # steps after which values are written at the latest


class Logs(Callback):
    """Base of what writes to loggers: holds them, flushes them when epochs end and when a fit does.

    A logger that cannot write says so once, and the training goes on, unless it is ``strict``.

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
        self._unflushed_steps = 0  # steps since the last flush
        self._limit = FLUSH  # after which values are written

    def _log(self, name: str, value: Loggable | float, step: int) -> None:
        for logger in self.loggers:
            with logger.trouble(name):
                logger.log(name, value, step)

    def _is_due(self) -> bool:
        """Whether it is time to write what a running epoch measured so far; asked once a step."""
        self._unflushed_steps += 1
        return self._unflushed_steps >= self._limit

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log what there is when an epoch has ended; what a subclass overrides."""

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log what the epoch brought, and flush the loggers."""
        self.write(learner, phase, event)
        self._flush()

    @on(FitEnd)
    def end_fit(self, learner: LearnerView, phase: None) -> None:
        """Flush the loggers when the fit has ended."""
        self._flush()

    def _flush(self) -> None:
        self._unflushed_steps = 0
        for logger in self.loggers:
            with logger.trouble("flush"):
                logger.flush()


class LogMetrics(Logs):
    """Log the metrics of every epoch by their rounds, and those of every step by the number of the step.

    Names are those of the history; by steps they begin with ``step/``, and count the completed steps of their phase.
    Values of steps are written as `Metrics` fetches them, every 1,024 steps and when an epoch ends. What is measured
    within an epoch of another phase, as by a validation every 100 steps, begins with ``within/`` and counts the
    completed steps of that phase; the last of a round stands at the round. A metric with a list of values is logged as
    an `Array`.

    Reads: shared.metrics_epoch, shared.metrics_step
    Handles: StepEnd, EpochEnd, FitEnd

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

    reads = ("shared.metrics_epoch", "shared.metrics_step")

    def __init__(self, *loggers: Logger, steps: bool = True) -> None:
        super().__init__(*loggers)
        self.steps = steps
        self._written_counts: dict[tuple[str, str], int] = {}
        self._places: dict[str, int] = {}  # the last round that each metric was logged at
        self._nested_values: dict[str, float | list[Any]] = {}  # measured within the running epoch
        # A handler at StepEnd that has nothing to do would still cost each step a call.
        if not steps:
            self.listeners = tuple(listener for listener in self.listeners if listener.method != "end_step")

    @on(StepEnd)
    def end_step(self, learner: LearnerView, phase: Phase) -> None:
        """Write values of steps while the epoch runs, so that none is lost in a long one."""
        if self._is_due():
            self._write_steps(learner)
            self._flush()

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log the values of the epoch at its round, or at the step around it if it is nested."""
        epoch = learner.epoch
        measured = {key: value for key, value in epoch.metrics.items() if value is not None}
        # Two axes: steps of the phase around it for each value, and the round for the last of them.
        if epoch.nested and epoch.round is not None:
            for key, value in measured.items():
                self._log(f"within/{key}", _loggable(value), epoch.within)
            self._nested_values.update(measured)
        else:
            for key, value in {**measured, **self._nested_values}.items():
                if epoch.round is not None or self._is_in_history(learner, phase, key, epoch.after):
                    self._places[key] = epoch.after
                    self._log(key, _loggable(value), epoch.after)
            self._nested_values = {}
        if self.steps:
            self._write_steps(learner)

    def _is_in_history(self, learner: LearnerView, phase: Phase, key: str, place: int) -> bool:
        """Whether a value measured by hand is the one in the history at its place, and was not logged there yet."""
        name = key.removeprefix(prefix_of(phase.name))
        series = learner.shared.metrics_epoch
        return self._places.get(key, -1) < place and series.at(phase.name, name, place) is learner.epoch.metrics[key]

    def _write_steps(self, learner: LearnerView) -> None:
        for phase, series in learner.shared.metrics_step.items():
            for name, ring in series.items():
                if self._written_counts.get((phase, name), 0) != ring.count:
                    values, numbers = ring.latest(), ring.numbers()
                    for number, value in unwritten(self._written_counts, (phase, name), values, numbers, ring.count):
                        self._log(f"step/{prefix_of(phase)}{name}", float(value), number)

    def state_dict(self) -> StateDict:
        """Return how many values of each series were written."""
        return {"written": [[*key, count] for key, count in self._written_counts.items()]}

    def load_state_dict(self, state: StateDict) -> None:
        """Write only the values that come after those written before."""
        self._written_counts = {(phase, name): count for phase, name, count in state["written"]}


class LogHyperParams(Logs):
    """Log hyperparameters: all of them once, and then what changed, by the number of the training step that used them.

    They are written every 1,024 steps, and when an epoch ends. With several training phases the axis counts the steps
    of all of them.

    Reads: hyper
    Handles: FitBegin, StepBegin, StepEnd, EpochEnd, FitEnd

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
        self._used: list[dict[str, float]] = []  # by the steps that run, the innermost last
        self._pending: list[tuple[str, float, int]] = []

    def setup(self, learner: LearnerView) -> None:
        """Continue the count of the training steps of the learner."""
        self._steps = steps_before(learner)

    @on(FitBegin)
    def begin(self, learner: LearnerView, phase: None) -> None:
        """Note every hyperparameter whose value is new."""
        for name in learner.hyper:
            try:
                self._note(name, learner.hyper[name])
            except OptimizerError:  # a library keeps it where nobody can read it
                continue

    @on(StepBegin, AbstractTrainingPhase)
    def begin_step(self, learner: LearnerView, phase: Phase) -> None:
        """Look at what the step runs with: when it ends it may be set for the next one."""
        # The names that are known, not all there are: one that cannot be read would raise at every step.
        self._used.append({name: learner.hyper[name] for name in self._last})

    @on(StepEnd, AbstractTrainingPhase)
    def step(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Note the values that the step ran with, where they changed."""
        used = self._used.pop() if self._used else {}
        if event.outcome == "completed":
            self._steps += 1
            for name, value in used.items():
                self._note(name, value)
            if self._is_due():
                self._write_pending()
                self._flush()

    def _note(self, name: str, value: float) -> None:
        if self._last.get(name) != value:
            self._last[name] = value
            self._pending.append((name, value, self._steps))

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log the values noted since the last time."""
        self._write_pending()

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, []
        for name, value, step in pending:
            self._log(f"hyper/{name}", value, step)

    def state_dict(self) -> StateDict:
        """Return the number of steps, and the last value of each hyperparameter."""
        return {"steps": self._steps, "last": dict(self._last)}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back the number of steps and the last values, which are not logged again."""
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
        phase: type[Phase] = AbstractTrainingPhase,
    ) -> None:
        super().__init__(*loggers)
        if not callable(make):
            raise CallbackError(f"LogVisualization takes a function of the learner, not {make!r}")
        self.make = make
        self.name = name
        self.phase = phase
        self.reads = ("shared.history", *reads)

    def write(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Log what the function makes of the learner."""
        if isinstance(phase, self.phase) and event.outcome == "completed":
            self._log(self.name, self.make(learner), learner.epoch.after)


def steps_before(learner: LearnerView) -> int:
    """Count the completed steps of the training phases of a learner so far."""
    runs = unguarded(learner).runs
    names = {phase.name for phase in learner.phases if isinstance(phase, AbstractTrainingPhase)}
    return sum(runs.attempts.get(name, 0) - runs.missed.get(name, 0) for name in names)


def _loggable(value: float | list[Any]) -> Loggable | float:
    return Array(np.array(value)) if isinstance(value, list) else float(value)


def unwritten(
    written_counts: dict[tuple[str, str], int],
    key: tuple[str, str],
    latest: Sequence[Entry],
    numbers: Sequence[int],
    count: int,
) -> Iterator[tuple[int, Entry]]:
    """Yield what of a series is still to be written, each value with its place on the axis, then count it as written.

    Args:
        written_counts: how many values of each series were written; it is brought up to date.
        key: of the series.
        latest: its last values; older ones may be gone.
        numbers: their places.
        count: how many it had so far.
    """
    # Older values may be gone: what was not written in time is left out, and the rest keeps its place.
    first = count - len(latest)
    for number in range(max(written_counts.get(key, 0), first) - first, len(latest)):
        yield int(numbers[number]), latest[number]
    written_counts[key] = count
