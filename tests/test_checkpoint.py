"""The file of a checkpoint, and the callback that writes and prunes them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loopcore as lc
from loopcore import checkpoint
from loopcore.errors import CallbackError, CheckpointError

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3), "c": np.zeros((0, 2), "f4")}
MANIFEST: dict[str, Any] = {"version": 1, "backend": "numpy"}


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "deep" / "x.safetensors", ARRAYS, {**MANIFEST, "more": [1, None, "ü"]})
    arrays, manifest = checkpoint.read(path)
    np.testing.assert_equal(arrays, ARRAYS)
    assert {name: value.dtype for name, value in arrays.items()} == {
        name: value.dtype for name, value in ARRAYS.items()
    }
    assert manifest["more"] == [1, None, "ü"] and list(path.parent.iterdir()) == [path]


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "x.safetensors", ARRAYS, MANIFEST)
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in [*draw.integers(len(content), size=150), *range(len(content) - 60, len(content))]:
        broken = bytearray(content)
        broken[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            checkpoint.read(path)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            checkpoint.read(path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(tmp_path / "nothing")
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of loopcore"):
        checkpoint.read(tmp_path / "other.safetensors")
    checkpoint.write(tmp_path / "later", ARRAYS, {**MANIFEST, "version": 2})
    with pytest.raises(CheckpointError, match="version 2"):
        checkpoint.read(tmp_path / "later")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.write(tmp_path / "x.safetensors", ARRAYS, MANIFEST)
    before = path.read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(CheckpointError, match="No space left"):
                checkpoint.write(path, {"a": np.ones(3)}, MANIFEST)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, numpy as np
from loopcore import checkpoint
print("ready", flush=True)
number = 0
while True:
    number += 1
    manifest = {"version": 1, "backend": "numpy", "n": number}
    checkpoint.write(sys.argv[1], {"a": np.full(200_000, float(number))}, manifest)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for attempt in range(5):
        running = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
        assert running.stdout is not None
        running.stdout.readline()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.05 + 0.013 * attempt)
        running.kill()
        running.communicate()
        arrays, manifest = checkpoint.read(path)
        assert (arrays["a"] == manifest["n"]).all()


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


# -- the callback


def test_the_best_and_the_last_are_kept(tmp_path: Path) -> None:
    class Zigzag(lc.TrainingPhase):
        losses = (3.0, 1.0, float("nan"), 2.0, 5.0, 4.0)

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]

    keeper = lc.Checkpointer(tmp_path, "loss", keep_top_k=2)
    learner = lc.testing.toy_learner(
        callbacks=[keeper, lc.Metrics(), lc.Recorder()], phases=[Zigzag()], steps=1, default_callbacks=False
    )
    learner.fit(6)
    epochs = [int(path.stem.rpartition("-")[2]) for path in keeper.paths()]
    assert epochs == [2, 4, 6] and keeper.best == keeper.paths()[0] and keeper.last == keeper.paths()[-1]
    assert checkpoint.manifest_of(keeper.best)["value"] == 1.0


def test_a_run_that_goes_on_prunes_its_own_files_and_no_others(tmp_path: Path) -> None:
    other = lc.Checkpointer(tmp_path, keep_top_k=1)
    lc.testing.toy_learner(callbacks=[other]).fit(1)
    (tmp_path / "mine.txt").write_text("mine")
    first = lc.Checkpointer(tmp_path, keep_top_k=2)
    lc.testing.toy_learner(callbacks=[first]).fit(3)
    second = lc.Checkpointer(tmp_path, keep_top_k=2)
    learner = lc.testing.toy_learner(callbacks=[second])
    learner.load(first.last)
    assert second.run == first.run
    learner.fit(2)
    assert [path.stem.rpartition("-")[2] for path in second.paths()] == ["000004", "000005"]
    assert other.last.exists() and (tmp_path / "mine.txt").read_text() == "mine"
    assert learner.shared.history["training"].epochs == 5


def test_a_stopped_fit_is_saved_too(tmp_path: Path) -> None:
    class Stops(lc.Callback):
        @lc.on(lc.StepBegin, lc.TrainingPhase)
        def stop(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 5:
                raise lc.CancelFittingException("enough")

    keeper = lc.Checkpointer(tmp_path, every=10)
    learner = lc.testing.toy_learner(callbacks=[keeper, Stops()], steps=4)
    assert learner.fit(3).status == "stopped"
    assert len(keeper.paths()) == 1
    np.testing.assert_equal(lc.load_weights(keeper.last), learner.export_weights())


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    make: Any = lc.Checkpointer
    for options, said in (({"keep_top_k": 0}, "keep_top_k=0"), ({"every": 1.5}, "every"), ({"mode": "x"}, "mode='x'")):
        with pytest.raises(CallbackError, match=said):
            make(tmp_path, **options)
    assert not list(tmp_path.iterdir()), "nothing is made before there is something to save"
