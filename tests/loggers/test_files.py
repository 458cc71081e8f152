"""Files hold what was logged, each run in a folder of its own; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import warnings
from math import isnan
from pathlib import Path
from typing import Any

import pytest

import loopcore as lc
from loopcore.errors import MissingFrameworkError
from loopcore.testing import toy_learner
from tests.loggers.runs import FILES, contents, train


def test_files_hold_what_was_logged(tmp_path: Path) -> None:
    rows, lines = lc.loggers.CSVLogger(tmp_path), lc.loggers.JSONLinesLogger(tmp_path)
    for logger in (rows, lines):
        for step, value in enumerate((0.1, float("nan"), float("-inf"))):
            logger.log("x, y", value, step)
        logger.flush()
    table = list(csv.reader(rows.path.read_text(encoding="utf-8").splitlines()))
    assert table[:2] == [["step", "name", "value"], ["0", "x__y", "0.1"]] and isnan(float(table[2][2]))
    found = [json.loads(line) for line in lines.path.read_text(encoding="utf-8").splitlines()]
    assert [one["value"] for one in found] == [0.1, "NaN", "-Infinity"]


def test_a_kind_that_a_logger_cannot_write_is_said_once(tmp_path: Path) -> None:
    logger = lc.loggers.CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="CSVLogger takes no Text: note is left out"):
        logger.log("note", lc.loggers.Text("words"), 1)
    logger.log("note", lc.loggers.Text("words"), 2)
    logger.close()


def test_no_run_touches_the_files_of_another(tmp_path: Path) -> None:
    first = lc.loggers.CSVLogger(tmp_path, "run")
    first.log("a", 1.0, 1)
    first.close()
    before = first.path.read_text()
    for make in (lc.loggers.CSVLogger, lc.loggers.JSONLinesLogger, lc.loggers.TensorBoardLogger):
        make(tmp_path, "run").close()
    assert first.path.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3", "run-4"]


def test_two_processes_at_once_get_two_folders(tmp_path: Path) -> None:
    code = (
        f"from loopcore.loggers.names import run_folder\nfor _ in range(20): print(run_folder({str(tmp_path)!r}, 'r'))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [line for one in running for line in one.communicate()[0].split()]
    assert len(found) == 40 == len(set(found))


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingFrameworkError, match=r"loopcore\[tensorboard\]"):
        lc.loggers.TensorBoardLogger(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.* takes no Histogram")
@pytest.mark.parametrize("kind", FILES)
def test_a_second_run_leaves_the_first_alone(kind: str, tmp_path: Path) -> None:
    """The folder that was given was deleted with all that was in it, by a second run or a wrong path."""
    make: Any = getattr(lc.loggers, kind)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("mine")
    train(make(tmp_path, "run"))
    before = contents(tmp_path)
    assert len(before) >= 3
    train(make(tmp_path, "run"))
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before and len(after) > len(before)
    assert {path.parent.name for path in after.keys() - before.keys()} == {"run-3"}


def test_what_a_constructor_makes_is_of_its_class() -> None:
    """The constructors of two logging callbacks returned a wrapper, which was not of their class."""
    logger = lc.loggers.MemoryLogger()
    made = [
        *(lc.LogHistograms(logger), lc.LogHistograms(logger, gradients=True), lc.LogMetrics(logger)),
        *(lc.LogHyperParams(logger), lc.LogVisualization(lambda learner: 1.0, logger, name="one")),
    ]
    kinds = (lc.LogHistograms, lc.LogHistograms, lc.LogMetrics, lc.LogHyperParams, lc.LogVisualization)
    assert [type(one) for one in made] == list(kinds)
    for callback, kind in zip(made, kinds, strict=True):
        assert toy_learner([callback]).callbacks.get(kind) is callback
        event = callback.listeners[0].event
        wrapped = lc.throttle(callback, event, every=2)  # an explicit wrapper is found by what it wraps, too
        assert toy_learner([wrapped]).callbacks.get(kind) is callback


class Removes(lc.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    @lc.on(lc.EpochBegin)
    def remove(self, learner: Any, phase: Any) -> None:
        if learner.epoch.round == 2:
            shutil.rmtree(self.path)


@pytest.mark.parametrize("kind", ["CSVLogger", "JSONLinesLogger"])
def test_a_folder_that_is_removed_is_made_anew(kind: str, tmp_path: Path) -> None:
    logger = getattr(lc.loggers, kind)(tmp_path, "run")
    with pytest.warns(UserWarning, match="is gone, with what was logged"):
        assert toy_learner([lc.LogMetrics(logger), Removes(logger.path.parent)]).fit(4).status == "completed"
    lines = logger.path.read_text().splitlines()
    assert len(lines) == len(set(lines)) and '"name": "loss"' in lines[-1] + '"name": "loss"'
    assert lines[0] == "step,name,value" or json.loads(lines[0])["step"] > 1


@pytest.mark.parametrize("kind", ["CSVLogger", "JSONLinesLogger"])
def test_a_full_disk_tears_no_row_and_doubles_none(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = getattr(lc.loggers, kind)(tmp_path, "run")
    logger.log("loss", 0.0, 0)
    logger.flush()
    monkeypatch.setattr("loopcore.loggers.files.open_file", lambda path: _Full(path.open("ab", buffering=0), 1000))
    for step in range(1, 201):
        logger.log("loss", step / 7, step)
    with pytest.warns(UserWarning, match=r"No space left.*strict=True\) ends it instead"):
        logger.flush()
    logger.flush()  # said once
    monkeypatch.undo()
    logger.log("loss", 1.0, 201)
    logger.flush()
    lines = logger.path.read_text().splitlines()
    steps = [json.loads(line)["step"] if kind == "JSONLinesLogger" else line.split(",")[0] for line in lines]
    assert [int(step) for step in steps if step != "step"] == list(range(202))
    strict = getattr(lc.loggers, kind)(tmp_path, "strict", strict=True)
    monkeypatch.setattr("loopcore.loggers.files.open_file", lambda path: _Full(path.open("ab", buffering=0), 10))
    with pytest.raises(OSError, match="No space left"):
        toy_learner([lc.LogMetrics(strict)]).fit(1)


class _Full:
    """A file on a disk with room for so many bytes, which takes a part of what does not fit."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Any:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return int(self.file.write(part))


def test_a_tracker_that_loses_its_connection_says_so_once() -> None:
    class Lost(Exception):
        """As those of a library."""

    class Tracker(lc.loggers.Logger):
        def write(self, name: str, value: Any, step: int) -> None:
            raise Lost("no connection")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert toy_learner([lc.LogMetrics(Tracker())]).fit(3).status == "completed"
    assert len(said) == 1 and "no connection" in str(said[0].message)
    with pytest.raises(Lost):
        toy_learner([lc.LogMetrics(Tracker(strict=True))]).fit(3)

    class Wrong(lc.loggers.Logger):
        def write(self, name: str, value: Any, step: int) -> None:
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        toy_learner([lc.LogMetrics(Wrong())]).fit(1)
