"""Checkpoints while training, among them one test for each fault of FluxTraining's Checkpointer."""

from __future__ import annotations

import os
import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import checkpoint
from loopcore.errors import CallbackError, CheckpointError

XS = np.random.default_rng(0).normal(size=(12, 1))


def learner_of(*callbacks: lc.Callback, **options: Any) -> lc.Learner:
    train = lc.data.batches((XS, 2 * XS), 3, shuffle=True)
    valid = lc.data.batches((XS, 3 * XS), 6)
    return lc.testing.toy_learner(callbacks, **{"data": (train, valid), "optimizer": lc.Adam(0.05), **options})


def same(one: lc.Learner, other: lc.Learner) -> None:
    """The bits of two learners are the same."""
    np.testing.assert_equal(one.export_weights(), other.export_weights())
    np.testing.assert_equal(one.backend.export_optimizers(), other.backend.export_optimizers())
    assert dict(one.shared.history) == dict(other.shared.history)
    assert dict(one.history) == dict(other.history)
    assert [one.history.steps(key) for key in one.history] == [other.history.steps(key) for key in other.history]


def epochs(keeper: lc.Checkpointer) -> list[str]:
    return [path.stem.partition("-epoch-")[2].lstrip("0") for path in keeper.paths()]


class Scripted(lc.TrainingPhase):
    """Its losses are given."""

    def __init__(self, losses: Any) -> None:
        self.losses = tuple(losses)

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        state.loss = learner.xp.sum(state.xs) * 0 + self.losses[learner.attempt]


def scripted(keeper: lc.Checkpointer, losses: Any) -> lc.Learner:
    callbacks = [keeper, lc.Metrics(), lc.Recorder()]
    return lc.testing.toy_learner(callbacks, phases=[Scripted(losses)], steps=1, default_callbacks=False)


def test_a_checkpoint_has_all_that_a_run_goes_on_from(tmp_path: Path) -> None:
    def made(folder: str, seed: int) -> tuple[lc.Learner, lc.Checkpointer]:
        keeper = lc.Checkpointer(tmp_path / folder)
        rate = lc.Scheduler({lc.LearningRate: lc.schedules.linear(0.1, 0.0, 40)})
        extra = [rate, lc.GradientAccumulation(3), lc.AveragedWeights(0.9), lc.EarlyStopping(9, "val_loss")]
        return learner_of(keeper, *extra, seed=seed), keeper

    (whole, _), (first, keeper), (second, _) = made("a", 5), made("b", 5), made("b", 6)
    whole.fit(4)
    first.fit(2)
    second.load(keeper.last)
    second.fit(2)
    same(second, whole)
    np.testing.assert_equal(second.shared.averaged_params, whole.shared.averaged_params)
    states = [{type(one): one.state_dict() for one in learner.callbacks} for learner in (second, whole)]
    for kind in (lc.Scheduler, lc.GradientAccumulation, lc.EarlyStopping):
        assert states[0][kind] == states[1][kind]


def test_a_file_is_whole_whenever_writing_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = lc.Checkpointer(tmp_path)
    learner = learner_of(keeper)
    learner.fit(1)
    known = keeper.last

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(CheckpointError, match=rf"{keeper.run}-epoch-000002.*No space left"):
            learner.fit(1)
    assert list(tmp_path.iterdir()) == [known] and checkpoint.read(known)
    content = bytearray(known.read_bytes())
    content[-1] ^= 1
    known.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        learner_of(lc.Checkpointer(tmp_path)).load(known)


LOADS = """
import sys
import loopcore as lc
def made():
    return lc.testing.toy_learner([lc.Checkpointer(sys.argv[1])])
first = made()
first.fit(1)
path = first.callbacks.get(lc.Checkpointer).last
second = made()
second.load(path)  # what is imported late is imported now
ran = []
watched = ("exec", "compile", "pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "import")
sys.addaudithook(lambda event, args: ran.append((event, args)) if event in watched else None)
second.load(path)
seen = list(ran)
assert not seen, seen
eval("1")
assert ran, "the hook hears nothing"
"""


def test_loading_runs_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_goes_on_prunes_its_old_files(tmp_path: Path) -> None:
    losses = (2.0, 1.0, 5.0, 3.0, 0.5, 4.0)
    first, second, whole = (lc.Checkpointer(tmp_path / name, "loss", keep_top_k=2) for name in ("a", "a", "b"))
    scripted(first, losses).fit(3)
    resumed, undisturbed = scripted(second, losses), scripted(whole, losses)
    resumed.load(first.last)
    resumed.fit(3)
    undisturbed.fit(6)
    assert epochs(second) == epochs(whole) == ["2", "5", "6"]
    assert second.best.name.endswith("000005.safetensors") and second.last.name.endswith("000006.safetensors")
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_a_run_that_goes_on_from_an_older_file_is_another(tmp_path: Path) -> None:
    first, second, whole = lc.Checkpointer(tmp_path), lc.Checkpointer(tmp_path), lc.Checkpointer(tmp_path / "b")
    learner_of(first).fit(3)
    files = {path: path.read_bytes() for path in first.paths()}
    learner, undisturbed = learner_of(second), learner_of(whole)
    learner.load(first.paths()[0])
    learner.fit(1)
    undisturbed.fit(2)
    assert epochs(second) == ["2"] and second.last not in files
    assert {path: path.read_bytes() for path in first.paths()} == files
    again = learner_of(lc.Checkpointer(tmp_path))
    again.load(second.last)
    same(again, undisturbed)


def test_names_are_made_and_runs_do_not_mix(tmp_path: Path) -> None:
    one, other = lc.Checkpointer(tmp_path, keep_top_k=1), lc.Checkpointer(tmp_path, keep_top_k=9)
    scripted(one, [nan] * 3).fit(3)
    scripted(other, [nan] * 3).fit(3)
    assert epochs(one) == ["3"] and epochs(other) == ["1", "2", "3"]
    for number in (999_999, 1_000_000):
        (tmp_path / f"{one.run}-epoch-{number:06d}.safetensors").touch()
    assert epochs(one) == ["3", "999999", "1000000"]


def test_the_name_of_a_run_is_no_path(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path / "in")
    learner = learner_of(keeper)
    run = keeper.run
    for name in ("../../out", "*", "", "a/b"):
        keeper.run = name
        path = learner.save(tmp_path / "x")
        keeper.run = run
        with pytest.raises(CheckpointError, match="is no name of a run"):
            learner.load(path)
        assert keeper.run == run


def test_the_best_is_that_of_the_monitored_value(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "val_loss", keep_top_k=1)
    learner = learner_of(keeper, optimizer=lc.SGD(0.2))
    learner.fit(6)
    values: Any = learner.history["val_loss"]
    manifest = checkpoint.manifest_of(keeper.best)
    assert manifest["value"] == min(values) and manifest["epoch"] == 1 + values.index(min(values))
    again = learner_of(lc.Checkpointer(tmp_path, "val_loss"), optimizer=lc.SGD(0.2))
    undisturbed = learner_of(optimizer=lc.SGD(0.2))
    again.load(keeper.best)
    undisturbed.fit(manifest["epoch"])
    same(again, undisturbed)


def test_arguments_are_checked_and_no_failure_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(CallbackError, match="keep_top_k"):
            lc.Checkpointer(tmp_path / "new", keep_top_k=wrong)  # type: ignore[arg-type]
    keeper = lc.Checkpointer(tmp_path / "new", keep_top_k=1)
    assert not (tmp_path / "new").exists()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(CheckpointError, match=r"000001\.safetensors is one too many.*Permission denied"):
            learner_of(keeper).fit(2)
    (tmp_path / "file").touch()
    broken = lc.Checkpointer(tmp_path / "file")
    with pytest.raises(CheckpointError, match="file"):
        learner_of(broken).fit(1)
    with pytest.raises(CheckpointError, match="file cannot be read as a folder"):
        broken.paths()


def test_a_stopped_fit_has_a_last_checkpoint(tmp_path: Path) -> None:
    first, second = lc.Checkpointer(tmp_path), lc.Checkpointer(tmp_path)
    stopped, resumed, whole = learner_of(first, lc.MaxSteps(6)), learner_of(second, lc.MaxSteps(99)), learner_of()
    assert stopped.fit(9).status == "stopped"
    assert epochs(first) == ["1", "2-begun"]
    resumed.load(first.last)
    same(resumed, stopped)
    resumed.fit(1)
    whole.fit(2)
    np.testing.assert_equal(resumed.export_weights(), whole.export_weights())
    assert resumed.history.steps("loss") == whole.history.steps("loss")
    assert second.run == first.run and epochs(second) == ["1", "2-begun", "2"]


def test_a_stop_never_replaces_the_checkpoint_of_an_epoch(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, "loss", keep_top_k=1)
    learner = learner_of(keeper, lc.MaxSteps(6))
    learner.fit(9)
    assert keeper.best == keeper.paths()[0] and checkpoint.manifest_of(keeper.best)["value"] is not None
    assert keeper.last == keeper.paths()[1] and checkpoint.manifest_of(keeper.last)["value"] is None


@pytest.mark.parametrize("error", [ValueError("half"), KeyboardInterrupt()])
@pytest.mark.parametrize("event", [lc.BackwardEnd, lc.StepEnd])
def test_a_fit_that_failed_has_none(error: BaseException, event: type[lc.Event], tmp_path: Path) -> None:
    class Fails(lc.Callback):
        @lc.on(event, lc.TrainingPhase)
        def fail(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 5:
                raise error

    keeper = lc.Checkpointer(tmp_path)
    learner, whole = learner_of(keeper, Fails()), learner_of(lc.Checkpointer(tmp_path / "b"))
    with pytest.raises(type(error)):
        learner.fit(3)
    assert epochs(keeper) == ["1"]
    other = lc.Checkpointer(tmp_path)
    again = learner_of(other)
    again.load(keeper.last)
    again.fit(2)
    whole.fit(3)
    same(again, whole)
    learner.load(other.paths()[1])  # the one that failed can go on too
    learner.fit(1)
    same(learner, whole)


def test_a_skipped_step_hides_nothing(tmp_path: Path) -> None:
    class Stops(lc.Callback):
        @lc.on(lc.StepBegin, lc.TrainingPhase)
        def stop(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 4:  # the first of the second epoch
                raise lc.CancelFittingException("enough")

    keeper = lc.Checkpointer(tmp_path, every=10)
    learner = learner_of(keeper, Stops())
    assert learner.fit(3).status == "stopped" and epochs(keeper) == ["1"]
    again = learner_of(lc.Checkpointer(tmp_path))
    again.load(keeper.last)
    same(again, learner)


def test_the_end_of_a_fit_saves_what_no_epoch_did(tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, every=2)
    learner = learner_of(keeper)
    learner.fit(3)
    assert epochs(keeper) == ["2", "3"]
    times = [path.stat().st_mtime_ns for path in keeper.paths()]
    learner.fit(0)
    assert [path.stat().st_mtime_ns for path in keeper.paths()] == times, "there was nothing new to save"


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (2, 2, 4), (1, 4)])
def test_every_way_through_checkpoints_has_the_same_bits(cuts: tuple[int, ...], tmp_path: Path) -> None:
    def made(folder: Path) -> tuple[lc.Learner, lc.Checkpointer]:
        keeper = lc.Checkpointer(folder, "val_loss", keep_top_k=2)
        return learner_of(keeper, lc.Metrics(lc.SmoothLoss())), keeper

    whole, undisturbed = made(tmp_path / "whole")
    whole.fit(max(cuts))
    before, found, learner = 0, list[lc.Checkpointer](), whole
    for cut in cuts:
        learner, keeper = made(tmp_path / "cut")
        if found:
            learner.load(found[-1].last)
        if cut > before:  # else it is saved and loaded twice
            learner.fit(cut - before)
        else:
            value = learner.history["val_loss"][-1]
            learner.save(keeper.last, run=keeper.run, epoch=cut, monitor="val_loss", value=value)
        before = cut
        found.append(keeper)
    same(learner, whole)
    assert epochs(found[-1]) == epochs(undisturbed)


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
