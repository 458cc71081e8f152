"""The file of a checkpoint: what it holds, damages it notices, and writes that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import loopcore as lc
from loopcore import checkpoint
from loopcore.errors import CheckpointError

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


def test_the_manifest_is_strict_json(tmp_path: Path) -> None:
    values = {"a": nan, "b": [inf, -inf, 1.5], "c": {"d": np.float64(2.0)}}
    path = checkpoint.write(tmp_path / "x", {"a": np.ones(1)}, {"version": 1, "backend": "numpy", "values": values})
    with safe_open(str(path), framework="np") as file:
        text = file.metadata()["loopcore"]
    json.loads(text, parse_constant=lambda literal: pytest.fail(f"{literal} is no JSON"))
    found = checkpoint.read(path)[1]["values"]
    assert isnan(found["a"]) and found["b"] == [inf, -inf, 1.5] and found["c"] == {"d": 2.0}


NO_MANIFESTS = (
    *('{"version": 1, "backend": "numpy", "a": NaN}', '{"version": 1, "backend": "numpy", "version": 1}'),
    *("[" * 100_000, "3", "{}", "\ud800"),
)


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_a_manifest_that_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: text)
        try:
            checkpoint.write(tmp_path / "x", {"a": np.ones(1)}, {})
        except CheckpointError:
            assert text == "\ud800" and not list(tmp_path.iterdir())
            return
    for look in (checkpoint.read, checkpoint.manifest_of):
        with pytest.raises(CheckpointError, match="x has no manifest"):
            look(tmp_path / "x")


@pytest.mark.parametrize("wrong", [{1: 2}, {"$float": "nan"}, object(), {"a": {2}}, b"bytes"])
def test_values_that_are_no_json(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x could not be written"):
        lc.testing.toy_learner().save(tmp_path / "x", mine=wrong)
    assert not list(tmp_path.iterdir())


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    learner = lc.testing.toy_learner()
    for place in ("file/x", "folder", "file/deep/x", "a\0b", "n" * 300):
        with pytest.raises(CheckpointError, match="could not be written"):
            learner.save(tmp_path / place)
        with pytest.raises(CheckpointError, match="cannot be read"):
            learner.load(tmp_path / place)
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.manifest_of(tmp_path / place)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    with pytest.raises(CheckpointError, match="could not be written"):
        learner.save("")


@pytest.mark.parametrize("name", ["open", "fsync", "replace", "close"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("odd"), KeyboardInterrupt()])
def test_a_save_that_fails_at_any_call(
    name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = lc.testing.toy_learner()
    path = learner.save(tmp_path / "x")
    before = path.read_bytes()
    learner.fit(1)
    real: Callable[..., Any] = getattr(os, name)

    def refuse(*args: Any) -> Any:
        if name == "close":
            real(*args)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(CheckpointError if isinstance(error, Exception) else KeyboardInterrupt):
            learner.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, list[int]()

    def second_fails(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(CheckpointError, match="x was written, but may not survive a power cut"):
        lc.testing.toy_learner().save(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and checkpoint.read(tmp_path / "x")
