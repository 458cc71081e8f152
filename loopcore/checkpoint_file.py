"""The file of a checkpoint: safetensors, with a manifest in JSON as its metadata. Nothing in it is ever executed.

A file is written under another name in the same folder, synced, and renamed: under its own name it is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, cast

import numpy as np

from loopcore.errors import CheckpointError

VERSION = 2
Arrays = dict[str, np.ndarray[Any, Any]]
_FLOAT = "__float__"  # JSON has no word for NaN and infinity: {"__float__": "nan"}


def write(path: str | Path, arrays: Arrays, manifest: Mapping[str, Any]) -> Path:
    """Write a file; when this returns it is on the disk under its name.

    Raises:
        CheckpointError: the system refused; an older file of this name is as it was.
    """
    from safetensors import SafetensorError  # here, so that importing the package loads nothing that few need
    from safetensors.numpy import save_file

    path = Path(path)
    whole = {name: np.array(value, order="C") for name, value in arrays.items()}
    text = json.dumps(strict(manifest), allow_nan=False)
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, draft, metadata={"loopcore": text, "digest": _digest(whole, text)})
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:  # also of a dtype it does not know
        with suppress(OSError):
            draft.unlink()
        raise CheckpointError(f"{path} could not be written: {type(error).__name__}: {error}") from error
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
    manifest = _loads(path, text)
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {manifest.get('version')}, this loopcore reads version {VERSION}: use the loopcore "
            "that wrote it"
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
            text = (file.metadata() or {})["loopcore"]
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    return _loads(path, text)


def strict(value: Any) -> Any:
    """The same JSON value without the floats that JSON cannot hold.

    Raises:
        TypeError: it is no JSON value.
    """
    if isinstance(value, float) and not isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"the key {wrong[0]!r} is no string")
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{value!r} is no JSON value")


def _loads(path: str | Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_hook=lambda item: float(item[_FLOAT]) if _FLOAT in item else item)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a manifest that is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} has a manifest that is no JSON object")
    return cast("dict[str, Any]", found)


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
