"""The defects of FluxTraining.jl's loggers (C-10, C-11, C-12, C-15), one regression test for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))
FILES = ("CSVLogger", "JSONLinesLogger", "TensorBoardLogger")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(*loggers: lc.loggers.Logger, name: str = "training") -> lc.Learner:
    """Two epochs with validation, of a phase by another name if one is given, with a learning rate that changes."""

    class Phase(lc.TrainingPhase):
        data_key = name

    log = [lc.LogMetrics(*loggers), lc.LogHyperParams(*loggers), lc.LogHistograms(*loggers)]
    rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(0.1, 0.0, 20)})
    phases = (Phase(), lc.ValidationPhase())
    learner = toy_learner([*log, rate], data={name: [BATCH] * 3, "validation": [BATCH] * 5}, phases=phases)
    learner.fit(2)
    for logger in loggers:
        logger.close()
    return learner


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


def test_the_axis_of_hyperparameters_never_goes_back() -> None:
    """They were logged in every phase, by the count of its steps, under one name."""
    logger = lc.loggers.MemoryLogger()
    learner = train(logger)
    steps = [step for step, _ in logger.entries["hyper/learning_rate"]]
    assert steps == [0, 2, 3, 4, 5, 6] and learner.shared.history["validation"].steps == 10
    for name, entries in logger.entries.items():
        counted = [step for step, _ in entries]
        assert counted == sorted(set(counted)), name


def test_names_are_safe_and_do_not_depend_on_imports() -> None:
    """Names were joined unsanitised, and had the type of the phase as it is printed where it was imported."""
    logger = lc.loggers.MemoryLogger()
    with pytest.warns(UserWarning, match="is written as"):  # the two metrics of the same letters
        train_metrics = lc.Metrics(lc.Metric(lc.losses.mae, "top 1/\x1b[2J"), lc.Metric(lc.losses.mae, "top?1/\x1b[2J"))
        toy_learner([lc.LogMetrics(logger), train_metrics], data=([BATCH], [BATCH])).fit(1)
    assert {name for name in logger.entries if name.startswith("top")} == {"top_1/__2J", "top_1/__2J-2"}
    plain, other = lc.loggers.MemoryLogger(), lc.loggers.MemoryLogger()
    train(plain)
    train(other, name="../fine tuning")
    assert set(plain.entries) == {
        *("loss", "val_loss", "step/loss", "step/val_loss", "hyper/learning_rate", "params/w"),
    }
    assert {name for name in other.entries if "loss" in name} == {
        *("_/fine_tuning_loss", "val_loss", "step/_/fine_tuning_loss", "step/val_loss"),
    }
    assert not [name for name in other.entries if "Phase" in name or "loopcore" in name]


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
