"""Loggers write what they are given, each run into a folder of its own, and the callbacks that feed them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

import loopcore as lc
from loopcore.errors import CallbackError, MissingFrameworkError
from loopcore.loggers.names import run_folder, sanitised

EVENT: Any = getattr(event_pb2, "Event")  # noqa: B009 - made when it is imported, which no type checker sees
BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def events(folder: Path) -> list[Any]:
    """All events of an event file, by the format that `RecordWriter` writes."""
    assert RecordWriter is not None
    (path,) = folder.glob("events.*")
    content, place, found = path.read_bytes(), 0, []
    while place < len(content):
        size = int.from_bytes(content[place : place + 8], "little")
        found.append(EVENT.FromString(content[place + 12 : place + 12 + size]))
        place += 12 + size + 4
    return found


def test_tensorboard_has_every_kind(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    logger = lc.loggers.TensorBoardLogger(tmp_path, "run")
    logger.log("a b/loss", 0.5, 3)
    logger.log("note", lc.loggers.Text("words"), 1)
    logger.log("picture", lc.loggers.Image(np.zeros((4, 5, 3))), 1)
    logger.log("grey", lc.loggers.Image(np.zeros((4, 5))), 1)
    logger.log("numbers", lc.loggers.Histogram(np.arange(10.0)), 1)
    logger.log("figure", lc.loggers.Figure(Figure(figsize=(1, 1))), 1)
    logger.close()
    values = {value.tag: (event.step, value) for event in events(tmp_path / "run") for value in event.summary.value}
    assert values["a_b/loss"][0] == 3 and values["a_b/loss"][1].simple_value == 0.5
    assert (values["picture"][1].image.height, values["picture"][1].image.width) == (4, 5)
    assert values["numbers"][1].histo.num == 10 and values["grey"][1].image.height == 4
    assert len([tag for tag in values if tag.startswith("note")]) == 1 and values["figure"][1].image.height > 0


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


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../etc/passwd", "_/_/etc/passwd"), ("a//b", "a/b"), ("", "_"), ("ü ß:1", "ü_ß_1"), (".", "_")],
)
def test_names_are_safe(name: str, safe: str) -> None:
    assert sanitised(name) == safe


def test_a_folder_stays_within_its_folder(tmp_path: Path) -> None:
    assert run_folder(tmp_path, "../up").parent == tmp_path


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingFrameworkError, match=r"loopcore\[tensorboard\]"):
        lc.loggers.TensorBoardLogger(tmp_path)
    assert not list(tmp_path.iterdir())


# -- callbacks


def test_metrics_by_epoch_and_by_step() -> None:
    logger, other = lc.loggers.MemoryLogger(), lc.loggers.MemoryLogger()
    learner = lc.testing.toy_learner(
        callbacks=[lc.LogMetrics(logger, other), lc.Metrics(lc.losses.mae)], data=([BATCH] * 3, [BATCH] * 2)
    )
    learner.fit(2)
    history = learner.history
    assert logger.entries == other.entries
    assert logger.entries["val_mae"] == [(1, history["val_mae"][0]), (2, history["val_mae"][1])]
    assert logger.entries["step/loss"] == [(n + 1, value) for n, value in enumerate(history.steps("loss"))]
    assert [step for step, _ in logger.entries["step/val_loss"]] == [1, 2, 3, 4]
    assert set(logger.entries) == {f"{step}{name}" for step in ("", "step/") for name in history}


class Files(lc.Callback):
    """What is in a file when an epoch begins, and at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[list[str]] = []

    @lc.on(lc.EpochBegin)
    def look(self, learner: Any, phase: Any) -> None:
        self.found.append(self.path.read_text().split() if self.path.exists() else [])


def test_an_epoch_is_in_the_file_when_the_next_one_begins(tmp_path: Path) -> None:
    """What a run has measured does not get lost if it is killed in the next epoch."""
    logger = lc.loggers.CSVLogger(tmp_path)
    rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(1.0, 0.0, 4)})
    one = lc.LogVisualization(lambda learner: 1.0, logger, name="one")
    files = Files(logger.path)
    lc.testing.toy_learner([lc.LogMetrics(logger), lc.LogHyperParams(logger), one, rate, files], steps=1).fit(2)
    written = ["step,name,value", "1,loss,1.0", "1,step/loss,1.0", "0,hyper/learning_rate,1.0", "1,one,1.0"]
    assert files.found[0] == [] and sorted(files.found[1]) == sorted(written)


def test_epochs_only() -> None:
    logger = lc.loggers.MemoryLogger()
    lc.testing.toy_learner(callbacks=[lc.LogMetrics(logger, steps=False)]).fit(2)
    assert list(logger.entries) == ["loss"]


def test_hyperparameters_have_one_axis() -> None:
    """FluxTraining logs them in every phase with that phase's count: the axis goes back."""
    logger = lc.loggers.MemoryLogger()
    rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(1.0, 0.0, 10)})
    learner = lc.testing.toy_learner(
        callbacks=[rate, lc.LogHyperParams(logger)], data=([BATCH] * 3, [BATCH] * 5), hyper={"other": 2.0}
    )
    learner.fit(1)
    learner.fit(1)
    steps = [step for step, _ in logger.entries["hyper/learning_rate"]]
    assert steps == [0, 2, 3, 4, 5, 6] and logger.entries["hyper/other"] == [(0, 2.0)]
    assert [value for _, value in logger.entries["hyper/learning_rate"]] == pytest.approx(
        [1 - n / 10 for n in range(6)]
    )


def test_what_was_written_is_not_written_again() -> None:
    logger = lc.loggers.MemoryLogger()
    log = lc.LogMetrics(logger)
    learner = lc.testing.toy_learner(callbacks=[log], steps=3)
    learner.fit(1)
    learner.fit(1)
    assert [step for step, _ in logger.entries["step/loss"]] == [1, 2, 3, 4, 5, 6]
    again = lc.LogMetrics(logger)
    again.load_state_dict(json.loads(json.dumps(log.state_dict())))
    assert again._written_counts == log._written_counts


def test_logging_needs_loggers() -> None:
    for make in (lc.LogMetrics, lc.LogHyperParams, lc.LogHistograms):
        with pytest.raises(CallbackError, match=f"{make.__name__} takes loggers"):
            make()
    with pytest.raises(CallbackError, match="takes a function"):
        lc.LogVisualization("x", lc.loggers.MemoryLogger(), name="x")  # type: ignore[arg-type]


def test_a_picture_of_ones_own(tmp_path: Path) -> None:
    def weights(learner: Any) -> lc.loggers.Image:
        return lc.loggers.Image(learner.to_host(learner.params.value["w"]).reshape(1, 1))

    logger = lc.loggers.MemoryLogger()
    look = lc.LogVisualization(weights, logger, name="weights", reads=("params",))
    lc.testing.toy_learner(callbacks=[look]).fit(2)
    assert [step for step, _ in logger.entries["weights"]] == [1, 2]
