"""What callbacks, loaders and users keep in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import checkpoint
from loopcore.errors import CheckpointError


def test_a_learner_of_another_backend_is_told_what_to_do(tmp_path: Path) -> None:
    learner = lc.testing.toy_learner()
    path = learner.save(tmp_path / "x.safetensors")
    arrays, manifest = checkpoint.read(path)
    checkpoint.write(path, arrays, {**manifest, "backend": "torch"})
    with pytest.raises(CheckpointError, match=r"import_weights\(lc\.load_weights\(path\)\)"):
        learner.load(path)


def test_states_of_callbacks_come_back(tmp_path: Path) -> None:
    def made() -> tuple[lc.Learner, lc.Scheduler, lc.EarlyStopping]:
        rate, stop = lc.Scheduler({"learning_rate": lc.schedules.linear(1.0, 0.0, 50)}), lc.EarlyStopping(9, "loss")
        return lc.testing.toy_learner(callbacks=[rate, stop], steps=3), rate, stop

    (first, rate, stop), (second, other, halt) = made(), made()
    first.fit(2)
    second.load(first.save(tmp_path / "x.safetensors"))
    assert other.count == rate.count == 6 and halt.state_dict() == stop.state_dict()
    assert second.hyper.learning_rate == first.hyper.learning_rate


class Value:
    """Its state is this value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Keeps(Value, lc.Callback):
    """A callback with that state."""


class Place(Value):
    """A loader with that place."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(np.ones((4, 1)), np.ones((4, 1)))])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), [1.5, {"a": float("nan")}]])
def test_floats_that_json_does_not_have_come_back(value: Any, tmp_path: Path) -> None:
    here, there = Keeps(value), Keeps(0)
    first, second = (lc.testing.toy_learner([callback]) for callback in (here, there))
    second.load(first.save(tmp_path / "x.safetensors"))
    assert repr(there.value) == repr(value)


def test_a_loader_may_be_at_such_a_float(tmp_path: Path) -> None:
    here, there = Place(float("-inf")), Place(0)
    first, second = (lc.testing.toy_learner(data=(loader, None)) for loader in (here, there))
    second.load(first.save(tmp_path / "x.safetensors"))
    assert there.value == float("-inf")


def test_an_early_stopping_that_has_seen_nothing_is_saved(tmp_path: Path) -> None:
    here, there = lc.EarlyStopping(3, "loss"), lc.EarlyStopping(3, "loss")
    first, second = (lc.testing.toy_learner([callback]) for callback in (here, there))
    second.load(first.save(tmp_path / "x.safetensors"))
    assert here.state_dict() == there.state_dict()


def test_a_smooth_loss_that_is_nan_is_saved(tmp_path: Path) -> None:
    here, there = lc.Metrics(lc.SmoothLoss()), lc.Metrics(lc.SmoothLoss())
    first, second = (lc.testing.toy_learner([callback]) for callback in (here, there))
    first.params.value = {"w": np.array([np.nan])}
    first.fit(1)
    with pytest.warns(UserWarning, match="NaN or infinite numbers in weights/w"):
        path = first.save(tmp_path / "x.safetensors")
    second.load(path)
    assert np.isnan(there.state_dict()["smooth"]["smooth_loss"]["training"][0])


def test_a_state_that_is_no_json_names_the_callback(tmp_path: Path) -> None:
    for wrong in (object(), {"$float": "nan"}, {1: 2}):
        with pytest.raises(CheckpointError, match="Keeps is not made of JSON"):
            lc.testing.toy_learner(callbacks=[Keeps(wrong)]).save(tmp_path / "x")
