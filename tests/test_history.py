"""What people look at: records, tables and pictures of a history, and the values it keeps."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopcore as lc
from loopcore.errors import MissingFrameworkError
from loopcore.history import Ring

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


@pytest.fixture
def learner() -> lc.Learner:
    rate = lc.Scheduler({lc.LearningRate: lc.one_cycle(0.2, 12)})
    found = lc.testing.toy_learner(callbacks=[lc.Metrics(lc.losses.mae), rate], data=([BATCH] * 3, [BATCH] * 2))
    found.fit(4)
    return found


def test_records_are_the_epochs(learner: lc.Learner) -> None:
    records = learner.history.records()
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    for key, values in learner.history.items():
        assert [record[key] for record in records] == values
    learner.run_epoch(lc.TrainingPhase(), [BATCH])
    last = learner.history.records()[-1]
    assert last["epoch"] == 5 and last["val_loss"] is None and last["loss"] is not None


def test_a_history_without_epochs() -> None:
    empty = lc.testing.toy_learner().history
    assert empty.records() == [] and len(empty.plot().axes) == 0


def test_a_table_of_pandas(learner: lc.Learner) -> None:
    table = learner.history.to_pandas()
    assert list(table.columns) == list(learner.history) and table.index.name == "epoch"
    np.testing.assert_array_equal(table["val_mae"], np.array(learner.history["val_mae"], float))
    assert table.index.tolist() == [1, 2, 3, 4]


def test_a_picture_has_a_panel_for_each_metric_and_the_rate_below(learner: lc.Learner) -> None:
    figure = learner.history.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "mae", "learning_rate"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["training", "validation"]
    (first, second), (rate,) = figure.axes[0].lines, figure.axes[2].lines
    np.testing.assert_array_equal(first.get_ydata(), learner.history["loss"])
    np.testing.assert_array_equal(second.get_ydata(), learner.history["val_loss"])
    assert len(rate.get_ydata()) == 12 and all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_a_missing_library_says_what_to_install(learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingFrameworkError, match="pip install pandas"):
        learner.history.to_pandas()


@given(size=st.integers(1, 9), pieces=st.lists(st.lists(st.floats(allow_nan=False), max_size=25), max_size=6))
def test_a_ring_keeps_the_latest_values(size: int, pieces: list[list[float]]) -> None:
    ring, everything = Ring(size), [value for piece in pieces for value in piece]
    for piece in pieces:
        ring.extend(np.array(piece))
    assert ring.latest().tolist() == everything[-size:] and ring.count == len(everything)
