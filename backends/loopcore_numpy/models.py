"""Functions with parameters as models: paths for their arrays, and how to call them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optree

from loopcore.backend import Array, Kind, Leaves, Tree
from loopcore.errors import BackendError, UnknownModelError

# keyword of the mode -> its value while training
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
    "use_running_average": False,
}


class Part(NamedTuple):
    """The parameters or the state of one model: a structure, and a path for each of its arrays.

    Attributes:
        prefix: ``"name."`` of a named model, else nothing.
        paths: with the prefix, in the order of the structure's leaves.
        spec: the structure.
    """

    prefix: str
    paths: tuple[str, ...]
    spec: Any

    def build(self, values: Callable[[str], Array]) -> Tree:
        """The tree with a value for each path."""
        return self.spec.unflatten([values(path) for path in self.paths])

    def relative(self, path: str) -> str:
        """The path without the model's name."""
        return path.removeprefix(self.prefix)

    def flatten(self, tree: Tree, what: str) -> Leaves:
        """The leaves of a tree by path.

        Raises:
            ValueError: the structure differs.
        """
        leaves, spec = optree.tree_flatten(tree)
        if spec != self.spec:
            raise ValueError(f"{what} has the structure {spec}, the model's own is {self.spec}")
        return dict(zip(self.paths, leaves, strict=True))


class Model:
    """A function with parameters, or parameters alone.

    Args:
        title: what messages call it.
        apply_fn: ``(params, x)`` or ``(params, state, x)``; None for parameters alone.
        params: its parameters.
        state: its state, None without.
    """

    def __init__(self, title: str, apply_fn: Any, params: Part, state: Part | None) -> None:
        self._title = title
        self._apply_fn = apply_fn
        self._params = params
        self._state = state
        self._mode, self.takes_rng = _keywords(apply_fn)

    def part(self, kind: Kind) -> Part | None:
        """Its parameters or its state."""
        return self._params if kind == "params" else self._state

    def native(self, values: Callable[[str], Array]) -> Any:
        """What the user gave, with these arrays in it."""
        parts = [part.build(values) for part in (self._params, self._state) if part is not None]
        return parts[0] if self._apply_fn is None else (self._apply_fn, *parts)

    def call(
        self, values: Callable[[str], Array], args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, rng: Any
    ) -> tuple[Any, Leaves]:
        """Forward with the arrays that ``values`` gives; returns the output and the new state by path.

        Raises:
            BackendError: it has no forward, or does not return ``(y, new_state)`` although it has a state.
        """
        if self._apply_fn is None:
            raise BackendError(
                f"{self._title} is a tree of arrays, parameters without a forward: read them with "
                "learner.params.value, or pass (apply_fn, params) to the Learner"
            )
        mode = {self._mode: training is MODES[self._mode]} if self._mode else {}
        keywords = {**mode, **({"rng": rng} if self.takes_rng else {}), **kwargs}
        params = self._params.build(values)
        if self._state is None:
            return self._apply_fn(params, *args, **keywords), {}
        return self._split(self._apply_fn(params, self._state.build(values), *args, **keywords), self._state)

    def _split(self, result: Any, state: Part) -> tuple[Any, Leaves]:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise BackendError(
                f"{self._title} has a state, so its apply_fn(params, state, ...) must return (y, new_state), "
                f"not {type(result).__name__}"
            )
        try:
            return result[0], state.flatten(result[1], "what apply_fn returned")
        except ValueError as error:
            raise BackendError(f"{self._title} changed the structure of its state: {error}") from None


def read(name: str, model: Any) -> tuple[Model, Leaves, Leaves]:
    """What the user gave -> the model, and copies of its parameters and of its state by path.

    Args:
        name: of the model, ``""`` if it is the only one.
        model: ``(apply_fn, params)``, ``(apply_fn, params, state)`` or a tree of arrays.

    Raises:
        UnknownModelError: it is none of these; names the leaf that does not fit.
    """
    title, prefix = (f"the model {name!r}", f"{name}.") if name else ("the model", "")
    apply_fn, tree, *more = _parts(model, title)
    params, weights = _describe(tree, prefix, prefix, name or "param")
    if not weights:
        raise UnknownModelError(f"{title} has no parameters: pass (apply_fn, params) with params a tree of arrays")
    state, buffers = _describe(more[0], prefix, prefix, f"{prefix}state") if more else (None, [])
    if state and set(state.paths) & set(params.paths):
        state, buffers = _describe(more[0], prefix, f"{prefix}state.", f"{prefix}state")
    return (
        Model(title, apply_fn, params, state),
        _copies(title, params.paths, weights, _parameter_problem),
        _copies(title, state.paths if state else (), buffers, _buffer_problem),
    )


def recognises(model: Any) -> bool:
    """Whether `read` takes it."""
    try:
        read("", model)
    except UnknownModelError:
        return False
    return True


def _parts(model: Any, title: str) -> list[Any]:
    if not (isinstance(model, tuple) and any(map(callable, model))):
        return [None, model]
    if callable(model[0]) and len(model) in (2, 3):
        return list(model)
    raise UnknownModelError(
        f"{title} is a tuple of {len(model)} with a function in it: write (apply_fn, params) or "
        "(apply_fn, params, state), in this order"
    )


def _describe(tree: Tree, prefix: str, start: str, bare: str) -> tuple[Part, list[Any]]:
    """The part and its leaves; paths begin with ``start``, that of a single array is ``bare``."""
    accessors, leaves, spec = optree.tree_flatten_with_accessor(tree)
    paths = tuple(start + ".".join(map(_word, keys)) if keys else bare for keys in accessors)
    return Part(prefix, paths, spec), leaves


def _copies(title: str, paths: tuple[str, ...], leaves: list[Any], problem: Callable[[Any], str | None]) -> Leaves:
    found: Leaves = {}
    for path, leaf in zip(paths, leaves, strict=True):
        wrong = "two arrays have this path: rename one" if path in found else problem(leaf)
        if wrong:
            raise UnknownModelError(f"{title} cannot be used because of {path!r}: {wrong}")
        found[path] = np.array(leaf)
    return found


def _word(entry: Any) -> str:
    """One step of a path: a key, an index or the name of a field."""
    return str(getattr(entry, "field", None) or getattr(entry, "name", None) or entry.entry)


def _parameter_problem(leaf: Any) -> str | None:
    if isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic):
        return f"it is the number {leaf!r}, but parameters are arrays of floats, such as np.array([1.0, 2.0])"
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return f"it is a {type(leaf).__module__}.{type(leaf).__qualname__}, a NumPy array of floats is needed"
    if leaf.dtype.kind != "f":
        return f"it has dtype {leaf.dtype}, only floats can be trained: keep it in the state, (apply_fn, params, state)"
    return None


def _buffer_problem(leaf: Any) -> str | None:
    if isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
        return None
    return f"it is a {type(leaf).__module__}.{type(leaf).__qualname__}, a state holds NumPy arrays and numbers"


def _keywords(apply_fn: Any) -> tuple[str | None, bool]:
    """Which keyword of the function is its mode, and whether it takes ``rng``."""
    try:
        parameters = inspect.signature(apply_fn).parameters if apply_fn else {}
    except (TypeError, ValueError):  # a builtin without a signature
        parameters = {}
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return next((name for name in MODES if name in named), None), "rng" in named
