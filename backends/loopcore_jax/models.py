"""The models of one learner: paths for their arrays, and how to call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Kind, Leaves, Tree
from loopcore.errors import BackendError, UnknownModelError
from loopcore.foreign import foreign
from loopcore_jax.arrays import Arrays, copied, is_key, primal
from loopcore_jax.libraries import Library, library_of
from loopcore_jax.random import typed
from loopcore_jax.store import Present


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

    def build(self, leaves: Mapping[str, Any]) -> Tree:
        """The tree with the value of each path."""
        return jax.tree_util.tree_unflatten(self.spec, [leaves[path] for path in self.paths])

    def flatten(self, tree: Tree) -> Leaves:
        """The leaves of a tree by path.

        Raises:
            ValueError: the structure differs.
        """
        leaves, spec = jax.tree_util.tree_flatten(tree)
        if spec != self.spec:
            raise ValueError(f"expected a tree like {self.spec}, got {spec}")
        return dict(zip(self.paths, leaves, strict=True))


class Bound(NamedTuple):
    """One model: who calls it, and its parameters and state."""

    title: str
    library: Library
    params: Part
    state: Part

    def part(self, kind: Kind) -> Part:
        """Its parameters or its state."""
        return self.params if kind == "params" else self.state


class Models:
    """The bound models."""

    def __init__(self, present: Present, arrays: Arrays) -> None:
        self._present = present
        self._arrays = arrays
        self._bound: dict[str, Bound] = {}

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the models; their arrays are copied. Sets the dtype of `Arrays` from the parameters."""
        bound: dict[str, Bound] = {}
        params: Leaves = {}
        buffers: Leaves = {}
        for name, model in models.items():
            title, prefix = (f"the model {name!r}", f"{name}.") if name else ("the model", "")
            library = library_of(model, title)
            part, weights = _described(library.params, prefix, prefix, name or "param")
            if not weights:
                raise UnknownModelError(f"{title} has no parameters: give it arrays of floats that can be trained")
            state, values = _described(library.state, prefix, prefix, f"{prefix}state")
            if library.state_prefix or set(state.paths) & set(part.paths):
                state, values = _described(library.state, prefix, f"{prefix}state.", f"{prefix}state")
            params |= self._copies(title, part.paths, weights, _parameter_problem)
            buffers |= self._copies(title, state.paths, values, _buffer_problem)
            bound[name] = Bound(title, library, part, state)
        self._bound = bound
        store = self._present.store
        store.params, store.buffers = params, buffers
        self._arrays.dtype = np.dtype(jnp.result_type(*(value.dtype for value in params.values())))

    def _copies(
        self, title: str, paths: tuple[str, ...], leaves: list[Any], problem: Callable[[Any], str | None]
    ) -> Leaves:
        found: Leaves = {}
        for path, leaf in zip(paths, leaves, strict=True):
            wrong = "two arrays have this path: rename one" if path in found else problem(leaf)
            if wrong:
                raise UnknownModelError(f"{title} cannot be used because of {path!r}: {wrong}")
            found[path] = self._arrays.owned(leaf)
        return found

    # -- trees -------------------------------------------------------------------------------------------------

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """Paths of the arrays of each model."""
        return {name: one.part(kind).paths for name, one in self._bound.items()}

    def whole(self, paths: Iterable[str]) -> str | None:
        """The model of which these are all parameters."""
        wanted = set(paths)
        return next((name for name, one in self._bound.items() if set(one.params.paths) == wanted), None)

    def build(self, model: str, leaves: Mapping[str, Any]) -> Tree:
        """Parameters by full path -> the model's own tree."""
        return self._bound[model].params.build(leaves)

    def flatten(self, model: str, tree: Tree) -> Leaves:
        """The inverse of `build`."""
        return self._bound[model].params.flatten(tree)

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Leaves by relative path -> the model's own tree."""
        part = self._bound[model].part(kind)
        return part.build({path: leaves[path.removeprefix(part.prefix)] for path in part.paths})

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """The inverse of `pack`.

        Raises:
            ValueError: the structure differs.
        """
        part = self._bound[model].part(kind)
        return {path.removeprefix(part.prefix): leaf for path, leaf in part.flatten(tree).items()}

    def native(self, model: str) -> Any:
        """The user's own object, with copies of the present arrays."""
        one, store = self._bound[model], self._present.store
        params = one.params.build({path: copied(store.params[path]) for path in one.params.paths})
        state = one.state.build({path: copied(primal(store.buffers[path])) for path in one.state.paths})
        return one.library.native(params, state)

    def write_back(self) -> None:
        """Give modules that keep their own arrays copies of the present ones."""
        for name, one in self._bound.items():
            if one.library.keeps_arrays:
                self.native(name)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model with the present arrays and keep its new state."""
        one, store = self._bound[model], self._present.store
        result, state = self._call(one, self._params(one), args, kwargs, training)
        if update_state and state is not None and one.state.paths:
            store.buffers.update(self._new_state(one, state, store.buffers))
        return result

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its state stays."""
        one = self._bound[model]
        return self._call(one, {**self._params(one), **leaves}, args, kwargs, training)[0]

    def _params(self, one: Bound) -> Leaves:
        return {path: self._present.array(path) for path in one.params.paths}

    def _call(
        self, one: Bound, params: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
    ) -> tuple[Any, Tree]:
        key = None
        if one.library.takes_key:
            frame = self._present.frame
            frame.calls += 1
            key = jax.random.fold_in(typed(frame.key), np.uint32(frame.calls))
        state = one.state.build(self._present.store.buffers)
        return one.library.call(one.params.build(params), state, args, kwargs, training, key)

    def _new_state(self, one: Bound, state: Tree, old: Leaves) -> Leaves:
        """What a call left, as new arrays in the dtype and shape of what there was."""
        try:
            found = one.state.flatten(state)
        except ValueError as error:
            raise BackendError(
                f"{one.title} changed the structure of its state: {error}. Return a tree like the one it got"
            ) from None
        for path, value in found.items():
            before = old[path]
            if jnp.shape(value) != before.shape:
                raise BackendError(
                    f"{one.title} changed the shape of its state {path!r} from {before.shape} to {jnp.shape(value)}"
                )
            # A copy: what the model handed through may be the user's own array, which a program would use up.
            found[path] = value.copy() if is_key(before) else jnp.array(value, before.dtype)
        return found


def _described(tree: Tree, prefix: str, start: str, bare: str) -> tuple[Part, list[Any]]:
    """The part and its leaves; paths begin with ``start``, that of a single array is ``bare``."""
    entries, spec = jax.tree_util.tree_flatten_with_path(tree)
    words = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in entries]
    paths = tuple(start + word if word else bare for word in words)
    return Part(prefix, paths, spec), [leaf for _, leaf in entries]


def _parameter_problem(leaf: Any) -> str | None:
    if isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic):
        return f"it is the number {leaf!r}, but parameters are arrays of floats, such as jnp.array([1.0, 2.0])"
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return foreign(leaf, "jax")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"it has dtype {leaf.dtype}, only floats can be trained: keep it in the state, (apply_fn, params, state)"
    return None


def _buffer_problem(leaf: Any) -> str | None:
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)):
        return None
    return f"{foreign(leaf, 'jax')}; a state holds arrays and numbers"
