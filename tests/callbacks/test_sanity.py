"""The check before the first step: it shows the real error and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import SanityError
from tests.loop.test_dry_run import seen_by


def pairs(count: int) -> list[Any]:
    return [(np.full((4, 1), float(n)), np.full((4, 1), float(n))) for n in range(1, count + 1)]


def test_the_check_shows_the_real_error_and_changes_nothing() -> None:
    """It swallowed the error, ran the model for real, and lost a batch."""

    def broken(y_pred: Any, ys: Any) -> Any:
        raise ZeroDivisionError("of the user")

    learner = lc.testing.toy_learner([lc.SanityCheck()], loss_fn=broken, data=(pairs(2), pairs(1)))
    with pytest.raises(SanityError, match="a step of phase 'validation' fails: ZeroDivisionError: of the user") as info:
        learner.fit(1)
    cause = info.value.__cause__
    assert isinstance(cause, ZeroDivisionError) and cause.__traceback__ is not None
    assert str(info.value).count("of the user") == 2, "both phases in one go"
    checked = seen_by_check(iter(pairs(3)))
    assert checked == seen_by(iter(pairs(3)), looks=0, epochs=1)


def seen_by_check(data: Any) -> list[float]:
    seen: list[float] = []
    note = lc.FunctionCallback(
        lambda learner, phase: seen.append(float(learner.step.xs[0, 0])), lc.StepEnd, reads=("step.xs",)
    )
    lc.testing.toy_learner([note, lc.SanityCheck()], data=(data, None)).fit(1)
    return seen


def test_no_validation_data_is_no_error() -> None:
    """The check for missing validation data failed itself when it was missing."""
    assert lc.testing.toy_learner([lc.SanityCheck()], data=(pairs(2), None)).fit(1).status == "completed"


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((np.ones((4, 1)), np.ones((3, 1))), r"differ in length: xs \(4, 1\), ys \(3, 1\)"),
        ((np.full((4, 1), np.nan), np.ones((4, 1))), "xs of a batch of phase 'training' has values that are NaN"),
        ((np.full((4, 1), 1e200), np.full((4, 1), 1e200)), "the loss of the first step of phase 'training' is inf"),
        ((np.ones((4, 1)),), "reading a batch of phase 'training' fails: UnpackError"),
    ],
    ids=["lengths", "NaN", "loss", "parts"],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_it_finds(batch: Any, said: str) -> None:
    learner = lc.testing.toy_learner([lc.SanityCheck()], data=([batch], None))
    with pytest.raises(SanityError, match=said):
        learner.fit(1)
    assert learner.params.value["w"] == 0.0


def test_it_looks_once() -> None:
    calls: list[int] = []

    class Counting(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            calls.append(1)
            super().step(learner, handle, state)

    learner = lc.testing.toy_learner([lc.SanityCheck()], data=(pairs(2), None), phases=[Counting()])
    learner.fit(1)
    learner.fit(1)
    assert len(calls) == 1 + 2 + 2
