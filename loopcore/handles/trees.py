"""Arithmetic on trees of arrays, ``learner.tree``."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, cast

import optree

if TYPE_CHECKING:
    from loopcore.backend.protocol import Array, Backend, Condition, Namespace, Scalar, Tree


class TreeMath:
    """Functions of trees of arrays of one structure; the same on every backend.

    Example:
        >>> import loopcore as lc
        >>> tree = lc.testing.toy_learner().tree
        >>> tree.lerp({"a": 0.0}, {"a": 4.0}, 0.25)
        {'a': 1.0}
    """

    __slots__ = ("_backend",)

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def _of(self, tree: Tree) -> Backend:
        """The backend that a tree belongs to."""
        return self._backend

    def map(self, fn: Callable[..., Tree], tree: Tree, *rest: Tree) -> Tree:
        """Apply ``fn`` to the leaves at the same place of every tree."""
        return self._of(tree).tree_map(fn, tree, *rest)

    def map_with_path(self, fn: Callable[..., Tree], tree: Tree, *rest: Tree) -> Tree:
        """Apply ``fn(path, leaf, *others)``; the path is what ``export_weights`` calls it, ``"layer.weight"``.

        Example:
            >>> import loopcore as lc
            >>> tree = lc.testing.toy_learner().tree
            >>> tree.map_with_path(lambda path, x: 0.0 if path.endswith("bias") else x, {"out": {"bias": 1.0}})
            {'out': {'bias': 0.0}}
        """
        backend = self._of(tree)
        names = iter(_paths(backend, tree))
        return backend.tree_map(lambda *leaves: fn(next(names), *leaves), tree, *rest)

    def add(self, a: Tree, b: Tree) -> Tree:
        """``a + b``."""
        return self.map(lambda x, y: x + y, a, b)

    def sub(self, a: Tree, b: Tree) -> Tree:
        """``a - b``."""
        return self.map(lambda x, y: x - y, a, b)

    def scale(self, tree: Tree, factor: Scalar) -> Tree:
        """``factor * tree``, with a number or a 0-d array; integers, such as counters, stay integers (rounded)."""
        backend = self._of(tree)
        return self.map(lambda x: _scaled(backend, x, factor), tree)

    def lerp(self, a: Tree, b: Tree, t: Scalar) -> Tree:
        """``a + t * (b - a)``; integers, such as counters among buffers, stay integers (rounded down)."""
        backend = self._of(a)
        return self.map(lambda x, y: _between(backend, x, y, t), a, b)

    def dot(self, a: Tree, b: Tree) -> Array:
        """Sum over all leaves of ``sum(a * b)``, 0-d."""
        backend = self._of(a)
        products = backend.tree_leaves(self.map(lambda x, y: backend.xp.sum(x * y), a, b))
        return reduce(lambda x, y: x + y, products)

    def global_norm(self, tree: Tree) -> Array:
        """Euclidean norm of all numbers in the tree, 0-d."""
        return self._of(tree).xp.sqrt(self.dot(tree, tree))

    def all_finite(self, tree: Tree) -> Condition:
        """Whether no number is NaN or infinite, a 0-d boolean array."""
        backend = self._of(tree)
        xp = backend.xp
        return reduce(lambda x, y: x & y, [xp.all(xp.isfinite(x)) for x in backend.tree_leaves(tree)])

    def is_bounded(self, tree: Tree) -> Condition:
        """Whether no number is NaN, infinite, or so large that the sum of squares is: at the cost of one look at each.

        Args:
            tree: of floating arrays; a list of them is the fastest.

        Returns:
            A bool where the host knows without waiting, else a 0-d boolean array.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> tree = lc.testing.toy_learner().tree
            >>> tree.is_bounded({"a": np.ones(2)}), tree.is_bounded({"a": np.array([1.0, np.nan])})
            (True, False)
        """
        backend = self._of(tree)
        # The guard of updates has the gradients as a list, and asks at every update.
        leaves = tree if type(tree) is list else backend.tree_leaves(tree)
        quick = getattr(backend, "is_bounded", None)
        if quick is not None:
            return quick(leaves)
        xp = backend.xp
        # In float16 the square of 256 is infinite already, and such a gradient is no reason to stop.
        wide = [xp.astype(x, xp.float32) if backend.signature(x)[1].itemsize < 4 else x for x in leaves]
        return xp.isfinite(reduce(lambda x, y: x + y, [xp.sum(x * x) for x in wide]))

    def zeros_like(self, tree: Tree) -> Tree:
        """Zeros of the same shapes and dtypes."""
        return self.map(self._of(tree).xp.zeros_like, tree)


_CONTAINERS = (dict, list, tuple)
_ATOMS = (bool, int, float, complex, str, bytes, type(None))


def is_container(backend: Backend, value: object) -> bool:
    """Whether a value is a tree of others and no leaf: which it is, depends on its type alone.

    Besides dicts, lists and tuples, these are the classes that the user registered with the framework.
    """
    if isinstance(value, _CONTAINERS):
        return True
    if isinstance(value, _ATOMS) or backend.is_array(value):
        return False
    leaves = backend.tree_leaves(value)
    return len(leaves) != 1 or leaves[0] is not value


class Containers(dict[type, bool]):
    """`is_container`, asked once for each type, where a look-up is all that may be paid.

    Args:
        backend: knows its trees.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    def has(self, value: object) -> bool:
        """Whether a value is a container."""
        answer = self.get(type(value))
        if answer is None:
            answer = self[type(value)] = is_container(self._backend, value)
        return answer


def _paths(backend: Backend, tree: Tree) -> list[str]:
    """Names of the leaves, in their order."""
    names_of = getattr(backend, "tree_names", None)
    if names_of is not None:
        return cast("list[str]", names_of(tree))
    # Whether None is a leaf differs from framework to framework; the number of leaves tells what this one thinks.
    count = len(backend.tree_leaves(tree))
    paths = optree.tree_paths(tree, none_is_leaf=True)
    if len(paths) != count:
        paths = optree.tree_paths(tree)
    return [".".join(map(str, path)) for path in paths]


def _scaled(backend: Backend, x: Array, factor: Scalar) -> Array:
    xp = backend.xp
    # By the word, since frameworks have dtypes of different classes.
    if "int" not in str(getattr(x, "dtype", "")):
        return x * _fitting(xp, factor, x)
    if isinstance(factor, int):
        return x * factor
    if backend.is_array(factor) and backend.signature(factor)[1].kind in "iub":
        return x * xp.astype(factor, x.dtype)
    # Half more and then rounded down is rounded to the nearest. `astype` cuts off towards zero, which for negative
    # numbers is up: where it did, one less.
    product = xp.astype(x, xp.float32) * _fitting(xp, factor, xp.zeros((), dtype=xp.float32)) + 0.5
    rounded = xp.astype(product, x.dtype)
    return rounded - xp.astype(xp.astype(rounded, xp.float32) > product, x.dtype)


def _fitting(xp: Namespace, factor: Scalar, x: Array) -> Scalar:
    """A factor in the dtype of what it is for, where that is floating: TensorFlow multiplies equal dtypes only."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or getattr(factor, "dtype", dtype) == dtype or "float" not in str(dtype):
        return factor
    return xp.astype(factor, dtype)


def _between(backend: Backend, x: Array, y: Array, t: Scalar) -> Array:
    xp = backend.xp
    if backend.signature(x)[1].kind not in "iu" or not hasattr(x, "dtype"):
        t = _fitting(xp, t, x)
        lerp = getattr(backend, "lerp", None)
        return x + t * (y - x) if lerp is None else lerp(x, y, t)
    # Rounded down, as in `_scaled`; in float32 counters are exact below 2**24.
    change = t * xp.astype(y - x, xp.float32)
    rounded = xp.astype(change, x.dtype)
    return x + rounded - xp.astype(xp.astype(rounded, xp.float32) > change, x.dtype)
