"""Data of an epoch that are absent, empty, used up or endless; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import DataExhaustedError
from loopcore.testing import Trace, toy_learner
from tests.refusals import refused

XS = np.ones((4, 1))
BATCH = (XS, XS)


class Lengthless:
    """An iterable without len and without batches."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_no_data_and_empty_data() -> None:
    words: tuple[str, ...] = ("phase 'training'", "does not have (it has: none)", "run_epoch(phase, data)")
    for learner in (toy_learner(data=()), toy_learner(data=None), toy_learner(data={})):
        refused(errors.NoDataError, *words, action=partial(learner.fit, 1))
    trace = Trace()
    learner = toy_learner([trace], data=([], None))
    refused(errors.EmptyDataError, "'training' (list) yielded no batch", action=lambda: learner.fit(1))
    assert trace.events == [], "a list that is empty is found before the fit begins"
    learner = toy_learner(data=(Lengthless(), None))
    refused(errors.EmptyDataError, "(Lengthless) yielded no batch", action=lambda: learner.fit(1))
    refused(errors.NoDataError, "no phase of this fit has data", action=lambda: toy_learner(phases=[]).fit(1))
    refused(errors.EmptyDataError, "prediction", action=lambda: toy_learner().predict([]))


def test_a_generator_is_read_once() -> None:
    trace = Trace()
    learner = toy_learner([trace], data=((batch for batch in [BATCH]), None))
    words: tuple[str, ...] = ("is a generator", "fit(2) reads it 2 times", "pass a list")
    refused(errors.DataExhaustedError, *words, action=lambda: learner.fit(2))
    assert trace.events == []
    assert learner.fit(1).epochs == 1
    words = ("is a generator that is used up", "read only once", "lc.data.batches")
    refused(errors.DataExhaustedError, *words, action=lambda: learner.fit(1))
    assert learner.shared.history["training"].epochs == 1


def test_an_iterator_that_is_no_generator_is_read_once() -> None:
    learner = toy_learner(data=(iter([BATCH, BATCH]), None))
    refused(errors.DataExhaustedError, "list_iterator that is used up", action=lambda: learner.fit(2))
    assert learner.shared.history["training"].epochs == 1


def test_data_that_can_be_read_once_is_an_error_the_second_time() -> None:  # T-8
    """An exhausted generator gave an epoch without a single step, and no error."""
    data = (batch for batch in [BATCH, BATCH])
    learner = toy_learner(data=(data, None))
    with pytest.raises(DataExhaustedError, match=r"can be read once, but fit\(2\) reads it 2 times"):
        learner.fit(2)
    assert learner.shared.history["training"].attempts == 0
    assert learner.fit(1).status == "completed"
    with pytest.raises(DataExhaustedError, match="used up: it can be read only once"):
        learner.fit(1)
    assert learner.shared.history["training"] == (1, 2, 0, 2)
    assert len(learner.history["loss"]) == 1


def test_validation_data_may_be_absent_but_not_empty() -> None:  # T-9
    """Absent validation data was a KeyError, or an error after a whole epoch of training."""
    for data in (([BATCH],), ([BATCH], None), {"training": [BATCH]}):
        learner = toy_learner(data=data)
        assert learner.fit(2).status == "completed" and list(learner.history) == ["loss"]
    late = toy_learner(data=([BATCH], []))
    with pytest.raises(lc.errors.EmptyDataError, match="validation"):
        late.fit(1)
    assert late.shared.history["training"].attempts == 0, "found before the first step"


def test_a_sequence_is_walked_to_its_length() -> None:
    class Sequence:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return BATCH  # never an IndexError

    sequence: Any = Sequence()
    learner = toy_learner(data=(sequence, None))
    learner.peek(learner.phases[0])
    learner.fit(2)
    assert learner.shared.history["training"].steps == 4
    assert len(list(lc.data.combine({"one": sequence}))) == 2
