"""The metrics of the package on labels that do and do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from tests.refusals import refused


@pytest.mark.parametrize("metric", [lc.accuracy, lc.top_k_accuracy(2)], ids=lambda metric: metric.__name__)
@pytest.mark.parametrize(
    ("y_pred", "ys", "words"),
    [
        (np.eye(3), np.zeros((3, 1), int), ("int64 ys of shape (3, 1)", "labels of shape (3,)")),
        (np.eye(3), np.zeros(1, int), ("ys of shape (1,)", "one-hot rows of the shape of y_pred")),
        (np.eye(3), np.zeros((2, 3)), ("float64 ys of shape (2, 3)",)),
        (np.zeros((2, 4, 3)), np.zeros((4, 2), int), ("labels of shape (2, 4)",)),
        (np.zeros((3, 1)), np.zeros(3, int), ("y_pred of shape (3, 1)", "a single class", "> 0")),
        (np.zeros((3, 1)), np.zeros((3, 1)), ("a single class",)),
        (np.zeros(()), np.zeros((), int), ("y_pred of shape ()", "(..., classes)")),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_not_counted(metric: Any, y_pred: Any, ys: Any, words: tuple[str, ...]) -> None:
    refused(errors.LossError, f"{metric.__name__} got", *words, action=lambda: metric(y_pred, ys))


def test_labels_that_fit_are_counted() -> None:
    logits = np.eye(3)[None].repeat(2, axis=0)
    labels = np.array([[0, 1, 2], [0, 1, 1]])
    for ys in (labels, np.eye(3)[labels]):
        assert float(lc.accuracy(logits, ys)) == pytest.approx(5 / 6)
        assert float(lc.top_k_accuracy(1)(logits, ys)) == pytest.approx(5 / 6)
