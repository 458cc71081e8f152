"""Names that are safe as files and columns; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loopcore as lc
from loopcore.loggers.names import run_folder, sanitised
from loopcore.testing import toy_learner
from tests.loggers.runs import train


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../etc/passwd", "_/_/etc/passwd"), ("a//b", "a/b"), ("", "_"), ("ü ß:1", "ü_ß_1"), (".", "_")],
)
def test_names_are_safe(name: str, safe: str) -> None:
    assert sanitised(name) == safe


def test_a_folder_stays_within_its_folder(tmp_path: Path) -> None:
    assert run_folder(tmp_path, "../up").parent == tmp_path


BATCH = (np.ones((4, 1)), np.ones((4, 1)))


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
