"""Arguments that are no numbers are refused by name; numbers of NumPy are numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from tests.refusals import refused

untyped: Any = lc  # for arguments that a type checker refuses


class Strange:
    """Of no framework."""


@pytest.mark.parametrize(
    ("kind", "words", "make"),
    [
        (ValueError, ("positive norm or value", "norm='1'"), lambda: untyped.GradientClipping("1")),
        (ValueError, ("positive norm or value", "value=nan"), lambda: untyped.GradientClipping(value=float("nan"))),
        (ValueError, ("positive norm or value", "norm=True"), lambda: untyped.GradientClipping(True)),
        (ValueError, ("decay of AveragedWeights is in [0, 1)", "not 'a'"), lambda: untyped.AveragedWeights("a")),
        (ValueError, ("whole number of updates", "not 'a'"), lambda: untyped.AveragedWeights(0.9, start="a")),
        (ValueError, ("whole number of updates, at least 0", "not -1"), lambda: untyped.AveragedWeights(0.9, start=-1)),
        (ValueError, ("alpha of MixUp is positive", "not 'a'"), lambda: untyped.MixUp("a")),
        (ValueError, ("MixUp(classes=0)", "a whole number, at least 1"), lambda: untyped.MixUp(classes=0)),
        (ValueError, ("MixUp(classes='a')",), lambda: untyped.MixUp(classes="a")),
        (ValueError, ("epsilon of LabelSmoothing is in [0, 1]", "not 'a'"), lambda: untyped.LabelSmoothing("a")),
        (ValueError, ("LabelSmoothing(classes=-1)",), lambda: untyped.LabelSmoothing(classes=-1)),
        (ValueError, ("beta='a'", "at least 0 and below 1"), lambda: untyped.SmoothLoss("a")),
        (errors.CallbackError, ("'w' for epochs='a'", "at least 0"), lambda: untyped.Freeze("w", epochs="a")),
        (errors.CallbackError, ("'w' for epochs=-1", "None"), lambda: untyped.Freeze("w", epochs=-1)),
        (errors.CallbackError, ("'b' for epochs=0.5",), lambda: untyped.Freeze({"a": 1, "b": 0.5})),
        (TypeError, ("the class Strange", "write Strange(...)"), lambda: untyped.Metric(Strange)),
        (TypeError, ("schedule", "not 0.1", "lc.schedules.constant(0.1)"), lambda: untyped.schedules.scale(0.1, 2)),
        (TypeError, ("lc.schedules.constant(0.1)",), lambda: untyped.schedules.shift(0.1, 2)),
        (TypeError, ("lc.schedules.constant(0.1)",), lambda: untyped.schedules.warmup(0.1, 2)),
        (TypeError, ("lc.schedules.constant(1)",), lambda: untyped.schedules.sequence(lambda step: step, 1, at=(2,))),
        (ValueError, ("length='a'", "a number of steps above 0"), lambda: untyped.schedules.linear(0.0, 1.0, "a")),
        (ValueError, ("rise='a'", "above 0 and below 1"), lambda: untyped.one_cycle(0.1, 10, rise="a")),
    ],
)  # fmt: skip
def test_arguments_of_parts_that_make_no_sense(
    kind: type[BaseException], words: tuple[str, ...], make: Callable[[], Any]
) -> None:
    refused(kind, *words, action=make)


def test_numbers_of_numpy_are_numbers() -> None:
    assert untyped.GradientClipping(np.float32(0.5)).norm == 0.5
    assert untyped.MixUp(np.float32(0.5), classes=np.int64(3)).alpha == 0.5
    assert untyped.Freeze("w", epochs=np.int64(2)).epochs == {"w": 2}
