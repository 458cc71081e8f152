"""Arrays on their way in and out: batches to tensors, tensors to NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeGuard, cast

import numpy as np
import optree
import tensorflow as tf

from loopcore.backend import Array, Tree
from loopcore_tensorflow.autodiff_context import AutodiffContext

_ATOMS = (str, bytes, bool, int, float, complex, NoneType)
Eager: Any = type(tf.constant(0))  # the type of tensors that have a value


class Arrays:
    """Conversions for one floating dtype and one device.

    Args:
        context: knows what was lent to a handler within an objective.

    Attributes:
        dtype: the parameters' floating dtype.
        device: where arrays go; None is TensorFlow's own default.
    """

    def __init__(self, context: AutodiffContext) -> None:
        self._context = context
        self.dtype: Any = tf.float32
        self.device: str | None = None

    def convert(self, tree: Tree) -> Tree:
        """Convert a batch from any loader to tensors; the same object if nothing changes."""
        # A dict of tensors that fit, the usual case, is found out without taking the tree apart.
        if type(tree) is dict and self.device is None and all(map(self._fits, tree.values())):
            return tree
        leaves, spec = flatten(tree)
        converted = [self.leaf(leaf) for leaf in leaves]
        if all(new is old for new, old in zip(converted, leaves, strict=True)):
            return tree
        return optree.tree_unflatten(spec, converted)

    def adopt(self, old: Tree, new: Tree) -> Tree:
        """Convert what a handler wrote; leaves it handed back stay those of ``old``."""
        # The handler may hand back a leaf as it is, or the copy of one that was lent to it.
        leaves_by_id = {id(leaf): leaf for leaf in optree.tree_leaves(old)}

        def adopted(leaf: Any) -> Any:
            if id(leaf) in leaves_by_id:
                return leaf
            original = self._context.returned(leaf)
            return self.leaf(leaf) if original is None else original

        return optree.tree_map(adopted, new)

    def _fits(self, leaf: Any) -> bool:
        """Whether a leaf is a tensor already, and in the right dtype; anything else `leaf` looks at."""
        return type(leaf) is Eager and (leaf.dtype == self.dtype or not leaf.dtype.is_floating)

    def leaf(self, leaf: Any) -> Any:
        """Convert one leaf of a batch to a tensor; what holds no numbers, and Python numbers, stay as they are."""
        if isinstance(leaf, tf.Variable):
            leaf = leaf.read_value()
        if isinstance(leaf, tf.Tensor):
            return self._placed(tf.cast(leaf, self.dtype) if leaf.dtype.is_floating else leaf)
        if isinstance(leaf, _ATOMS) and not isinstance(leaf, np.generic):
            return leaf
        host = _as_numpy(leaf)
        return leaf if host is None else self.from_numpy(host)

    def from_numpy(self, host: np.ndarray[Any, Any]) -> Array:
        """Copy a NumPy array to the device; floats in the parameters' dtype."""
        dtype = self.dtype if tf.as_dtype(host.dtype).is_floating else tf.as_dtype(host.dtype)
        # Cast on the host, so that the device gets no more bytes than it keeps.
        return self._placed(tf.constant(np.array(host, dtype.as_numpy_dtype, order="C")))

    def tensor(self, value: Any, dtype: Any = None) -> Array:
        """Convert an array or a number to a tensor, in a dtype if one is given."""
        tensor = self.leaf(value)
        if not isinstance(tensor, tf.Tensor):
            return tf.constant(tensor, dtype or (self.dtype if isinstance(tensor, float) else None))
        return tensor if dtype is None or tensor.dtype == dtype else tf.cast(tensor, dtype)

    def _placed(self, tensor: Array) -> Array:
        """A tensor on the device; one in a trace stays, since the program places it."""
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
    """Whether a dtype is one of numbers or bools; bfloat16 has a kind of its own in NumPy."""
    return dtype.kind in "biufc" or dtype.name == "bfloat16"


def signature(array: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and NumPy dtype; nothing is fetched."""
    if isinstance(array, (tf.Tensor, tf.Variable)):
        return tuple(cast(Any, array).shape), np.dtype(array.dtype.as_numpy_dtype)
    host = np.asarray(array)
    return host.shape, host.dtype


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """Copy an array to the host; the user may write into the copy."""
    return np.array(array.numpy() if isinstance(array, (tf.Tensor, tf.Variable)) else array)


def dense(gradient: Any) -> Array:
    """Convert a gradient to a tensor; TensorFlow gives that of a gather as ``IndexedSlices``."""
    return tf.convert_to_tensor(gradient)


def _as_numpy(leaf: Any) -> np.ndarray[Any, Any] | None:
    """A foreign array as one of NumPy; None for what is no array of numbers or bools."""
    # A class has the methods of its instances, and a mapping of arrays may have ``__array__``: neither is an array.
    if isinstance(leaf, (type, Mapping)) or not (hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__")):
        return None
    array = np.asarray(leaf) if hasattr(leaf, "__array__") else np.from_dlpack(leaf)
    return array if _is_numeric(array.dtype) else None
