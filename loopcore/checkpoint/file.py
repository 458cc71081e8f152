"""The file of a checkpoint: safetensors, with a manifest in strict JSON as its metadata. Nothing in it is executed.

It is written under another name in the same folder, synced, and renamed: under its own name it is always whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, Never, TypeAlias

import numpy as np

from loopcore.backend.protocol import Array, HostArray, HostDtype
from loopcore.errors import CheckpointError

VERSION = 1
Json: TypeAlias = Any  # None, bools, numbers, strings, and lists and dicts of these
Manifest: TypeAlias = dict[str, Json]
Arrays: TypeAlias = dict[str, HostArray]
_PLAIN = frozenset(  # dtypes that the format has, and NumPy (with ml_dtypes) reads
    (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "bfloat16", "complex64"),
    )
)
_FLOAT = "$float"  # {"$float": "nan"} is a float that JSON does not have


def write(path: str | Path, arrays: Mapping[str, Array], manifest: Mapping[str, Json]) -> Path:
    """Write a file; when this returns it is on the disk under its name.

    Raises:
        CheckpointError: the system refused, an array is of a dtype that no file can keep, or the manifest is not made
            of JSON values; there is no new file, and an older one of this name is as it was.
    """
    from safetensors.numpy import save_file  # not at the top: few programs need it, and it would slow the import down

    path = Path(path)
    draft: Path | None = None
    try:
        # Python would write NaN as a literal that JSON does not have, and other readers refuse the file.
        text = json.dumps(encoded(manifest), allow_nan=False)
        native = {name: _native(name, value) for name, value in arrays.items()}
        dtypes = {name: array.dtype.name for name, array in native.items() if array.dtype.name not in _PLAIN}
        stored = {name: _bytes_of(array) if name in dtypes else array for name, array in native.items()}
        metadata = {"loopcore": text, **({"dtypes": json.dumps(dtypes)} if dtypes else {})}
        # Of the arrays and the manifest together: a part of one file in another is found as well as a damaged byte.
        metadata["digest"] = _digest(native, metadata)
        # In the same folder, since a rename is atomic within a file system only; with a name of its own, since two
        # processes may write the same file.
        draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(stored, draft, metadata=metadata)
        # Before the rename: a power cut could otherwise keep the new name and lose the content, and the old file is
        # gone.
        _sync(draft)
        os.replace(draft, path)
    except BaseException as error:
        if draft is not None:
            with suppress(OSError, ValueError):  # the draft may not exist, nor its folder
                draft.unlink()
        if not isinstance(error, Exception):  # KeyboardInterrupt goes on as it is
            raise
        raise CheckpointError(f"{path} could not be written: {error}") from error
    _sync_name(path)
    return path


def _native(name: str, value: Array) -> HostArray:
    """Copy an array in the byte order of this machine.

    Raises:
        TypeError: it holds what no file can keep.
    """
    array: HostArray = np.asarray(value)
    if not _is_kept(array.dtype):
        raise TypeError(f"{name} is an array of {array.dtype}: keep it in an array of numbers or bools")
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _is_kept(dtype: HostDtype) -> bool:
    if dtype.name in _PLAIN or dtype.kind == "c":
        return dtype.itemsize <= 16  # long doubles have another layout on another machine
    try:  # bfloat16 and the like, which only ml_dtypes knows
        return dtype.kind not in "OUSMmg" and dtype.fields is None and _dtype(dtype.name) == dtype
    except (AttributeError, ImportError, TypeError):
        return False


def _dtype(name: str) -> HostDtype:
    if name in _PLAIN - {"bfloat16"} or name.startswith("complex"):
        return np.dtype(name)
    dtype: HostDtype = np.dtype(getattr(import_module("ml_dtypes"), name))
    return dtype


def _bytes_of(array: HostArray) -> HostArray:
    """View an array, of a dtype that the format or its reader does not have, as its bytes along one more axis."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat.reshape(*array.shape, array.dtype.itemsize)


def _from_bytes(stored: HostArray, name: str) -> HostArray:
    try:
        dtype = _dtype(name)
    except (AttributeError, ImportError, TypeError):
        raise ValueError(f"it has arrays of {name}: install ml_dtypes, or a later one") from None
    return np.ascontiguousarray(stored).reshape(-1).view(dtype).reshape(stored.shape[:-1])


def read(path: str | Path) -> tuple[Arrays, Manifest]:
    """Read the arrays and the manifest of a file.

    Raises:
        CheckpointError: there is none, it is no checkpoint, damaged, or of a later version.
    """
    arrays, metadata = _content(path, with_arrays=True)
    if metadata["digest"] != _digest(arrays, metadata):
        raise CheckpointError(f"{path} is damaged: it is not what was written")
    return arrays, _manifest(path, metadata["loopcore"])


def manifest_of(path: str | Path) -> Manifest:
    """Read the manifest alone, without a look at the arrays.

    Raises:
        CheckpointError: there is none, or it is of a later version.
    """
    return _manifest(path, _content(path, with_arrays=False)[1]["loopcore"])


def encoded(value: object) -> Json:
    """JSON values for these, where floats that JSON does not have are written out.

    Raises:
        TypeError: there are others than None, bools, numbers, strings, lists, and dicts by strings.
    """
    if isinstance(value, float):
        return float(value) if isfinite(value) else {_FLOAT: repr(float(value))}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if not isinstance(value, Mapping):
        raise TypeError(f"there is a value of type {type(value).__name__}")
    wrong = next((key for key in value if not isinstance(key, str) or key == _FLOAT), None)
    if wrong is not None:  # json.dumps would make a string of 1, and give back another dict than it got
        raise TypeError(f"there is a dict with the key {wrong!r}: keys are strings, and {_FLOAT!r} is taken")
    return {key: encoded(item) for key, item in value.items()}


def _decoded(pairs: list[tuple[str, Json]]) -> Json:
    values = dict(pairs)
    # JSON leaves open which of two counts, so that two readers would see two manifests.
    if len(values) < len(pairs):
        raise ValueError("a name is there twice")
    return float(values[_FLOAT]) if list(values) == [_FLOAT] else values


def _refused(literal: str) -> Never:
    raise ValueError(f"{literal} is no JSON")


def _manifest(path: str | Path, text: str) -> Manifest:
    try:
        manifest: Json = json.loads(text, object_pairs_hook=_decoded, parse_constant=_refused)
        version = int(manifest["version"])
        str(manifest["backend"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has no manifest of loopcore that can be read: {error}") from error
    # An older file is read as it is: each part knows what files of before lack.
    if version > VERSION:
        raise CheckpointError(f"{path} has version {version}, this loopcore reads up to {VERSION}: update it")
    return dict(manifest)


def _content(path: str | Path, *, with_arrays: bool) -> tuple[Arrays, dict[str, str]]:
    from safetensors import safe_open

    arrays: Arrays = {}
    try:
        if not Path(path).is_file():  # a folder, a pipe that would never answer
            problem = "it is a folder, pass a file in it" if Path(path).is_dir() else "there is no such file"
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {problem}")
        with safe_open(str(path), framework="np") as file:
            metadata = dict(file.metadata() or {})
            if with_arrays:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        for name, dtype in json.loads(metadata.get("dtypes", "{}")).items() if with_arrays else ():
            arrays[name] = _from_bytes(arrays[name], dtype)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors has errors of its own, NumPy others for what it cannot hold
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not {"loopcore", "digest"} <= metadata.keys():
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of loopcore")
    return arrays, metadata


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_name(path: Path) -> None:
    try:
        _sync(path.parent)
    except OSError as error:  # the file is whole, and the older one of its name is gone
        raise CheckpointError(f"{path} was written, but may not survive a power cut: {error}") from error


def _digest(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    import hashlib  # here: it loads OpenSSL, a fiftieth of the time that importing loopcore takes

    digest = hashlib.sha256((metadata["loopcore"] + metadata.get("dtypes", "")).encode())
    # In an order of its own: a reader gives the arrays in that of the file.
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).reshape(-1).data if arrays[name].size else b"")
    return digest.hexdigest()
