"""Arrays on their way in and out: batches to tensors, tensors to NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeGuard, cast

import numpy as np
import optree
import tensorflow as tf

from loopcore.backend import Array, Tree

_ATOMS = (str, bytes, bool, int, float, complex, NoneType)
Eager: Any = type(tf.constant(0))  # the type of tensors that have a value


class Arrays:
    """Conversions for one floating dtype and one device.

    Attributes:
        dtype: the parameters' floating dtype.
        device: where arrays go; None is TensorFlow's own default.
    """

    def __init__(self) -> None:
        self.dtype: Any = tf.float32
        self.device: str | None = None

    def convert(self, tree: Tree) -> Tree:
        """A batch as tensors; the same object if nothing changes."""
        if type(tree) is dict and self.device is None and all(map(self._fits, tree.values())):
            return tree
        leaves, spec = flatten(tree)
        converted = [self.leaf(leaf) for leaf in leaves]
        if all(new is old for new, old in zip(converted, leaves, strict=True)):
            return tree
        return optree.tree_unflatten(spec, converted)

    def _fits(self, leaf: Any) -> bool:
        return type(leaf) is Eager and (leaf.dtype == self.dtype or not leaf.dtype.is_floating)

    def leaf(self, leaf: Any) -> Any:
        """One leaf of a batch."""
        if isinstance(leaf, tf.Variable):
            leaf = leaf.read_value()
        if isinstance(leaf, tf.Tensor):
            return self._placed(tf.cast(leaf, self.dtype) if leaf.dtype.is_floating else leaf)
        if isinstance(leaf, _ATOMS) and not isinstance(leaf, np.generic):
            return leaf
        host = _as_numpy(leaf)
        return leaf if host is None else self.from_numpy(host)

    def from_numpy(self, host: np.ndarray[Any, Any]) -> Array:
        """A copy of a NumPy array on the device; floats in the parameters' dtype."""
        dtype = self.dtype if tf.as_dtype(host.dtype).is_floating else tf.as_dtype(host.dtype)
        return self._placed(tf.constant(np.array(host, dtype.as_numpy_dtype, order="C")))

    def tensor(self, value: Any, dtype: Any = None) -> Array:
        """An array or a number as a tensor, in this dtype if one is given."""
        tensor = self.leaf(value)
        if not isinstance(tensor, tf.Tensor):
            return tf.constant(tensor, dtype or (self.dtype if isinstance(tensor, float) else None))
        return tensor if dtype is None or tensor.dtype == dtype else tf.cast(tensor, dtype)

    def _placed(self, tensor: Array) -> Array:
        if self.device is None or type(tensor) is not Eager or tensor.device.endswith(self.device):
            return tensor
        with tf.device(self.device):
            return tf.identity(tensor)


def flatten(tree: Tree) -> tuple[list[Any], Any]:
    """Leaves and structure of a tree; None is a leaf."""
    return optree.tree_flatten(tree, none_is_leaf=True)


def is_symbolic(value: Any) -> bool:
    """Whether it stands for a tensor while a program is traced."""
    return isinstance(value, tf.Tensor) and type(value) is not Eager


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether it is a tensor, a variable, or a NumPy array or scalar of numbers or bools."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _is_numeric(value.dtype)
    return isinstance(value, (tf.Tensor, tf.Variable))


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" or dtype.name == "bfloat16"


def signature(array: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and NumPy dtype; nothing is fetched."""
    if isinstance(array, (tf.Tensor, tf.Variable)):
        return tuple(cast(Any, array).shape), np.dtype(array.dtype.as_numpy_dtype)
    host = np.asarray(array)
    return host.shape, host.dtype


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """A copy on the host."""
    return np.array(array.numpy() if isinstance(array, (tf.Tensor, tf.Variable)) else array)


def dense(gradient: Any) -> Array:
    """A gradient as a tensor; that of a gather comes as slices."""
    return tf.convert_to_tensor(gradient)


def _as_numpy(leaf: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(leaf, (type, Mapping)) or not (hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__")):
        return None
    array = np.asarray(leaf) if hasattr(leaf, "__array__") else np.from_dlpack(leaf)
    return array if _is_numeric(array.dtype) else None
