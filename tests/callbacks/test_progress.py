"""Printers on a terminal, in a pipe, and where nothing can be printed; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore._utils.text import clean
from loopcore.testing import toy_learner
from tests.callbacks.clock import clock
from tests.callbacks.test_metrics import TwoLosses

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
NASTY: tuple[str, ...] = (
    "a\x1b[2Jb",
    "\x1b]0;title\x07",
    "two\nlines",
    "tab\tbel\x07nul\x00del\x7f",
    "c1\x9bm",
    "bidi\u202eevil",
    "iso\u2066x",
)
NASTY += ("line\u2028paragraph\u2029", "[bold]markup[/bold]", "\ud800lone", "x" * 300)


class Terminal:
    """A real pseudo-terminal: what is written to ``file`` is collected by a thread until it is closed."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8", errors="surrogatepass")
        self._read = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                self._read += os.read(self._master, 65536)
            except OSError:  # the other end was closed
                return

    def close(self) -> str:
        if not self.file.closed:
            self.file.close()
            self._thread.join(10)
            assert not self._thread.is_alive()
            os.close(self._master)
        return self._read.decode("utf-8", errors="surrogatepass")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Terminal()
    yield found
    found.close()


def test_a_bar_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at most ten times a second, and as many transfers of the loss: 1,000 steps in 10 seconds."""
    assert terminal.file.isatty()
    bar = lc.ProgressPrinter(file=terminal.file)
    learner = toy_learner([bar], steps=1000, default_callbacks=False)
    with clock(monkeypatch, 0.01):
        learner.fit(1)
    text = terminal.close()
    draws = text.count("training")
    assert 90 <= draws <= 102 and learner.backend.transfers <= 101
    assert "━" in text and re.search(r"\b\d+/1000", text) and "loss" in text
    assert text.endswith("\x1b[2K"), "the bar is gone when the epoch is over"


def test_a_bar_is_closed_whatever_happens(terminal: Terminal) -> None:
    def fail(learner: Any, phase: Any) -> None:
        raise KeyboardInterrupt

    bar = lc.ProgressPrinter(file=terminal.file)
    learner = toy_learner([bar, lc.FunctionCallback(fail, lc.LossBegin)])
    with pytest.raises(KeyboardInterrupt):
        learner.fit(1)
    assert bar._bar is None
    text = terminal.close()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_a_line_for_each_round_in_a_pipe() -> None:
    out = io.StringIO()
    learner = toy_learner([lc.ProgressPrinter(file=out)], data=([BATCH] * 3, [BATCH] * 2))
    learner.fit(2)
    learner.fit(1)
    learner.run_epoch(lc.TrainingPhase())
    lines = re.sub(r"\d+\.\d s", "0.0 s", out.getvalue()).splitlines()
    both = "training 3 steps 0.0 s, validation 2 steps 0.0 s"
    assert lines[:3] == [f"epoch 1: {both}", f"epoch 2: {both}", f"epoch 3: {both}"]
    assert lines[3] == "epoch 4: training 3 steps 0.0 s" and len(lines) == 4


def test_the_line_of_a_round_comes_before_its_row() -> None:
    out = io.StringIO()
    learner = toy_learner([lc.MetricsPrinter(file=out), lc.ProgressPrinter(file=out)], steps=1)
    learner.fit(2)
    starts = [line.split()[0] for line in out.getvalue().splitlines()]
    assert starts == ["epoch", "epoch", "1", "epoch", "2"]
    assert "epoch 1: training 1 steps" in out.getvalue().splitlines()[0]


def test_a_stopped_round_says_so() -> None:
    for action, word in ((lc.CancelEpochException("e"), "cancelled"), (lc.CancelFittingException("f"), "cancelled")):
        out = io.StringIO()

        def act(learner: Any, phase: Any, action: BaseException = action) -> None:
            raise action

        quit_ = lc.FunctionCallback(act, lc.LossBegin, lc.TrainingPhase)
        toy_learner([lc.ProgressPrinter(file=out), quit_], data=([BATCH] * 3, [BATCH] * 2)).fit(1)
        assert re.search(rf"^epoch 1: training 0 steps \S+ s {word}", out.getvalue())


def test_quiet_printers_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    toy_learner([lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]).fit(2)
    assert capsys.readouterr() == ("", "")


def test_the_default_is_standard_output_at_the_time_of_printing(capsys: pytest.CaptureFixture[str]) -> None:
    learner = toy_learner(quiet=False, steps=1)
    learner.fit(1)
    out = capsys.readouterr().out
    assert "epoch 1: training 1 steps" in out and "loss" in out


def test_a_table_of_metrics() -> None:
    out = io.StringIO()
    late = lc.Metric("odd")
    learner = toy_learner([lc.MetricsPrinter(file=out), lc.Metrics(late)], phases=[TwoLosses()], steps=1)
    learner.fit(3)
    assert out.getvalue().splitlines() == [
        " epoch     loss",
        "     1        1",
        " epoch     loss      odd",
        "     2     0.64        1",
        "     3   0.4096        -",
    ]


def test_a_missing_value_is_a_dash() -> None:
    out = io.StringIO()

    def skip(learner: Any, phase: Any) -> None:
        raise lc.CancelStepException("skip")

    skipper = lc.FunctionCallback(skip, lc.StepBegin, lc.TrainingPhase)
    learner = toy_learner([lc.MetricsPrinter(file=out), skipper], data=([BATCH], [BATCH]))
    learner.fit(1)
    assert out.getvalue().splitlines() == [" epoch     loss val_loss", "     1        -        1"]


class Named(lc.TrainingPhase):
    """A phase whose name is somebody's idea of a joke."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_nasty_names_on_the_console(name: str, where: str, terminal: Terminal) -> None:
    out = io.StringIO()
    file = out if where == "pipe" else terminal.file
    metrics = lc.Metrics(lc.Metric(lc.losses.mae, name=name))
    printers = [lc.ProgressPrinter(file=file), lc.MetricsPrinter(file=file)]
    toy_learner([*printers, metrics], phases=[Named(name)], steps=2).fit(2)
    text = terminal.close() + out.getvalue()
    own = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n", "", text)  # the terminal's own sequences
    assert not [c for c in own if c != " " and clean(c) != c]
    assert "\x1b[2Jb" not in text and "\x1b]0" not in text
    if where == "pipe":
        assert len(text.splitlines()) == 2 + 3, "a line a round, a header and a row a round"
        assert clean(name)[:20] in text
    assert max(map(len, text.splitlines())) < 20_000


def batch(size: int, target: float) -> tuple[Any, Any]:
    return np.ones((size, 1)), np.full((size, 1), target)


def test_the_printer_keeps_its_columns_and_shows_no_old_value() -> None:  # M-7
    """The printer's columns had no order, and a metric without a value showed its last one."""
    out = io.StringIO()
    metrics = lc.Metrics("late", lc.Metric(lc.losses.mae, "mae"))

    class Late(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)
            if learner.shared.late:
                state.late = state.loss

    learner = toy_learner([metrics, lc.MetricsPrinter(file=out)], phases=[Late()], steps=1)
    learner.shared.late = True
    learner.fit(1)
    learner.shared.late = False
    learner.fit(1)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert rows[0] == ["epoch", "loss", "late", "mae"]
    assert rows[-1][2] == "-" and rows[-1][1] == "0.64"


def test_the_length_of_an_epoch_is_that_of_its_data() -> None:  # M-8
    """The progress bar asked the learner's data for its length, not the data that was given, and needed one."""
    lengths: list[Any] = []
    look = lc.FunctionCallback(lambda learner, phase: lengths.append(learner.epoch.length), lc.EpochBegin)
    learner = toy_learner([look], steps=8)
    learner.run_epoch(lc.TrainingPhase(), [batch(4, 1.0)] * 3)
    learner.run_epoch(lc.TrainingPhase(), (one for one in [batch(4, 1.0)] * 2))
    assert lengths == [3, None]


class Pipe(io.StringIO):
    """Closed by who reads it."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


class BareTerminal(Pipe):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [None, Pipe(), Full(), BareTerminal()], ids=["none", "pipe", "full", "terminal"])
def test_where_nothing_can_be_printed_the_training_goes_on(out: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = toy_learner([lc.ProgressPrinter(), lc.MetricsPrinter()], quiet=False)
    monkeypatch.setattr(sys, "stdout", out)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert learner.fit(3).status == "completed"
    texts = [str(one.message) for one in said]
    assert [text.partition(" cannot print")[0] for text in texts] == ["ProgressPrinter", "MetricsPrinter"], texts


def test_an_output_that_only_writes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    class Write:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    out = Write()
    monkeypatch.setattr(sys, "stdout", out)
    toy_learner([lc.ProgressPrinter(), lc.MetricsPrinter()], quiet=False).fit(1)
    assert out.text.startswith("epoch 1:")
