"""Checkpoints: what a run goes on from, taken off a learner and put back, all of it or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopcore.callback import Callback, name_of
from loopcore.checkpoint_file import VERSION, Arrays, read, strict, write
from loopcore.errors import CheckpointError
from loopcore.history import History, Ring, Series, Tally
from loopcore.inputs import as_array
from loopcore.weights import mismatches

if TYPE_CHECKING:
    from loopcore.learner import Learner

Manifest = dict[str, Any]


def save(learner: Learner, path: str | Path, **more: Any) -> Path:
    """Write everything that a run goes on from; see `Learner.save`."""
    if learner.runs.runner is not None:
        raise CheckpointError("a step is running: save between two steps, for instance when an epoch ends")
    arrays, manifest = _taken(learner)
    taken = sorted(manifest.keys() & more.keys())
    if taken:
        raise CheckpointError(f"the manifest has {', '.join(taken)} already: save them under other names")
    try:
        return write(path, arrays, {**manifest, **strict(more)})
    except TypeError as error:
        raise CheckpointError(f"what is saved besides is no JSON: {error}") from error


def load(learner: Learner, path: str | Path) -> None:
    """Go on from a checkpoint; see `Learner.load`."""
    if learner.runs.running:
        raise CheckpointError("a fit, an epoch or a step is running: load before it, or when it has ended")
    arrays, manifest = read(path)
    _check_kind(learner, path, manifest)
    problems = list(_problems(learner, arrays, manifest))
    if problems:
        raise CheckpointError(f"{path} does not fit this learner, nothing was loaded:\n" + "\n".join(problems))
    before = _taken(learner)
    try:
        _put(learner, arrays, manifest)
    except Exception as error:
        _put(learner, *before)
        raise CheckpointError(f"{path} does not fit this learner, nothing was loaded: {error}") from error


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
    return write(path, _weights(learner), {"version": VERSION, "backend": learner.backend.name})


# -- off a learner


def _weights(learner: Learner) -> Arrays:
    return {f"weights/{name}": value for name, value in learner.export_weights().items()}


def _taken(learner: Learner) -> tuple[Arrays, Manifest]:
    """All that a run goes on from, as arrays and JSON values."""
    shared = learner.shared
    arrays = _weights(learner)
    arrays |= {f"optimizer/{name}": value for name, value in learner.backend.export_optimizers().items()}
    for name, leaves in _carried(learner).items():
        arrays |= {f"shared/{name}/{n}": np.asarray(learner.to_host(as_array(x))) for n, x in enumerate(leaves)}
    rings = [
        (phase, name, ring) for phase, by in getattr(shared, "metrics_step", {}).items() for name, ring in by.items()
    ]
    arrays |= {f"steps/{number}": ring.latest() for number, (_, _, ring) in enumerate(rings)}
    own, optimizers = learner.hyper._snapshot()
    manifest = {
        "version": VERSION,
        "backend": learner.backend.name,
        "seed": learner.seed,
        "optimizers": _kinds(learner),
        "hyper": own,
        "optimizer_hyper": [[*slot, value] for slot, value in optimizers.items()],
        "attempts": dict(learner.runs.attempts),
        "history": {name: list(counts) for name, counts in getattr(shared, "history", {}).items()},
        "metrics": {phase: dict(series) for phase, series in getattr(shared, "metrics_epoch", {}).items()},
        "steps": [[phase, name, ring.count] for phase, name, ring in rings],
        "data": {key: _state_of(learner, key, data) for key, data in learner.data.items()},
        "callbacks": {key: _json(key, callback) for key, callback in _keyed(learner).items()},
    }
    return arrays, manifest


def _kinds(learner: Learner) -> dict[str, str]:
    return {prefix: type(learner.optimizer[prefix]).__name__ for prefix, _ in learner.trained}


def _carried(learner: Learner) -> dict[str, list[Any]]:
    names = dict.fromkeys(path.removeprefix("shared.") for one in learner.callbacks for path in one.carries)
    return {name: learner.backend.tree_leaves(getattr(learner.shared, name)) for name in names}


def _state_of(learner: Learner, key: str, data: Any) -> Any:
    """Where a loader is; None for one that does not say, which begins its next epoch as it always does."""
    begun = learner.runs.begun.get(id(data))
    if begun is None and not hasattr(data, "state_dict"):
        return None
    state = data.state_dict() if begun is None else begun[0]
    try:
        return strict(state)
    except TypeError as error:
        warnings.warn(f"the state of the {key} data is no JSON and is not saved: {error}", stacklevel=2)
        return None


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


def _json(key: str, callback: Callback) -> Any:
    try:
        return strict(callback.state_dict())
    except TypeError as error:
        raise CheckpointError(f"the state_dict of {key} is not made of JSON values: {error}") from error


# -- onto a learner


def _check_kind(learner: Learner, path: str | Path, manifest: Manifest) -> None:
    if "callbacks" not in manifest:
        raise CheckpointError(f"{path} has weights alone: write learner.load_model({str(path)!r})")
    if manifest["backend"] != learner.backend.name:
        raise CheckpointError(
            f"{path} is of a {manifest['backend']} learner, this one runs on {learner.backend.name}: an optimizer's "
            "state stays in its framework. Take the weights alone: learner.import_weights(lc.load_weights(path))"
        )


def _problems(learner: Learner, arrays: Arrays, manifest: Manifest) -> Iterator[str]:
    """One line for each thing that is not the same here and there."""
    there, here = _part(arrays, "weights/"), learner.export_weights()
    yield from (f"  {name}: not in the file" for name in here if name not in there)
    yield from (f"  {name}: the model has no such weight" for name in there if name not in here)
    yield from mismatches(learner.backend, {name: value for name, value in there.items() if name in here})
    was, now = manifest["optimizers"], _kinds(learner)
    for prefix in dict.fromkeys([*was, *now]):
        if was.get(prefix) != now.get(prefix):
            what = f"  the optimizer of {prefix!r}" if prefix else "  the optimizer"
            yield f"{what} is {now.get(prefix, 'absent')} here, {was.get(prefix, 'absent')} there"
    for name, leaves in _carried(learner).items():
        for number, leaf in enumerate(leaves):
            saved, shape = arrays.get(f"shared/{name}/{number}"), learner.backend.signature(as_array(leaf))[0]
            if saved is not None and saved.shape != shape:
                yield f"  shared.{name} has shape {list(shape)} here, {list(saved.shape)} there"
    keys = _keyed(learner)
    for key, state in manifest["callbacks"].items():
        if state and key not in keys:
            yield f"  the file has a state of {key}, which is no callback here: add it"


def _put(learner: Learner, arrays: Arrays, manifest: Manifest) -> None:
    learner.import_weights(_part(arrays, "weights/"))
    learner.hyper._restore(manifest["hyper"], {(index, name): v for index, name, v in manifest["optimizer_hyper"]})
    learner.backend.import_optimizers(_part(arrays, "optimizer/"))
    learner.shared._settle()
    for name, leaves in _carried(learner).items():
        saved = [arrays.get(f"shared/{name}/{number}") for number in range(len(leaves))]
        _put_carried(learner, name, leaves, saved)
    learner.seed = int(manifest["seed"])
    learner.runs.attempts.clear()
    learner.runs.attempts.update(manifest["attempts"])
    _put_history(learner, arrays, manifest)
    for key, state in manifest["data"].items():
        data: Any = learner.data.get(key)
        if state is not None and hasattr(data, "load_state_dict"):
            learner.runs.begun.pop(id(data), None)
            data.load_state_dict(state)
    for key, callback in _keyed(learner).items():
        if manifest["callbacks"].get(key):
            callback.load_state_dict(manifest["callbacks"][key])


def _put_carried(learner: Learner, name: str, leaves: list[Any], saved: list[Any]) -> None:
    """Put back what is carried; what the file does not have stays."""
    pairs = iter(zip(leaves, saved, strict=True))

    def value(_: Any) -> Any:
        old, new = next(pairs)
        if new is None:
            return old
        return type(old)(new) if isinstance(old, (bool, int, float)) else learner.backend.convert(new)

    if any(one is not None for one in saved):
        setattr(learner.shared, name, learner.backend.tree_map(value, getattr(learner.shared, name)))


def _put_history(learner: Learner, arrays: Arrays, manifest: Manifest) -> None:
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
    if isinstance(getattr(shared, "metrics_step", None), Series):
        steps: dict[str, dict[str, Ring]] = {}
        for number, (phase, name, count) in enumerate(manifest["steps"]):
            steps.setdefault(phase, {})[name] = Ring.of(arrays[f"steps/{number}"], count)
        shared.metrics_step._by_phase = steps


def _part(arrays: Mapping[str, Any], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
