"""A ``tf.Module``: variables by path, and calls with other values in their place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from loopcore.backend import Leaves
from loopcore.errors import BackendError, UnknownModelError
from loopcore_keras.models import is_model


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
        variables: dict[str, Any] = {}
        for path, owner, key, variable in _variables(module, "", set()):
            variables[path] = variable
            self._places[path] = owner, key
        if not variables:
            raise UnknownModelError(f"{title} has no variables yet: call it once on a batch before Learner(...)")
        self.params = {path: variable for path, variable in variables.items() if variable.trainable}
        self.buffers = {path: variable for path, variable in variables.items() if not variable.trainable}
        # A module that takes no mode is called without one; it cannot differ between training and evaluation.
        signature = inspect.signature(type(module).__call__) if callable(module) else None
        self._mode = signature is not None and "training" in signature.parameters
        self._title = title

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
        """Call the module on a batch; it assigns to its own buffers."""
        if not callable(self.layer):
            raise BackendError(f"{self._title} has no __call__: define def __call__(self, x)")
        return self.layer(*args, **({"training": training, **kwargs} if self._mode else kwargs))

    def call_apart(
        self, values: Leaves, seeds: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
    ) -> tuple[Any, Leaves]:
        """Call the module with other values of some variables, and leave its buffers as they are.

        Args:
            values: tensors by path, in place of its variables.
            seeds: nothing, see the class.
            args: of the call.
            kwargs: of the call.
            training: passed on as ``training=`` where the module takes it.

        Returns:
            The result, and by path what became of the buffers.
        """
        # The module assigns to its buffers as it likes. Their new values are read, then the old ones are put back.
        before = {path: tf.identity(variable) for path, variable in self.buffers.items()}
        with self._replaced(values):
            result = self.call(args, kwargs, training)
        after = {path: tf.identity(variable) for path, variable in self.buffers.items()}
        for path, variable in self.buffers.items():
            variable.assign(before[path])
        return result, after

    @contextmanager
    def _replaced(self, values: Leaves) -> Iterator[None]:
        """Run a block while tensors are where the module has its variables.

        A tape differentiates by these tensors then, since a module can read nothing else in place of its attributes.
        """
        places = [(self._places[path], value) for path, value in values.items()]
        originals = [_get(*place) for place, _ in places]
        try:
            for place, value in places:
                _put(*place, value)
            yield
        finally:
            for (place, _), variable in zip(places, originals, strict=True):
                _put(*place, variable)


def _variables(value: Any, path: str, visited: set[int]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Find the variables below a module, in the order of its attributes.

    Args:
        value: a module, or a dict, list or tuple in one.
        path: the way to it.
        visited: ids of what has been seen; it grows.

    Yields:
        The path of a variable, the object that holds it, the attribute or key under which it does, and the variable.

    Raises:
        UnknownModelError: a layer of Keras is among the parts.
    """
    # Modules may refer to each other in circles, and one variable may have two names: the first counts.
    if id(value) in visited:
        return
    visited.add(id(value))
    for key, part in _parts(value):
        name = f"{path}.{key}" if path else str(key)
        if isinstance(part, tf.Variable):
            if id(part) not in visited:
                visited.add(id(part))
                yield name, value, key, part
        elif isinstance(part, (tf.Module, Mapping, list, tuple)):
            yield from _variables(part, name, visited)
        elif is_model(part):
            raise UnknownModelError(
                f"{name} is a layer of Keras within a tf.Module, which does not know its variables, so that nobody "
                "would train it: write the whole as a keras.Model, or pass both to the Learner, "
                '{"own": module, "layer": layer}'
            )


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Attributes, entries or elements, each with its name, key or number."""
    if isinstance(value, tf.Module):
        # ``_self_`` and ``_name`` are where TensorFlow tracks dependencies and keeps the name scope.
        return [(key, part) for key, part in vars(value).items() if not key.startswith(("_self_", "_name"))]
    return list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))


def _get(owner: Any, key: Any) -> Any:
    """What an object holds under a name or a key."""
    return getattr(owner, key) if isinstance(owner, tf.Module) else owner[key]


def _put(owner: Any, key: Any, value: Any) -> None:
    """Let an object hold a value under a name or a key."""
    if isinstance(owner, tf.Module):
        setattr(owner, key, value)
    else:
        owner[key] = value
