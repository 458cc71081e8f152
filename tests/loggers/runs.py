"""A short run that is logged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
