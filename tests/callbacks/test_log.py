"""The callbacks that feed loggers; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CallbackError
from loopcore.testing import toy_learner
from tests.loggers.runs import train

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


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


def test_the_axis_of_hyperparameters_never_goes_back() -> None:
    """They were logged in every phase, by the count of its steps, under one name."""
    logger = lc.loggers.MemoryLogger()
    learner = train(logger)
    steps = [step for step, _ in logger.entries["hyper/learning_rate"]]
    assert steps == [0, 2, 3, 4, 5, 6] and learner.shared.history["validation"].steps == 10
    for name, entries in logger.entries.items():
        counted = [step for step, _ in entries]
        assert counted == sorted(set(counted)), name


class Endless:
    def __iter__(self) -> Any:
        while True:
            yield BATCH


def test_an_endless_epoch_logs_while_it_runs_and_keeps_no_list() -> None:
    sizes: list[int] = []
    logger = lc.loggers.MemoryLogger()

    class Watch(lc.Callback):
        @lc.on(lc.StepEnd, lc.TrainingPhase)
        def watch(self, learner: Any, phase: Any) -> None:
            if learner.attempt in (1_600, 3_600):
                sizes.append(tracemalloc.get_traced_memory()[0])
            if learner.attempt == 1_100:
                for name in ("step/loss", "hyper/learning_rate", "trace/one"):
                    assert 1_000 < logger.entries[name][-1][0] <= 1_101, name

    rates = lc.Scheduler({lc.LearningRate: lambda step: 1e-3 / (1 + step)})
    logs = [lc.LogMetrics(logger), lc.LogHyperParams(logger), lc.LogTraces(logger)]
    trace = lc.Traces({"one": lambda learner: 1.0}, size=100)
    learner = toy_learner([*logs, rates, trace, Watch(), lc.MaxSteps(3_650)], data=(Endless(), None))
    tracemalloc.start()
    learner.fit(1)
    tracemalloc.stop()
    assert sizes[1] - sizes[0] < 120_000  # 12 bytes for each of three values a step, as the logger keeps them
    for name in ("step/loss", "hyper/learning_rate", "trace/one"):
        steps = [step for step, _ in logger.entries[name]]
        assert steps == sorted(set(steps)) and len(steps) == 3_650, name
    assert learner.history["loss"] == pytest.approx([np.mean(learner.history.steps("loss"))])
    assert rates.values("learning_rate")[-1] == learner.hyper.learning_rate


def test_a_long_epoch_loses_no_step() -> None:
    logger = lc.loggers.MemoryLogger()
    toy_learner([lc.LogMetrics(logger)], steps=20_000, optimizer=lc.SGD(1e-6)).fit(1)
    assert [step for step, _ in logger.entries["step/loss"]] == list(range(1, 20_001))
