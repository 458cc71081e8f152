"""The defects of FluxTraining.jl's Learner and callback utilities (L-1 to L-9), one regression test for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import ConflictError, DataError, MissingWriterError, NoDataError
from loopcore.testing import Trace, toy_learner

BATCH = (np.ones((4, 1)), np.ones((4, 1)))


def kinds(learner: lc.Learner) -> list[str]:
    return [type(callback.identity()).__name__ for callback in learner.callbacks]


def test_data_is_not_taken_apart_by_position() -> None:  # L-1
    """Data in a 1-tuple was taken apart by position: a missing comma made its first batches (train, valid)."""
    alone = toy_learner(data=([BATCH, BATCH],))
    assert list(alone.data) == ["training"] and len(alone.data["training"]) == 2
    named = toy_learner(data={"validation": [BATCH], "training": [BATCH] * 3})
    named.fit(1)
    assert (named.shared.history["training"].steps, named.shared.history["validation"].steps) == (3, 1)
    with pytest.raises(DataError, match=r'write data=\(train, valid\).*data=\{"training": train\}'):
        toy_learner(data=[BATCH, BATCH])
    with pytest.raises(DataError, match=r"a pair \(train, valid\), but 3 were given: use a dict"):
        toy_learner(data=([BATCH], [BATCH], [BATCH]))


def test_a_learner_needs_no_data_and_no_test_file_is_forgotten() -> None:  # L-2
    """A Learner without data could not be made, and the test that needs it was in a file that never ran."""
    learner = toy_learner(data=(), optimizer=None, loss_fn=None)
    assert learner.predict([np.ones((2, 1))]).shape == (2, 1)
    with pytest.raises(NoDataError, match=r"phase 'training' runs on data 'training', which the learner does not have"):
        learner.fit(1)
    here = Path(__file__).parent
    strays = [str(path.relative_to(here)) for path in here.rglob("*.py") if not path.name.startswith("test_")]
    imported = [
        "fixtures/make_checkpoints.py",
        "frameworks/networks.py",
        "frameworks/one_script.py",
        "jax_adapter/calls.py",
        "keras_adapter/models.py",
        "keras_adapter/whole.py",
        "nasty.py",
        "numpy_adapter/calls.py",
        "old_checkpoints.py",
        "tensorflow_adapter/calls.py",
        "tier.py",
        "torch_adapter/calls.py",
    ]  # by files that are collected, but for make_checkpoints.py
    found = [path for path in strays if Path(path).name != "__init__.py"]
    assert sorted(found) == sorted(["all.py", "conftest.py", *imported]), "pytest collects test_*.py only"


class Counter(lc.Callback):
    """Counts how often it is set up and how many steps it hears."""

    writes = ("shared.counted",)

    def __init__(self) -> None:
        self.setups = 0

    def setup(self, learner: Any) -> None:
        self.setups += 1
        learner.shared.counted = 0

    @lc.on(lc.StepEnd)
    def count(self, learner: Any, phase: Any) -> None:
        learner.shared.counted += 1


class ReadsCounter(lc.Callback):
    """Reads what `Counter` writes; sorts before it by name only if renamed."""

    reads = ("shared.counted",)

    def __init__(self) -> None:
        self.seen: list[int] = []

    @lc.on(lc.StepEnd)
    def look(self, learner: Any, phase: Any) -> None:
        self.seen.append(learner.shared.counted)


@pytest.mark.parametrize("how", ["add", "replace", "set"])
def test_new_callbacks_are_set_up(how: str) -> None:  # L-3
    """Changing the callbacks did not call ``init!`` on the new ones."""
    old, new, reader = Trace(), Counter(), ReadsCounter()
    learner = toy_learner([old], steps=3)
    learner.fit(1)
    heard = len(old.events)
    if how == "add":
        learner.callbacks.add(new, reader)
    elif how == "replace":
        learner.callbacks.replace(old, new)
        learner.callbacks.add(reader)
    else:
        learner.callbacks.set(reader, new)
    assert new.setups == 1
    learner.fit(1)
    assert learner.shared.counted == 3 and reader.seen == [1, 2, 3] and new.setups == 1
    assert (len(old.events) > heard) is (how == "add")


def test_changing_callbacks_leaves_the_learner_as_it_is() -> None:  # L-4
    """Changing the callbacks rebuilt everything with defaults, dropping what the learner had been given."""
    learner = toy_learner(
        compile=False, reads=("step.y_pred",), hyper={"kl": 0.5}, optimizer=lc.Momentum(0.01, 0.9), seed=7, steps=2
    )
    twin = toy_learner(optimizer=lc.Momentum(0.01, 0.9), seed=7, steps=2)
    learner.hyper.kl = 0.75
    learner.fit(1)
    callback = Trace()
    learner.callbacks.add(callback)
    learner.callbacks.remove(callback)
    learner.fit(1)
    twin.fit(2)
    assert (learner.compile, learner.seed, learner.hyper.kl) == (False, 7, 0.75)
    assert learner.step.y_pred.shape == (4, 1)
    assert learner.runs.runner_of(learner.phases[0]).plan.kind == "eager"
    assert learner.runs.attempts == {"training": 4} and learner.shared.history["training"].epochs == 2
    np.testing.assert_array_equal(learner.params.value["w"], twin.params.value["w"])  # the velocity was kept


class BadSetup(lc.Callback):
    """Changes shared state in its setup, and then fails."""

    writes = ("shared.bad",)

    def setup(self, learner: Any) -> None:
        learner.shared.bad = 1
        raise ValueError("setup failed")


def test_a_refused_change_of_callbacks_changes_nothing() -> None:  # L-5
    """Callbacks were replaced before the graph was built: an error left new callbacks with the old graph."""
    counter, trace = Counter(), Trace()
    learner = toy_learner([counter, trace], steps=2)
    before, shared = list(learner.callbacks), set(vars(learner.shared))
    with pytest.raises(ConflictError, match=r"both write shared\.counted"):
        learner.callbacks.replace(trace, Counter())
    with pytest.raises(ValueError, match="setup failed"):
        learner.callbacks.replace(counter, BadSetup())
    with pytest.raises(MissingWriterError, match=r"LossReader reads shared\.nothing"):
        learner.callbacks.set(type("LossReader", (lc.Callback,), {"reads": ("shared.nothing",)})())
    assert list(learner.callbacks) == before and set(vars(learner.shared)) == shared
    learner.fit(1)
    assert learner.shared.counted == 2 and ("FitEnd", None, "completed") in trace.events


class MyMetrics(lc.Metrics):
    """A subclass of a default callback."""


class OwnHistory(lc.Callback):
    """Another writer of the history than the Recorder."""

    writes = ("shared.history",)

    def setup(self, learner: Any) -> None:
        learner.shared.history = {}


def test_a_default_is_not_added_beside_one_like_it() -> None:  # L-6
    """Defaults were matched by exact type: a throttled or subclassed one got a second default beside it."""
    throttled = lc.throttle(lc.Metrics(lc.Metric("loss", "again")), lc.StepEnd, every=2)
    assert kinds(toy_learner([throttled])).count("Metrics") == 1
    assert "Metrics" not in kinds(toy_learner([MyMetrics()]))
    assert "Recorder" not in kinds(toy_learner([OwnHistory()]))
    assert len(toy_learner([lc.Recorder(), lc.Metrics(), lc.StopOnNaNLoss()]).callbacks) == len(toy_learner().callbacks)


def test_a_removed_callback_takes_its_state_along() -> None:  # L-7
    """A removed callback left its state behind, and readers went on with stale values."""
    counter, reader = Counter(), ReadsCounter()
    learner = toy_learner([counter, reader], steps=2)
    learner.fit(1)
    with pytest.raises(MissingWriterError, match=r"ReadsCounter reads shared\.counted, nothing writes it"):
        learner.callbacks.remove(counter)
    assert learner.shared.counted == 2 and counter in list(learner.callbacks)
    learner.callbacks.remove(counter, reader)
    assert not hasattr(learner.shared, "counted")
    with pytest.raises(lc.errors.CallbackError, match="not a callback of this learner"):
        learner.callbacks.remove(counter)


def test_a_learner_shows_its_callbacks_and_finds_wrapped_ones() -> None:  # L-8
    """``show(learner)`` printed nothing of use, and a wrapped callback could not be found."""
    counter = Counter()
    learner = toy_learner([lc.throttle(counter, lc.StepEnd, every=2)])
    assert learner.callbacks.get(Counter) is counter
    assert learner.callbacks.get(ReadsCounter) is None
    assert "backend='numpy'" in repr(learner) and "Throttle" in repr(learner) and "Recorder" in repr(learner)
    learner.callbacks.remove(counter)
    assert learner.callbacks.get(Counter) is None


@pytest.mark.parametrize("optimizer", [lc.SGD(0.1), lc.Momentum(0.1), lc.Adam(0.1), lc.AdamW(0.1)], ids=repr)
def test_params_are_the_parameters_whatever_the_optimizer(optimizer: Any) -> None:  # L-9
    """``params`` was the parameters or the state of the optimizer, depending on the type of the latter."""
    learner, twin = toy_learner(optimizer=optimizer), toy_learner(optimizer=optimizer)
    learner.fit(1)
    assert list(learner.params.value) == ["w"] and learner.params.value["w"].shape == (1,)
    assert set(learner.export_weights()) == {"w"}
    learner.fit(1)
    twin.fit(2)
    np.testing.assert_array_equal(learner.params.value["w"], twin.params.value["w"])
