"""Models that belong to no framework: ``(apply_fn, params[, state])``, or a tree of arrays without a forward pass.

What is the same on every backend stands here: which path each array gets, which keyword of the function is its mode,
and what becomes of its new state. An adapter keeps the arrays, makes them its framework's own, and calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optree

from loopcore.backend.foreign import called, foreign
from loopcore.backend.protocol import Array, Kind, Leaves, Model, Native, Tree
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
        names: the paths without the prefix.
        spec: the structure.
    """

    prefix: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    spec: Any

    def build(self, values: Callable[[str], Array]) -> Tree:
        """The tree with a value for each path."""
        return self.spec.unflatten(map(values, self.paths))

    def pack(self, leaves: Leaves) -> Tree:
        """Leaves by path without the model's name -> the tree."""
        return self.spec.unflatten(map(leaves.__getitem__, self.names))

    def flatten(self, tree: Tree, title: str) -> Leaves:
        """The leaves of a tree by path.

        Raises:
            ValueError: the structure differs.
        """
        leaves, spec = optree.tree_flatten(tree)
        if spec != self.spec:
            raise ValueError(f"{title} has the structure {spec}, the model's own is {self.spec}")
        return dict(zip(self.paths, leaves, strict=True))

    def unpack(self, tree: Tree) -> Leaves:
        """The leaves of a tree by path without the model's name, as `pack` takes them.

        Raises:
            ValueError: the structure differs.
        """
        return dict(zip(self.names, self.flatten(tree, "the tree").values(), strict=True))


class Pair:
    """A function with parameters, or parameters alone.

    Args:
        title: what messages call it.
        backend: whose arrays it gets.
        apply_fn: ``(params, x)`` or ``(params, state, x)``; None for parameters alone.
        params: its parameters.
        state: its state; empty without.
        stateful: whether it has one.

    Attributes:
        apply_fn: as given.
        takes_rng: whether a call gets ``rng=``.
    """

    def __init__(
        self, title: str, backend: str, apply_fn: Callable[..., Tree] | None, params: Part, state: Part, stateful: bool
    ) -> None:
        self.title = title
        self._backend = backend
        self.apply_fn = apply_fn
        self.stateful = stateful
        self._params = params
        self._state = state
        keyword, names = keywords(apply_fn) if apply_fn is not None else (None, frozenset[str]())
        self._modes = mode_of(keyword, False), mode_of(keyword, True)
        self.takes_rng = "rng" in names

    def part(self, kind: Kind) -> Part:
        """Its parameters or its state."""
        return self._params if kind == "params" else self._state

    def native(self, values: Callable[[str], Array]) -> Model:
        """What the user gave, with these arrays in it."""
        params = self._params.build(values)
        if self.apply_fn is None:
            return params
        return (self.apply_fn, params, self._state.build(values)) if self.stateful else (self.apply_fn, params)

    def call(
        self,
        params: Tree,
        state: Leaves,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        training: bool,
        rng: Native,
    ) -> tuple[Tree, Leaves]:
        """The forward pass.

        Args:
            params: the parameters, in their own structure.
            state: the arrays of the state by path; nothing for a model without.
            args: of the call.
            kwargs: of the call.
            training: the mode.
            rng: what the function draws by, if it takes one.

        Returns:
            The output, and the new state by path.

        Raises:
            UnknownModelError: it has no forward pass.
            BackendError: it does not return ``(y, new_state)`` although it has a state, or the new state differs from
                the old one in structure or shape.
        """
        if self.apply_fn is None:
            raise UnknownModelError(
                f"{self.title} is a tree of arrays, parameters without a forward pass: read them with "
                "learner.params.value, or pass (apply_fn, params) to the Learner"
            )
        mode = self._modes[training]
        if mode or self.takes_rng:
            kwargs = {**mode, **({"rng": rng} if self.takes_rng else {}), **kwargs}
        if not self.stateful:
            return called(self.apply_fn, self.title, self._backend, params, *args, **kwargs), {}
        tree = self._state.build(state.__getitem__)
        returned = called(self.apply_fn, self.title, self._backend, params, tree, *args, **kwargs)
        result, new = two_parts(returned, f"{self.title} has a state, so its apply_fn")
        return result, self._checked(new, state)

    def _checked(self, tree: Tree, old: Leaves) -> Leaves:
        try:
            new = self._state.flatten(tree, "what apply_fn returned")
        except ValueError as error:
            raise BackendError(
                f"{self.title} changed the structure of its state: {error}. Return a tree like the one it got"
            ) from None
        for path, value in new.items():
            before, after = _shape(old[path]), _shape(value)
            if len(before) != len(after) or any(
                a != b and None not in (a, b) for a, b in zip(before, after, strict=True)
            ):
                raise BackendError(
                    f"{self.title} changed the shape of its state {path!r} from {before} to {after}: a state keeps its "
                    "shapes, so that the next step can take it"
                )
        return new


def recognises(model: Model, is_native: Callable[[object], bool]) -> bool:
    """Whether it is such a model, and has an array of the framework in it."""
    if not any(map(is_native, optree.tree_leaves(model))):
        return False
    try:
        read("", model, is_native, "this")
    except UnknownModelError:
        return False
    return True


def read(name: str, model: Model, is_native: Callable[[object], bool], backend: str) -> tuple[Pair, Leaves, Leaves]:
    """What the user gave -> the model, and its parameters and its state by path, as they came.

    Args:
        name: of the model, ``""`` if it is the only one.
        model: ``(apply_fn, params)``, ``(apply_fn, params, state)`` or a tree of arrays.
        is_native: whether a value is an array of the framework.
        backend: what messages call it.

    Raises:
        UnknownModelError: it is none of these; names the leaf that does not fit.
    """
    title, prefix = (f"the model {name!r}", f"{name}.") if name else ("the model", "")
    apply_fn, tree, *more = _parts(model, title)
    params, weights = _describe(tree, prefix, prefix, name or "param")
    if not weights:
        raise UnknownModelError(f"{title} has no parameters: pass (apply_fn, params) with params a tree of arrays")
    state, buffers = _describe(more[0] if more else {}, prefix, prefix, f"{prefix}state")
    if set(state.paths) & set(params.paths):
        state, buffers = _describe(more[0], prefix, f"{prefix}state.", f"{prefix}state")
    values = _checked(title, params.paths, weights, lambda leaf: _parameter_problem(leaf, is_native, backend))
    state_values = _checked(title, state.paths, buffers, lambda leaf: _buffer_problem(leaf, is_native, backend))
    return Pair(title, backend, apply_fn, params, state, bool(more)), values, state_values


def _parts(model: Model, title: str) -> list[Model]:
    if not (isinstance(model, tuple) and any(map(callable, model))):
        return [None, model]
    if callable(model[0]) and len(model) in (2, 3):
        return list(model)
    raise UnknownModelError(
        f"{title} is a tuple of {len(model)} with a function in it: write (apply_fn, params) or "
        "(apply_fn, params, state), in this order"
    )


def _describe(tree: Tree, prefix: str, start: str, bare: str) -> tuple[Part, list[Array]]:
    """The part and its leaves; paths begin with ``start``, that of a single array is ``bare``."""
    accessors, leaves, spec = optree.tree_flatten_with_accessor(tree)
    paths = tuple(start + ".".join(map(_word, keys)) if keys else bare for keys in accessors)
    return Part(prefix, paths, tuple(path.removeprefix(prefix) for path in paths), spec), leaves


def _word(entry: Any) -> str:
    """One step of a path: a key, an index or the name of a field."""
    return str(getattr(entry, "field", None) or getattr(entry, "name", None) or entry.entry)


def _checked(title: str, paths: tuple[str, ...], leaves: list[Array], problem: Callable[[Array], str | None]) -> Leaves:
    values: Leaves = {}
    for path, leaf in zip(paths, leaves, strict=True):
        wrong = "two arrays have this path: rename one" if path in values else problem(leaf)
        if wrong:
            raise UnknownModelError(f"{title} cannot be used because of {path!r}: {wrong}")
        values[path] = leaf
    return values


def _parameter_problem(leaf: Array, is_native: Callable[[object], bool], backend: str) -> str | None:
    if isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic):
        return f"it is the number {leaf!r}, but parameters are arrays of floats, such as np.array([1.0, 2.0])"
    if not (is_native(leaf) or isinstance(leaf, (np.ndarray, np.generic))):
        return foreign(leaf, backend)
    dtype = str(leaf.dtype)
    if "float" not in dtype and (isinstance(leaf, (np.ndarray, np.generic)) or "complex" not in dtype):
        return f"it has dtype {leaf.dtype}, only floats can be trained: keep it in the state, (apply_fn, params, state)"
    return None


def _buffer_problem(leaf: Array, is_native: Callable[[object], bool], backend: str) -> str | None:
    if is_native(leaf) or isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
        return None
    return f"{foreign(leaf, backend)}; a state holds arrays and numbers"


def keywords(fn: Callable[..., object]) -> tuple[str | None, frozenset[str]]:
    """Which keyword of a function is its mode, and all that can be given by name."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return None, frozenset()
    by_name = frozenset(name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return next((name for name in MODES if name in by_name), None), by_name


def mode_of(keyword: str | None, training: bool) -> dict[str, bool]:
    """The keyword arguments that put a function in training or evaluation mode; none where it has no mode."""
    return {} if keyword is None else {keyword: training is MODES[keyword]}


def two_parts(result: object, caller: str) -> tuple[Tree, Tree]:
    """Check that the user's function returned a pair ``(y, new_state)``, and return it.

    Raises:
        BackendError: something else.
    """
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise BackendError(f"{caller} must return (y, new_state), not {type(result).__name__}")


def _shape(value: Array) -> tuple[int | None, ...]:
    return tuple(getattr(value, "shape", ()))
