"""What a person watches: a progress bar and a row of metrics an epoch."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from loopcore._utils.history_names import prefix_of
from loopcore._utils.text import clean, say
from loopcore.backend.protocol import Array
from loopcore.callback import Callback, on
from loopcore.events import EpochBegin, EpochEnd, FitBegin, FitEnd, StepEnd
from loopcore.phases.base import Phase
from loopcore.phases.supervised import PredictionPhase
from loopcore.protocols import LearnerView

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REDRAW = 0.1  # seconds: at most ten redraws, and so ten transfers of the loss, a second


class Printer(Callback):
    """Base of what prints: where there is nowhere to print to, that is said once, and the training goes on.

    Args:
        quiet: print nothing.
        file: where to print. Default: standard output at the time of printing.
    """

    def __init__(self, quiet: bool = False, file: IO[str] | None = None) -> None:
        self.quiet = quiet
        self._file = file
        self._mute = False  # whether printing failed once

    def _is_terminal(self) -> bool:
        return not self._mute and bool(getattr(self._file or sys.stdout, "isatty", bool)())

    def _say(self, line: str) -> None:
        self._try(lambda: say(line, self._file))

    def _try(self, show: Callable[[], None]) -> None:
        """Call a function that prints; say once, and never try again, that it cannot."""
        if self._mute:
            return
        try:
            if (self._file or sys.stdout) is None:
                raise OSError("there is no standard output")
            show()
        except OSError as error:  # a closed pipe, a full disk
            self._mute = True
            warnings.warn(
                f"{type(self).__name__} cannot print: {error}. The training goes on without; "
                f"{type(self).__name__}(quiet=True) does not try",
                stacklevel=2,
            )


class ProgressPrinter(Printer):
    """A live bar for the running epoch on a terminal, one line a round in a pipe. Joins by default.

    Redraws at most ten times a second. Nested epochs are not shown. Rounds go on through several fits.

    Reads: step.loss
    Handles: FitBegin, EpochBegin, StepEnd, EpochEnd, FitEnd

    Args:
        quiet: print nothing.
        file: where to print. Default: standard output at the time of printing.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(callbacks=[lc.ProgressPrinter(quiet=True)])
        >>> learner.fit(1).status
        'completed'
    """

    reads = ("step.loss",)

    def __init__(self, quiet: bool = False, file: IO[str] | None = None) -> None:
        super().__init__(quiet, file)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next = 0.0
        self._round = 0  # the round that the parts of the line are of
        self._began = 0.0
        self._parts: list[str] = []
        self._loss: Array | None = None
        self._loss_text = ""

    @on(FitBegin)
    def begin_fit(self, learner: LearnerView, phase: None) -> None:
        """Forget the parts of a row that an earlier fit left."""
        self._parts = []

    @on(EpochBegin)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Open a bar on a terminal, and start the clock."""
        if self.quiet or learner.epoch.nested:
            return
        self._began = time.monotonic()
        self._next = self._began + _REDRAW
        self._loss, self._loss_text = None, ""
        if self._is_terminal():
            self._try(lambda: self._open_bar(self._file or sys.stdout, clean(phase.name), learner.epoch.length))

    @on(StepEnd)
    def end_step(self, learner: LearnerView, phase: Phase) -> None:
        """Redraw the bar, if the last time was long enough ago."""
        # First of all, since this is asked at every step of every run.
        if self._bar is None or self._task is None:
            return
        time_now = time.monotonic()
        if time_now < self._next or learner.epoch.nested:
            return
        self._next = time_now + _REDRAW
        if self._loss is not None and learner.is_ready(self._loss):  # that of the last redraw, which is ready by now
            self._loss_text = f"loss {float(learner.to_host(self._loss)):.4g}"
        self._loss = getattr(learner.step, "loss", None)
        bar, task, attempted = self._bar, self._task, learner.epoch.attempted
        self._try(lambda: bar.update(task, completed=attempted, loss=self._loss_text, refresh=True))

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Close the bar, or print a line once the round is over."""
        if self.quiet or learner.epoch.nested:
            return
        self._close_bar()
        if self._mute or self._is_terminal() or isinstance(phase, PredictionPhase):
            return
        seconds = time.monotonic() - self._began
        ended = "" if event.outcome == "completed" else f" {event.outcome}"
        self._parts.append(f"{clean(phase.name)} {learner.epoch.completed} steps {seconds:.1f} s{ended}")
        self._round = learner.epoch.after
        if learner.epoch.last or event.outcome == "failed":
            self._print_parts()

    @on(FitEnd)
    def end_fit(self, learner: LearnerView, phase: None) -> None:
        """Print the line of a round that was stopped, and close the bar."""
        if self._parts and not self.quiet:
            self._print_parts()
        self._close_bar()

    def _print_parts(self) -> None:
        self._say(f"epoch {self._round}: {', '.join(self._parts)}")
        self._parts = []

    def _open_bar(self, out: IO[str], name: str, length: int | None) -> None:
        # Here and not at the top: it takes 20 ms, and a run without a terminal needs none of it.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # Without markup: a name in brackets is a name.
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        loss = TextColumn("{task.fields[loss]}", markup=False)
        console = Console(file=out)
        self._bar = Progress(*columns, TimeRemainingColumn(), loss, console=console, transient=True, auto_refresh=False)
        self._task = self._bar.add_task(name, total=length, loss="")
        self._bar.start()

    def _close_bar(self) -> None:
        bar, self._bar, self._task = self._bar, None, None
        if bar is not None:
            self._try(bar.stop)


class MetricsPrinter(Printer):
    """A row with the metrics of all phases after every round. Joins by default.

    A metric without a value shows as ``-``; one with a list of values is left out. What is measured by hand stands
    beside the number of the round before it.

    Reads: shared.metrics_epoch
    Runs after: ProgressPrinter
    Handles: FitBegin, EpochEnd

    Args:
        quiet: print nothing.
        file: where to print. Default: standard output at the time of printing.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(callbacks=[lc.MetricsPrinter(), lc.ProgressPrinter(quiet=True)], steps=1)
        >>> result = learner.fit(2)
         epoch     loss
             1        1
             2     0.64
    """

    reads = ("shared.metrics_epoch",)
    run_after = (ProgressPrinter,)  # first the line that closes the round, then its row

    def __init__(self, quiet: bool = False, file: IO[str] | None = None) -> None:
        super().__init__(quiet, file)
        self._columns: list[str] = []
        self._values: dict[str, float | None] = {}

    @on(FitBegin)
    def begin_fit(self, learner: LearnerView, phase: None) -> None:
        """Begin a new table, with its header."""
        self._columns = []
        self._values = {}

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Collect the values of this phase; print when the round is over."""
        if self.quiet or learner.epoch.nested or isinstance(phase, PredictionPhase):
            return
        epoch = learner.epoch
        if event.outcome in ("completed", "cancelled"):
            # A phase that ran and has no value shows as a gap; one that did not run has no place in the row.
            absent = dict.fromkeys(
                prefix_of(phase.name) + name for name in learner.shared.metrics_epoch.get(phase.name, ())
            )
            self._values.update(absent | epoch.metrics)
        if epoch.last and event.outcome != "failed":
            self._print_row(epoch.after)
            self._values = {}

    def _print_row(self, number: int) -> None:
        self._values = {key: value for key, value in self._values.items() if not isinstance(value, list)}
        if not self._values:
            return
        columns = self._columns + [name for name in self._values if name not in self._columns]
        widths = [max(8, len(clean(name))) for name in columns]
        if columns != self._columns:
            self._columns = columns
            names = " ".join(f"{clean(name):>{width}}" for name, width in zip(columns, widths, strict=True))
            self._say(f"{'epoch':>6} {names}")
        cells = " ".join(f"{_loss_text(self._values.get(name)):>{w}}" for name, w in zip(columns, widths, strict=True))
        self._say(f"{number:>6} {cells}")


def _loss_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
