"""Arrays on their way in and out: batches to tensors, tensors to NumPy, trees of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from math import isfinite
from types import NoneType
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from loopcore_torch.containers import flatten, tree_map, unflatten

_ATOMS = (str, bytes, bool, int, float, complex, NoneType)
_FLOATS = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
# Dtypes that a batch may have besides the floating one of the parameters; other floats are converted to that.
_OTHER_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128}
)


class Arrays:
    """Converts batches, values and what handlers write to one floating dtype and one device.

    Attributes:
        dtype: the parameters' floating dtype.
        device: where arrays go.
        unit: the 0-d 1, what the gradient of a loss by itself is.
    """

    def __init__(self) -> None:
        self.place(torch.float32, torch.device("cpu"))

    def place(self, dtype: torch.dtype, device: torch.device) -> None:
        """Set the dtype and the device that arrays get."""
        self.dtype = dtype
        self.device = device
        self.unit = torch.ones((), dtype=dtype, device=device)
        self._fitting = _OTHER_DTYPES | {dtype}
        # NumPy's codes for bool, uint8 and the signed integers: arrays of these, and of the parameters' floating dtype,
        # become tensors without a conversion.
        kinds: list[Any] = [*"?bBhilq", *([_FLOATS[dtype]] if dtype in _FLOATS else [])]
        self._as_it_is = frozenset(np.dtype(kind) for kind in kinds)
        self._on_cpu = device.type == "cpu"

    def convert(self, tree: Any) -> Any:
        """A batch as tensors; the same object if nothing changes."""
        # The usual batch, a dict of tensors, is looked through without flattening it, and given back.
        if type(tree) is dict:
            fitting, on_cpu = self._fitting, self._on_cpu
            for value in tree.values():
                if (
                    type(value) is not Tensor
                    or value.dtype not in fitting
                    or value.requires_grad
                    or not (value.is_cpu if on_cpu else value.device == self.device)
                ):
                    break
            else:
                return tree
            if all(type(value) is np.ndarray for value in tree.values()):
                return {name: self.leaf(value) for name, value in tree.items()}
        leaves, spec = flatten(tree)
        converted = [self.leaf(leaf) for leaf in leaves]
        if all(new is old for new, old in zip(converted, leaves, strict=True)):
            return tree
        return unflatten(spec, converted)

    def leaf(self, leaf: Any) -> Any:
        """Convert one leaf of a batch; return what is no array as it is."""
        if type(leaf) is np.ndarray and leaf.dtype in self._as_it_is:  # the usual array in a third of the time
            # from_numpy alone would share the memory of an array that its loader may write to again.
            copied = torch.from_numpy(leaf.copy())
            return copied if self._on_cpu else copied.to(self.device, non_blocking=True)
        if isinstance(leaf, Tensor):
            dtype = self.dtype if leaf.is_floating_point() else leaf.dtype
            tensor = leaf.to(self.device, dtype, non_blocking=True)
            return tensor.detach() if tensor.requires_grad else tensor
        if isinstance(leaf, np.generic) or not isinstance(leaf, _ATOMS):
            host = _as_numpy(leaf)
            if host is not None:
                return from_numpy(host, self.dtype).to(self.device, non_blocking=True)
            move: Any = getattr(leaf, "to", None)
            if not self._on_cpu and callable(move):  # a batch of graphs, and the like
                return move(self.device)
        return leaf

    def tensor(self, value: Any) -> Tensor:
        """A tensor, an array or a number as a tensor on the device; a tensor keeps its graph and its dtype."""
        if isinstance(value, Tensor):
            return value.to(self.device)
        tensor = self.leaf(value)
        if isinstance(tensor, Tensor):
            return tensor
        return torch.as_tensor(value, dtype=self.dtype if isinstance(value, float) else None, device=self.device)

    def adopt(self, old: Any, new: Any) -> Any:
        """Convert what a handler wrote; leaves that share all memory with those of ``old`` stay these."""
        try:
            return tree_map(self._adopt_leaf, old, new)
        except (ValueError, TypeError):  # another structure: what is left of the old one is known by its memory
            old_tensors = [leaf for leaf in flatten(old)[0] if isinstance(leaf, Tensor)]
            return tree_map(lambda leaf: self._known_leaf(old_tensors, leaf), new)

    def _known_leaf(self, old_tensors: list[Tensor], new: Any) -> Any:
        """Return the old tensor that a new leaf shares all memory with, else the new leaf, converted."""
        same = (old for old in old_tensors if isinstance(new, Tensor) and _is_same_memory(old, new))
        original = next(same, None)
        return self.convert(new) if original is None else original

    def _adopt_leaf(self, old: Any, new: Any) -> Any:
        """Return the old leaf if the new one shares all its memory, else the new leaf, converted."""
        if isinstance(old, Tensor) and isinstance(new, Tensor) and (new is old or _is_same_memory(old, new)):
            return old
        return self.convert(new)


def to_host(tree: Any) -> tuple[Any, int]:
    """NumPy copies, and how many copies that took: 0-d tensors of one dtype and device are fetched together."""
    if isinstance(tree, Tensor):
        return to_numpy(tree), 1
    leaves, spec = flatten(tree)
    copies = 0
    host_leaves: list[Any] = [None] * len(leaves)
    # Each copy from an accelerator waits for it: the metrics of a step, 0-d tensors, wait once.
    scalars: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.ndim == 0:
            scalars.setdefault((leaf.dtype, leaf.device), []).append(index)
        elif isinstance(leaf, Tensor):
            host_leaves[index] = to_numpy(leaf)
            copies += 1
        else:
            host_leaves[index] = np.array(leaf) if isinstance(leaf, np.ndarray) else leaf
    for places in scalars.values():
        host = to_numpy(torch.stack([leaves[index].detach() for index in places]))
        copies += 1
        for position, index in enumerate(places):
            host_leaves[index] = host[position, ...]
    return unflatten(spec, host_leaves), copies


def dense(tree: Any) -> Any:
    """Return the same values with sparse tensors among them made dense."""

    def leaf(value: Any) -> Any:
        return value.to_dense() if isinstance(value, Tensor) and value.is_sparse else value

    return tree_map(leaf, tree)


def is_array(value: Any) -> TypeGuard[Tensor | np.ndarray[Any, Any] | np.generic]:
    """Whether the value is a tensor, a NumPy array or a NumPy scalar."""
    return isinstance(value, (Tensor, np.ndarray, np.generic))


def signature(array: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the NumPy dtype of an array; nothing is fetched."""
    if isinstance(array, Tensor):
        return tuple(array.shape), to_numpy(torch.empty(0, dtype=array.dtype)).dtype
    host = np.asarray(array)
    return host.shape, host.dtype


OPAQUE: set[type] = set(_ATOMS)  # types of values that hold no tensor


def detached(tree: Any) -> Any:
    """Return the same values without graph; the same object if there was none."""
    if isinstance(tree, Tensor):
        return tree.detach() if tree.requires_grad else tree
    kind = type(tree)
    if kind in OPAQUE:
        return tree
    leaves, spec = flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        # A leaf that is no tensor: neither this function nor `detach_all` flattens its type again.
        OPAQUE.add(kind)
    attached = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
    if True not in attached:
        return tree
    return unflatten(spec, [x.detach() if cut else x for x, cut in zip(leaves, attached, strict=True)])


def from_numpy(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """A copy as a CPU tensor; floats get ``dtype``, and unsigned integers that torch hardly supports become int64."""
    if array.dtype.name == "bfloat16":
        # torch does not read the bfloat16 that ml_dtypes gives to NumPy, so the bits go over as integers.
        bits = np.array(array.view(np.uint16), order="C")
        return torch.from_numpy(bits).view(torch.bfloat16).to(dtype)
    host_dtype: Any = array.dtype.newbyteorder("=")
    if array.dtype.kind == "f":
        host_dtype = _FLOATS.get(dtype, np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        host_dtype = np.int64
    tensor = torch.from_numpy(np.array(array, dtype=host_dtype, order="C"))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A copy on the host. bfloat16 stays it where ml_dtypes is installed, else it becomes float32."""
    host = tensor.detach().to("cpu", copy=True)
    if host.layout is not torch.strided:
        host = host.to_dense()
    if host.dtype is torch.bfloat16 and _bfloat16 is not None:
        return host.view(torch.uint16).numpy().view(_bfloat16)
    if host.is_floating_point() and host.dtype not in _FLOATS:
        host = host.float()
    return host.numpy(force=True)


def _bfloat16_or_none() -> Any:
    try:
        return np.dtype(import_module("ml_dtypes").bfloat16)
    except ImportError:
        return None


_bfloat16 = _bfloat16_or_none()


def _as_numpy(leaf: Any) -> np.ndarray[Any, Any] | None:
    """Return an array of another framework as one of NumPy; None for what is no array of numbers."""
    if isinstance(leaf, Mapping) or not (hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__")):
        return None
    array = np.asarray(leaf) if hasattr(leaf, "__array__") else np.from_dlpack(leaf)
    return array if array.dtype.kind in "biufc" or array.dtype.name == "bfloat16" else None


def _is_same_memory(old: Tensor, new: Tensor) -> bool:
    """Whether two tensors are views of the same elements."""
    return (
        old.layout is torch.strided is new.layout
        and old.shape == new.shape
        and old.dtype == new.dtype
        and old.device == new.device
        and old.stride() == new.stride()
        and old.storage_offset() == new.storage_offset()
        and old.untyped_storage().data_ptr() == new.untyped_storage().data_ptr()
    )


def _stored_values(tensor: Tensor) -> Tensor:
    """Return a strided tensor as it is, and the elements that a sparse one stores, each once."""
    return tensor if tensor.layout is torch.strided else tensor.coalesce().values()


def is_bounded(tensors: Sequence[Tensor]) -> bool | Tensor:
    """Whether the sum of squares of all tensors is finite: a bool if they are on a CPU, else a 0-d tensor."""
    total = 0.0
    for tensor in tensors:  # the usual case: no list is made for it
        if not tensor.is_cpu or tensor.layout is not _STRIDED:
            break
        total += _norm(tensor).item()
    else:
        # If not, the square of a half-precision number may be what overflowed: the norms are taken again, in float32.
        if isfinite(total):
            return True
    if any([tensor.layout is not torch.strided for tensor in tensors]):
        tensors = [_stored_values(tensor) for tensor in tensors]
    norm = _norm
    if all([tensor.is_cpu for tensor in tensors]):
        return isfinite(sum([norm(tensor, dtype=_WIDE.get(tensor.dtype)).item() for tensor in tensors]))
    # On an accelerator the answer stays there, so that nobody waits for it.
    if any(tensor.dtype in _WIDE for tensor in tensors):
        device = next(tensor.device for tensor in tensors if not tensor.is_cpu)
        norms = [norm(tensor, dtype=_WIDE.get(tensor.dtype)).to(device, torch.float32) for tensor in tensors]
        return torch.isfinite(torch.stack(norms).sum())
    return torch.isfinite(torch.nn.utils.get_total_norm(tensors))


# The dtype in which the norm of a half-precision tensor is computed: squares in its own would overflow.
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_STRIDED = torch.strided
_norm = torch.linalg.vector_norm
