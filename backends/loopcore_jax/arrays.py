"""Arrays on their way in and out: batches to JAX, JAX to NumPy, trees of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from types import NoneType
from typing import Any, TypeGuard, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from loopcore.backend import Array, Tree

_CONFIG: Any = jax.config  # its attributes have no types
ATOMS: frozenset[type] = frozenset({str, bytes, bool, int, float, complex, NoneType})


class Arrays:
    """Conversions for one floating dtype and one device.

    Attributes:
        dtype: the parameters' floating dtype.
        device: where arrays go; None is JAX's own default.
    """

    def __init__(self) -> None:
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.device: Any = None
        self._dtypes: dict[tuple[Any, ...], np.dtype[Any]] = {}

    def convert(self, tree: Tree) -> Tree:
        """Convert a batch to JAX arrays; the same object if nothing changes."""
        if type(tree) is dict and self.device is None and self._all_fit(tree.values()):
            return tree  # the usual case in a tenth of the time
        return transform(self.leaf, tree)

    def feed(self, tree: Tree) -> Tree:
        """Prepare a batch for a program: what comes from the host stays there, as a copy that nobody else holds.

        The copy is needed because programs start later, and a loader may write the next batch over this one. It stays
        on the host since a call of a program takes a NumPy array in a fifth of the time that it takes to make a JAX
        array of it.
        """
        if type(tree) is dict and self.device is None and self._all_fit(tree.values()):
            return tree
        return transform(self._fed, tree)

    def _fed(self, leaf: Any) -> Any:
        """One leaf of a batch as a program takes it."""
        if isinstance(leaf, jax.Array):
            return self._native(leaf)
        host = leaf if type(leaf) is np.ndarray and leaf.dtype.kind in "biufc" else _as_numpy(leaf)
        return leaf if host is None else np.array(host, self._dtype_of(host.dtype), order="C")

    def place(self, tree: Tree) -> Tree:
        """Make JAX arrays of what `feed` left on the host."""
        return transform(lambda leaf: self.placed(leaf) if is_array(leaf) and type(leaf) is np.ndarray else leaf, tree)

    def _all_fit(self, leaves: Iterable[Any]) -> bool:
        """Whether all leaves are arrays of JAX in the right dtype; a plain loop, as it runs for every batch."""
        for leaf in leaves:
            if not isinstance(leaf, jax.Array):
                return False
            dtype = leaf.dtype
            if dtype != self.dtype and dtype.kind not in "biu":
                return False
        return True

    def leaf(self, leaf: Any) -> Any:
        """Convert one leaf of a batch to a JAX array; what holds no numbers, and Python numbers, stay as they are."""
        if isinstance(leaf, jax.Array):
            return self._native(leaf)
        host = _as_numpy(leaf)
        return leaf if host is None else self.placed(np.array(host, self._dtype_of(host.dtype), order="C"))

    def _native(self, array: Array) -> Array:
        """An array of JAX in the parameters' dtype, if it has floats, and on the device."""
        if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype != self.dtype:
            array = array.astype(self.dtype)
        return array if self.device is None or is_traced(array) else jax.device_put(array, self.device)

    def _dtype_of(self, source: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype that an array of the host gets: that of the parameters for floats, for others the one JAX has.

        Without ``jax_enable_x64`` int64 becomes int32, as everywhere in JAX. The answers are kept, since to ask JAX for
        every leaf of every batch takes its time.
        """
        key = source, self.dtype, _CONFIG.jax_enable_x64
        dtype = self._dtypes.get(key)
        if dtype is None:
            dtype = self.dtype if jnp.issubdtype(source, jnp.floating) else canonical(source)
            self._dtypes[key] = dtype = dtype.newbyteorder("=")  # files may have the other byte order, JAX has not
        return dtype

    def placed(self, host: np.ndarray[Any, Any]) -> Array:
        """Make a JAX array of a NumPy array that nobody else holds: JAX may take its memory as it is."""
        return jnp.asarray(host) if self.device is None else jax.device_put(host, self.device)

    def owned(self, leaf: Any) -> Array:
        """Copy a user's array or number, in its own dtype but never weakly typed.

        A weak type is part of what a program is compiled for, and the first update would make a strong one of it.
        """
        if not isinstance(leaf, jax.Array):
            host = np.asarray(leaf)
            return self.placed(np.array(host, canonical(host.dtype), order="C"))
        array = copied(leaf)
        return array if self.device is None else jax.device_put(array, self.device)

    def like(self, value: Any, old: Array) -> Array:
        """Copy a value, in the dtype of another array; random keys may come as their data."""
        if is_key(old):
            return value.copy() if is_key(value) else as_key(value, old)
        value = primal(value) if isinstance(value, jax.Array) else np.asarray(value)
        array = jnp.array(value, old.dtype)
        return array if self.device is None or is_traced(array) else jax.device_put(array, self.device)

    def adopt(self, old: Tree, new: Tree) -> Tree:
        """Convert what a handler wrote; leaves that it had read and handed back stay those of ``old``."""
        leaves_by_id: dict[int, Any] = {}

        def remember(leaf: Any) -> Any:
            leaves_by_id[id(primal(leaf))] = leaf  # JAX hands out the same primal each time
            return leaf

        transform(remember, old)
        return transform(lambda leaf: leaves_by_id[id(leaf)] if id(leaf) in leaves_by_id else self.leaf(leaf), new)


def transform(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Map over the leaves, dicts in their own order; a tree in which nothing changes is returned as it is.

    This is run on every batch, often for nothing: the usual containers are done here, in a fraction of the time that
    JAX takes to flatten and build them. JAX also sorts the keys of dicts, which is the order in which users see them.
    """
    kind: type[Any] = type(tree)
    if kind is dict:
        items = cast("dict[Any, Any]", tree)
        new = {key: transform(fn, value) for key, value in items.items()}
        return tree if all(map(is_, new.values(), items.values())) else new
    if kind is list or kind is tuple:
        values = [transform(fn, value) for value in tree]
        return tree if all(map(is_, values, tree)) else kind(values)
    if kind in ATOMS:
        return tree
    if isinstance(tree, (jax.Array, np.ndarray)):
        return fn(tree)
    # Any other type: JAX knows whether it is a container that somebody registered.
    leaves, spec = jax.tree_util.tree_flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return fn(tree)
    values = [transform(fn, leaf) for leaf in leaves]
    return tree if all(map(is_, values, leaves)) else jax.tree_util.tree_unflatten(spec, values)


def is_traced(value: Any) -> bool:
    """Whether it is an array that stands for one in a trace or a gradient."""
    return isinstance(value, Tracer)


def is_array(value: Any) -> TypeGuard[Array]:
    """Whether it is a JAX array, or a NumPy array or scalar of numbers or bools."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _is_numeric(value.dtype)
    return isinstance(value, jax.Array)


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of numbers or bools; bfloat16 and its like have a kind of their own in NumPy."""
    return dtype.kind in "biufc" or bool(jnp.issubdtype(dtype, jnp.floating))


def primal(leaf: Any) -> Any:
    """Return the value of an array without the gradients it is part of; within a program the tracer of that."""
    return jax.lax.stop_gradient(leaf) if is_traced(leaf) else leaf


def constant(leaf: Any) -> Any:
    """Return an array as a constant for every gradient; anything else as it is."""
    return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf


def copied(leaf: Any) -> Any:
    """Copy an array, never weakly typed; a tracer cannot be changed or donated by anybody, and stays.

    The learner donates its arrays to programs, which use up their memory. Nobody else may hold one of them.
    """
    if not isinstance(leaf, jax.Array) or is_traced(leaf):
        return leaf
    return leaf.copy() if is_key(leaf) else jnp.array(leaf, leaf.dtype)


def canonical(dtype: Any) -> np.dtype[Any]:
    """The dtype that JAX has in place of a dtype: one of 32 bits for one of 64, unless ``jax_enable_x64`` is set."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def is_key(array: Any) -> bool:
    """Whether it is an array of typed random keys, which NumPy does not know."""
    if not isinstance(array, jax.Array) or isinstance(array.dtype, np.dtype):  # which is quicker than to ask JAX
        return False
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))


def as_key(data: Any, old: Array) -> Array:
    """Make random keys of their data, of the implementation of other keys."""
    return jax.random.wrap_key_data(jnp.array(data, jnp.uint32), impl=jax.random.key_impl(old))


def to_numpy(leaf: Any) -> Any:
    """Copy an array to the host; random keys as their data."""
    leaf = primal(leaf)
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def signature(array: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and NumPy dtype; nothing is fetched."""
    if is_key(array):
        data = jax.eval_shape(jax.random.key_data, array)
        return tuple(data.shape), np.dtype(data.dtype)
    if not isinstance(array, jax.Array):
        array = np.asarray(array)
    return tuple(array.shape), np.dtype(array.dtype)


def _as_numpy(leaf: Any) -> np.ndarray[Any, Any] | None:
    """A foreign array as one of NumPy; None for what is no array of numbers or bools."""
    # A class has the methods of its instances, and a mapping of arrays may have ``__array__``: neither is an array.
    if isinstance(leaf, (type, Mapping)) or not (hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__")):
        return None
    array = np.asarray(leaf) if hasattr(leaf, "__array__") else np.from_dlpack(leaf)
    return array if _is_numeric(array.dtype) else None


def is_bounded(leaves: Sequence[Any]) -> Array:
    """Whether all values are finite, and so are their squares, but for sums that are too large anyway.

    Each value is multiplied by the root of the largest number there is, so that what is too large to be squared becomes
    infinite, and matrices by a vector: of all ways to look at every number once, XLA does that fastest on a CPU.
    """
    # Small leaves are joined, one sum for each dtype: an operation by itself costs more than their work.
    totals: list[Any] = []
    small: dict[Any, list[Any]] = {}
    for leaf in map(primal, leaves):
        array = leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf
        root = float(np.sqrt(np.finfo(array.dtype).max))
        if array.ndim > 1 and array.size:
            totals.append(jnp.sum(array.reshape(-1, array.shape[-1]) @ jnp.full(array.shape[-1], root, array.dtype)))
        else:
            small.setdefault(array.dtype, []).append(array.reshape(-1) * root)
    totals += [jnp.sum(jnp.concatenate(group)) for group in small.values()]
    return jnp.isfinite(sum(totals))
