"""Checkpoints: one file of safetensors, with a manifest in JSON as its metadata. Nothing in it is ever executed.

A file is written under another name in the same folder, synced, and renamed: under its own name it is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopcore.callback import Callback, name_of
from loopcore.errors import CheckpointError, LoopcoreError
from loopcore.history import History, Series, Tally
from loopcore.inputs import as_array

if TYPE_CHECKING:
    from loopcore.learner import Learner

VERSION = 1
Arrays = dict[str, np.ndarray[Any, Any]]


def save(learner: Learner, path: str | Path, **more: Any) -> Path:
    """Write everything that a run goes on from; see `Learner.save`."""
    runs = learner.runs
    if runs.runner is not None:
        raise CheckpointError("a step is running: save between two steps, for instance when an epoch ends")
    arrays: Arrays = {f"weights/{name}": value for name, value in learner.export_weights().items()}
    arrays |= {f"optimizer/{name}": value for name, value in learner.backend.export_optimizers().items()}
    for name, leaves in _carried(learner).items():
        arrays |= {f"shared/{name}/{n}": np.asarray(learner.to_host(as_array(x))) for n, x in enumerate(leaves)}
    manifest = {
        "version": VERSION,
        "backend": learner.backend.name,
        "seed": learner.seed,
        "hyper": {name: float(learner.hyper[name]) for name in _settable(learner)},
        "attempts": dict(runs.attempts),
        "history": {name: list(counts) for name, counts in getattr(learner.shared, "history", {}).items()},
        "metrics": {phase: dict(series) for phase, series in getattr(learner.shared, "metrics_epoch", {}).items()},
        "callbacks": [[key, _json(key, callback.state_dict())] for key, callback in _keyed(learner).items()],
        **more,
    }
    return write(path, arrays, manifest)


def load(learner: Learner, path: str | Path) -> None:
    """Go on from a checkpoint; see `Learner.load`."""
    arrays, manifest = read(path)
    if "callbacks" not in manifest:
        raise CheckpointError(f"{path} has weights alone: write learner.load_model({str(path)!r})")
    if manifest["backend"] != learner.backend.name:
        raise CheckpointError(
            f"{path} is of a {manifest['backend']} learner, this one runs on {learner.backend.name}: an optimizer's "
            "state stays in its framework. Take the weights alone: learner.import_weights(lc.load_weights(path))"
        )
    before = learner.export_weights(), learner.backend.export_optimizers()
    try:
        learner.import_weights(_part(arrays, "weights/"))
        learner.backend.import_optimizers(_part(arrays, "optimizer/"))
        carried = _restored(learner, arrays)
    except (LoopcoreError, ValueError, KeyError) as error:
        learner.import_weights(before[0])
        learner.backend.import_optimizers(before[1])
        raise CheckpointError(f"{path} does not fit this learner, nothing was loaded: {error}") from error
    for name, value in carried.items():
        setattr(learner.shared, name, value)
    for name in _settable(learner):
        if name in manifest["hyper"]:
            learner.hyper[name] = manifest["hyper"][name]
    learner.runs.attempts.clear()
    learner.runs.attempts.update(manifest["attempts"])
    _put_history(learner, manifest)
    states = dict(manifest["callbacks"])
    for key, callback in _keyed(learner).items():
        if states.get(key):
            callback.load_state_dict(states[key])


def load_weights(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a checkpoint alone, by name; for any backend.

    Args:
        path: of a file that `Learner.save` or a `Checkpointer` wrote.

    Raises:
        CheckpointError: it is none, or damaged.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = lc.testing.toy_learner().save(f"{folder}/first.safetensors")
        ...     lc.load_weights(path)
        {'w': array([0.])}
    """
    return _part(read(path)[0], "weights/")


def save_weights(learner: Learner, path: str | Path) -> Path:
    """Write the weights alone."""
    arrays: Arrays = {f"weights/{name}": value for name, value in learner.export_weights().items()}
    return write(path, arrays, {"version": VERSION, "backend": learner.backend.name})


# -- the file


def write(path: str | Path, arrays: Arrays, manifest: Mapping[str, Any]) -> Path:
    """Write a file; when this returns it is on the disk under its name.

    Raises:
        CheckpointError: the system refused; an older file of this name is as it was.
    """
    from safetensors import SafetensorError  # here, so that importing the package loads nothing that few need
    from safetensors.numpy import save_file

    path = Path(path)
    whole = {name: np.array(value, order="C") for name, value in arrays.items()}
    text = json.dumps(manifest)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, draft, metadata={"loopcore": text, "digest": _digest(whole, text)})
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {error}") from error
    return path


def read(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the manifest of a file.

    Raises:
        CheckpointError: there is none, it is no checkpoint, damaged, or of a later version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        text, digest = metadata["loopcore"], metadata["digest"]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of loopcore") from error
    if digest != _digest(arrays, text):
        raise CheckpointError(f"{path} is damaged: it is not what was written")
    manifest: dict[str, Any] = json.loads(text)
    if manifest["version"] > VERSION:
        raise CheckpointError(
            f"{path} has version {manifest['version']}, this loopcore reads up to {VERSION}: update it"
        )
    return arrays, manifest


def manifest_of(path: str | Path) -> dict[str, Any]:
    """The manifest alone; nothing is checked.

    Raises:
        CheckpointError: there is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})["loopcore"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    return found


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _digest(arrays: Arrays, text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data if arrays[name].size else b"")
    return found.hexdigest()


# -- what a learner holds


def _settable(learner: Learner) -> list[str]:
    found: list[str] = []
    for name in learner.hyper:
        try:
            learner.hyper[name] = learner.hyper[name]
        except LoopcoreError:  # baked in, or it follows a schedule of its own
            continue
        found.append(name)
    return found


def _carried(learner: Learner) -> dict[str, list[Any]]:
    names = dict.fromkeys(path.removeprefix("shared.") for one in learner.callbacks for path in one.carries)
    return {name: learner.backend.tree_leaves(getattr(learner.shared, name)) for name in names}


def _restored(learner: Learner, arrays: Arrays) -> dict[str, Any]:
    """What is carried, with the values of a checkpoint; what it does not have stays."""
    found: dict[str, Any] = {}
    for name, leaves in _carried(learner).items():
        new = [arrays.get(f"shared/{name}/{number}") for number in range(len(leaves))]
        if all(value is None for value in new):
            continue
        places = iter(zip(leaves, new, strict=True))
        found[name] = learner.backend.tree_map(
            lambda _, p=places, n=name: _like(learner, n, *next(p)), getattr(learner.shared, name)
        )
    return found


def _like(learner: Learner, name: str, old: Any, new: Any) -> Any:
    shape = learner.backend.signature(as_array(old))[0]
    if new is None or new.shape != shape:
        raise ValueError(
            f"shared.{name} has shape {list(shape)} here, {None if new is None else list(new.shape)} there"
        )
    if isinstance(old, (bool, int, float)):
        return type(old)(new)
    return learner.backend.convert(new)


def _keyed(learner: Learner) -> dict[str, Callback]:
    """The callbacks by their names, numbered where there are several."""
    found: dict[str, Callback] = {}
    for callback in learner.callbacks:
        name, number = name_of(callback), 1
        key = name
        while key in found:
            number += 1
            key = f"{name} {number}"
        found[key] = callback
    return found


def _json(key: str, state: dict[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state_dict of {key} is not made of JSON values: {error}") from error


def _put_history(learner: Learner, manifest: Mapping[str, Any]) -> None:
    shared = learner.shared
    if isinstance(getattr(shared, "history", None), History):
        counts = shared.history._counts
        counts.clear()
        for name, values in manifest["history"].items():
            tally = counts[name] = Tally()
            for field, value in zip(Tally.__slots__, values, strict=True):
                setattr(tally, field, value)
    if isinstance(getattr(shared, "metrics_epoch", None), Series):
        shared.metrics_epoch._by_phase = {phase: dict(series) for phase, series in manifest["metrics"].items()}


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
