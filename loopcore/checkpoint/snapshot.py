"""Checkpoints: everything that a run goes on from, in one file. Loading takes all of it, or nothing."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from loopcore.backend.protocol import HostArray
from loopcore.checkpoint.file import VERSION, Arrays, Json, Manifest, manifest_of, read, write
from loopcore.checkpoint.history import CountsPart, Values
from loopcore.checkpoint.parts import Carried, CheckpointPart, File, HyperPart, OptimizersPart, WeightsPart
from loopcore.checkpoint.stateful import Callbacks, Loaders
from loopcore.errors import CheckpointError, NotFiniteError
from loopcore.protocols import LearnerParts

__all__ = ["load", "load_weights", "manifest_of", "read", "save", "save_weights", "write"]

# the last two call code of others, which may refuse: what comes before them can be brought back for sure
_PARTS: tuple[type[CheckpointPart], ...] = (
    WeightsPart,
    OptimizersPart,
    HyperPart,
    Carried,
    CountsPart,
    Values,
    Callbacks,
    Loaders,
)


def save(learner: LearnerParts, path: str | Path, *, only_finite: bool = False, **more: Json) -> Path:
    """Write everything that a run goes on from; see `Learner.save`."""
    if learner.runs.runner is not None:
        raise CheckpointError(
            f"{path} was not written, a step is running: save between two steps, for instance at EpochEnd"
        )
    arrays: Arrays = {}
    manifest: Manifest = {"version": VERSION, "backend": learner.backend.name}
    for part in _PARTS:
        manifest |= part(learner).save(arrays)
    reserved = ", ".join(sorted(manifest.keys() & more))
    if reserved:
        raise CheckpointError(f"{path} was not written: a checkpoint itself has {reserved}, call yours something else")
    bad = _not_finite(arrays, frozenset(learner.buffers.names))
    if bad:
        problem = f"NaN or infinite numbers in {', '.join(bad[:5])}{' and others' if bad[5:] else ''}"
        if only_finite:
            raise NotFiniteError(f"{path} was not written: {problem}")
        warnings.warn(f"{path} has {problem}: a run cannot go on from it", stacklevel=3)
    return write(path, arrays, {**manifest, **more})


def _not_finite(arrays: Arrays, buffers: frozenset[str]) -> list[str]:
    """Names of weights and of states of optimizers that no run should go on with.

    Minus infinity in a buffer is a mask, and a 0-d infinity of an optimizer the best value that it has not seen yet.
    """
    names: list[str] = []
    for name, array in arrays.items():
        root, _, path = name.partition("/")
        if root not in ("weights", "optimizer") or array.dtype.kind in "biuSUO" or np.isfinite(array).all():
            continue
        spared = path in buffers or (root == "optimizer" and not array.ndim)
        if not spared or np.isnan(array).any() or (root == "weights" and (array > 0)[np.isinf(array)].any()):
            names.append(name)
    return names


def load(learner: LearnerParts, path: str | Path) -> None:
    """Go on from a checkpoint; see `Learner.load`."""
    if learner.runs.is_open:
        raise CheckpointError(
            f"{path} was not loaded: an epoch of this learner is running, and would go on with other weights and "
            "counts. Load before fit; within one, end it with lc.CancelFittingException, load, and call fit again"
        )
    file = File(*read(path))
    _check_kind(learner, path, file.manifest)
    parts = [part(learner) for part in _PARTS]
    try:
        # All differences at once, before anything is changed: a user who fixes one would else find the next.
        problems = [line for part in parts for line in part.differences(file)]
        if not problems:
            with ExitStack() as undo:
                for part in parts:
                    part.load(file, undo)
                # All of it was taken: leaving the block must undo nothing any more.
                undo.pop_all()
    except Exception as error:  # callbacks and loaders of others raise what they like
        reason = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        raise _misfit(path, [reason]) from error
    if problems:
        raise _misfit(path, problems)


def _check_kind(learner: LearnerParts, path: str | Path, manifest: Manifest) -> None:
    if "callbacks" not in manifest:
        raise CheckpointError(f"{path} has weights alone: write learner.load_model({str(path)!r})")
    if manifest["backend"] != learner.backend.name:
        raise CheckpointError(
            f"{path} is of a {manifest['backend']} learner, this one runs on {learner.backend.name}: an optimizer's "
            "state stays in its framework. Take the weights alone: learner.import_weights(lc.load_weights(path))"
        )


def _misfit(path: str | Path, problems: list[str]) -> CheckpointError:
    lines = "".join(f"\n  {line}" for line in problems)
    return CheckpointError(
        f"{path} does not fit this learner, nothing was loaded:{lines}\nMake the learner as the one that was saved, or "
        "take the weights alone: learner.load_model(path)"
    )


def load_weights(path: str | Path) -> dict[str, HostArray]:
    """Read the weights of a checkpoint alone, by name; for any backend.

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
    return File(*read(path)).part("weights/")


def save_weights(learner: LearnerParts, path: str | Path) -> Path:
    """Write the parameters and buffers of a learner alone; see `Learner.save_model`."""
    arrays: Arrays = {}
    WeightsPart(learner).save(arrays)
    return write(path, arrays, {"version": VERSION, "backend": learner.backend.name})
