"""Conversion of trees of arrays at the border between a program and its host."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, TypeGuard, cast

import numpy as np
import optree
from autograd.tracer import getval, isbox

from loopcore.backend import Array, Tree
from loopcore_numpy import functions as f
from loopcore_numpy.tape import SCALARS


def transform(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Map over the leaves; a tree in which nothing changes is returned as it is. Python scalars are left alone."""
    kind: type[Any] = type(tree)
    if kind is np.ndarray:
        return fn(tree)
    if kind is dict:
        items = cast(dict[Any, Any], tree)
        new = {key: fn(value) if type(value) is np.ndarray else transform(fn, value) for key, value in items.items()}
        return tree if all(map(is_, new.values(), items.values())) else new
    if kind is list or kind is tuple:
        values = [transform(fn, value) for value in tree]
        return tree if all(map(is_, values, tree)) else kind(values)
    if kind in SCALARS:
        return tree
    # What is left: named tuples and the containers that users have registered with optree.
    if optree.tree_is_leaf(tree, none_is_leaf=True):
        return fn(tree)
    leaves, spec = optree.tree_flatten(tree, none_is_leaf=True)
    values = [transform(fn, leaf) for leaf in leaves]
    return tree if all(map(is_, values, leaves)) else spec.unflatten(values)


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether a value is an array, a NumPy scalar or a box around one."""
    return isinstance(value, (np.ndarray, np.number, np.bool_)) or (isbox(value) and hasattr(value, "dtype"))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is a float, bfloat16 and the like included (NumPy calls their kind void)."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def convert_leaf(dtype: np.dtype[Any], leaf: Any) -> Any:
    """Convert an array of any framework to a new NumPy array, floats to ``dtype``; return anything else as it is."""
    kind: type[Any] = type(leaf)
    if kind is not np.ndarray:
        if isbox(leaf):
            return _convert_box(leaf, dtype) if is_array(leaf) else leaf
        if isinstance(leaf, (type, str, bytes)) or not hasattr(kind, "__array__"):
            return np.array(np.from_dlpack(cast(Any, leaf))) if hasattr(kind, "__dlpack__") else leaf
        leaf = np.asarray(leaf)
    # Identity first, which is faster than to compare dtypes.
    as_it_is = leaf.dtype is dtype or leaf.dtype == dtype or not is_floating(leaf.dtype)
    return leaf.copy() if as_it_is else leaf.astype(dtype)


def _convert_box(box: Array, dtype: np.dtype[Any]) -> Array:
    return f.astype(box, dtype) if box.dtype != dtype and is_floating(box.dtype) else box


def freeze(leaf: Any) -> Any:
    """Return the plain value of a leaf; an array as a view that cannot be written."""
    value = getval(leaf)
    if isinstance(value, np.ndarray) and value.flags.writeable:
        # The array itself stays writable for whoever owns it.
        value = value.view()
        value.flags.writeable = False
    return value


def place(leaf: Any) -> Any:
    """Return a key that is equal for two leaves that are the same: the memory of an array, or the object's id."""
    value = getval(leaf)
    if isinstance(value, np.ndarray):
        return (value.__array_interface__["data"][0], value.shape, value.strides, value.dtype)
    return id(value)
