"""A ``tf.Module``, or a tree of arrays: variables by path, and calls with other values in their place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import optree
import tensorflow as tf

from loopcore.backend import Leaves, Tree
from loopcore.errors import BackendError, UnknownModelError


class Module:
    """What the adapter knows of a ``tf.Module``.

    Args:
        module: the user's; its variables exist.
        title: what messages call it.

    Attributes:
        params: trainable variables by path, the attributes on the way to them.
        buffers: the others.
        seeds: none: a module that draws random numbers takes them from ``learner.random``.

    Raises:
        UnknownModelError: it has no variables yet.
    """

    seeds: tuple[Any, ...] = ()

    def __init__(self, module: Any, title: str) -> None:
        self.layer = module
        self._places: dict[str, tuple[Any, Any]] = {}
        found: dict[str, Any] = {}
        for path, owner, key, variable in _variables(module, "", set()):
            found[path] = variable
            self._places[path] = owner, key
        if not found:
            raise UnknownModelError(f"{title} has no variables yet: call it once on a batch before Learner(...)")
        self.params = {path: variable for path, variable in found.items() if variable.trainable}
        self.buffers = {path: variable for path, variable in found.items() if not variable.trainable}
        signature = inspect.signature(type(module).__call__) if callable(module) else None
        self._mode = signature is not None and "training" in signature.parameters
        self._title = title

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
        """The forward pass; assigns to its buffers."""
        if not callable(self.layer):
            raise BackendError(f"{self._title} has no __call__: define def __call__(self, x)")
        return self.layer(*args, **({"training": training, **kwargs} if self._mode else kwargs))

    def call_apart(
        self, values: Leaves, seeds: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
    ) -> tuple[Any, Leaves]:
        """The forward pass with other values of some variables; leaves the buffers as they are.

        Returns:
            The result, and by path what became of the buffers.
        """
        before = {path: tf.identity(variable) for path, variable in self.buffers.items()}
        with self._instead(values):
            result = self.call(args, kwargs, training)
        after = {path: tf.identity(variable) for path, variable in self.buffers.items()}
        for path, variable in self.buffers.items():
            variable.assign(before[path])
        return result, after

    @contextmanager
    def _instead(self, values: Leaves) -> Iterator[None]:
        """Tensors are where the module has its variables."""
        places = [(self._places[path], value) for path, value in values.items()]
        own = [_get(*place) for place, _ in places]
        try:
            for place, value in places:
                _put(*place, value)
            yield
        finally:
            for (place, _), variable in zip(places, own, strict=True):
                _put(*place, variable)


class Arrays:
    """A tree of arrays: parameters without a forward. They are copies of the user's.

    Args:
        tree: of floating arrays.
        title: what messages call it.
        dtype: what NumPy arrays become; None keeps theirs.
    """

    seeds: tuple[Any, ...] = ()

    def __init__(self, tree: Tree, title: str, dtype: Any) -> None:
        words: Any = optree.tree_paths(tree, none_is_leaf=True)
        leaves, self._spec = optree.tree_flatten(tree, none_is_leaf=True)
        names = [".".join(map(str, path)) or "value" for path in words]
        if len(set(names)) < len(names):
            raise UnknownModelError(f"two arrays of {title} have the same path: {', '.join(names)}")
        own = [tf.Variable(tf.cast(x, dtype if isinstance(x, np.ndarray) and dtype else x.dtype)) for x in leaves]
        self.params: dict[str, Any] = dict(zip(names, own, strict=True))
        self.buffers: dict[str, Any] = {}
        self._title = title

    @property
    def layer(self) -> Tree:
        """The user's tree with the present values."""
        return self.build({path: tf.identity(variable) for path, variable in self.params.items()})

    def build(self, leaves: Leaves) -> Tree:
        """Leaves by path -> the user's tree."""
        return optree.tree_unflatten(self._spec, [leaves[path] for path in self.params])

    def flatten(self, tree: Tree) -> Leaves:
        """The inverse of `build`.

        Raises:
            ValueError: the structure differs.
        """
        leaves, spec = optree.tree_flatten(tree, none_is_leaf=True)
        if spec != self._spec:
            raise ValueError(f"expected a tree like {self._spec}, got {spec}")
        return dict(zip(self.params, leaves, strict=True))

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
        """There is nothing to call."""
        raise BackendError(
            f"{self._title} is a tree of arrays, parameters without a forward: read them with "
            "learner.params.value, or pass a Keras model or a tf.Module to the Learner"
        )

    def call_apart(
        self, values: Leaves, seeds: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
    ) -> tuple[Any, Leaves]:
        """There is nothing to call."""
        return self.call(args, kwargs, training), {}


def is_tree(value: Any) -> bool:
    """Whether it is a non-empty tree of floating tensors, variables or NumPy arrays."""
    leaves = optree.tree_leaves(value, none_is_leaf=True)
    return bool(leaves) and all(
        isinstance(x, (tf.Tensor, tf.Variable, np.ndarray)) and tf.as_dtype(x.dtype).is_floating for x in leaves
    )


def _variables(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, owner, key and variable of all variables below a module, in the order of its attributes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, part in _parts(value):
        name = f"{path}.{key}" if path else str(key)
        if isinstance(part, tf.Variable):
            if id(part) not in seen:
                seen.add(id(part))
                yield name, value, key, part
        elif isinstance(part, (tf.Module, Mapping, list, tuple)):
            yield from _variables(part, name, seen)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, tf.Module):
        return [(key, part) for key, part in vars(value).items() if not key.startswith(("_self_", "_name"))]
    return list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))


def _get(owner: Any, key: Any) -> Any:
    return getattr(owner, key) if isinstance(owner, tf.Module) else owner[key]


def _put(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, tf.Module):
        setattr(owner, key, value)
    else:
        owner[key] = value
