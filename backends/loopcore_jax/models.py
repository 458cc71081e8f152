"""The models of one learner: paths for their arrays, and how to call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Kind, Leaves, Tree
from loopcore.backend.foreign import foreign
from loopcore.errors import BackendError, OptimizerError, UnknownModelError
from loopcore_jax.arrays import Arrays, copied, is_key
from loopcore_jax.libraries import Keeper, Library, library_of
from loopcore_jax.random import typed
from loopcore_jax.store import Mirror, Present


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
        self._mirror = Mirror()
        self._twins: list[tuple[str, str]] = []

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
        self._twins = _twins(bound)
        self._bound = bound
        store = self._present.store
        store.params, store.buffers = params, buffers
        self._mirror = Mirror()
        for one in self._keepers():
            for path, theirs in _held(one).items():
                self._mirror.agree(path, self._present.array(path), theirs)
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

    def whole(self, paths: Iterable[str]) -> Part | None:
        """The parameters of the model of which these are all."""
        wanted = set(paths)
        return next((one.params for one in self._bound.values() if set(one.params.paths) == wanted), None)

    def trained_by(self, wrt: Any) -> list[Part]:
        """For each module of flax.nnx the parameters that a filter of nnx takes, as an ``nnx.State``.

        Raises:
            OptimizerError: it takes variables that are no parameters.
        """
        found: list[Part] = []
        for one in self._bound.values():
            trained_by: Any = getattr(one.library, "trained_by", None)
            if trained_by is not None:
                words = trained_by(wrt)
                leaves, spec = jax.tree_util.tree_flatten(words)
                if leaves:
                    found.append(Part(one.params.prefix, tuple(one.params.prefix + word for word in leaves), spec))
        return found

    def check_twins(self, trained: Iterable[str]) -> None:
        """Refuse arrays that two models share and that would be trained as two.

        Raises:
            OptimizerError: says what to write.
        """
        trained = set(trained)
        for first, second in self._twins:
            if first in trained and second in trained:
                raise OptimizerError(
                    f"{first!r} and {second!r} are one array, in two models, and each would be trained on its own: "
                    "give one of them copies if they are to be two, jax.tree.map(jnp.copy, params); leave one without "
                    "an optimizer if it is to rest; or pass one model that holds both"
                )

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
        """The user's own object, with the present arrays.

        Where they stand for arrays, in an objective or in a program that is traced, one that is differentiated: a
        module that keeps its arrays cannot hold those, and is copied.
        """
        one, present = self._bound[model], self._present
        if one.library.keeps_arrays and not present.is_traced:
            self.show()
            return _keeper(one).owner
        trees = (part.build({path: copied(present.array(path)) for path in part.paths}) for part in one[2:])
        make = getattr(one.library, "copy", one.library.native)
        return make(*trees)

    def _keepers(self) -> list[Bound]:
        """Models whose user's objects hold their arrays."""
        return [one for one in self._bound.values() if one.library.keeps_arrays]

    def show(self) -> None:
        """Write copies of the present arrays into what the user's objects hold, where these have other values."""
        store = self._present.store
        for one in self._keepers():
            paths = (*one.params.paths, *one.state.paths)
            present = {path: store.params[path] if path in store.params else store.buffers[path] for path in paths}
            theirs = {path: self._mirror.theirs(path, array) for path, array in present.items()}
            if all(value is not None for value in theirs.values()):
                continue
            values = {path: copied(array) if theirs[path] is None else theirs[path] for path, array in present.items()}
            one.library.native(one.params.build(values), one.state.build(values))
            for path, value in _held(one).items():
                self._mirror.agree(path, present[path], value)

    def take(self) -> None:
        """Go on from what the user wrote into his objects since they were written last.

        Raises:
            BackendError: one has other parts than it had, or he gave an array another shape.
        """
        store = self._present.store
        self.check()
        for one in self._keepers():
            for path, theirs in _held(one).items():
                if not self._mirror.is_theirs(path, theirs):
                    held = store.params if path in store.params else store.buffers
                    if np.shape(theirs) != held[path].shape:
                        raise BackendError(
                            f"{path!r} of {one.title} was {list(held[path].shape)} and is {list(np.shape(theirs))} "
                            "now: a module that is another one is passed to learner.set_model(module)"
                        )
                    held[path] = self._arrays.like(theirs, held[path])
                    self._mirror.agree(path, held[path], theirs)

    def check(self) -> None:
        """See that the user's objects have the parts they had.

        Raises:
            BackendError: one has others.
        """
        for one in self._keepers():
            check: Any = getattr(one.library, "check", None)
            if check is not None:
                check()

    def keras_variables(self) -> dict[str, Any]:
        """The variables of all models of Keras, by full path."""
        return {
            f"{one.params.prefix}{path}": variable
            for one in self._bound.values()
            for path, variable in getattr(one.library, "keras_variables", {}).items()
        }

    def constraints(self) -> dict[str, Callable[[Any], Any]]:
        """What becomes of parameters after an update, by full path."""
        return {
            f"{one.params.prefix}{path}": constraint
            for one in self._bound.values()
            for path, constraint in getattr(one.library, "constraints", {}).items()
        }

    def frozen(self) -> frozenset[str]:
        """Full paths of what the user froze by the means of the model's own library."""
        found = ((one.params.prefix, getattr(one.library, "frozen", ())) for one in self._bound.values())
        return frozenset(f"{prefix}{path}" for prefix, paths in found for path in paths)

    def eager(self) -> bool:
        """Whether the user asked by a model for steps without a program."""
        return any(getattr(one.library, "eager", False) for one in self._bound.values())

    def check_trained(self, paths: Iterable[str]) -> None:
        """Refuse to train a model that cannot be trained here.

        Raises:
            OptimizerError: says what to write.
        """
        wanted = set(paths)
        for one in self._bound.values():
            check = getattr(one.library, "check_trained", None)
            if check is not None and not wanted.isdisjoint(one.params.paths):
                check()

    # -- forward -----------------------------------------------------------------------------------------------

    def eval_parts(self) -> tuple[str, ...]:
        """Parts that stay in evaluation mode, as the user left them."""
        return tuple(
            one.params.prefix + path for one in self._bound.values() for path in getattr(one.library, "eval_parts", ())
        )

    def has_method(self, model: str, name: str) -> bool:
        """Whether a model has a method of this name besides its forward pass."""
        return callable(getattr(getattr(self._bound[model].library, "methods", None), name, None))

    def forward(
        self,
        model: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        training: bool,
        update_state: bool,
        method: str | None = None,
    ) -> Any:
        """Call a model, or a method of it, with the present arrays and keep its new state."""
        one, store = self._bound[model], self._present.store
        result, state = self._call(one, self._params(one), args, kwargs, training, method)
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
        self,
        one: Bound,
        params: Leaves,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        training: bool,
        method: str | None = None,
    ) -> tuple[Any, Tree]:
        key = None
        if one.library.takes_key:
            frame = self._present.frame
            frame.calls += 1
            key = jax.random.fold_in(typed(frame.key), np.uint32(frame.calls))
        state = one.state.build(self._present.store.buffers)
        named = () if method is None else (method,)
        return one.library.call(one.params.build(params), state, args, kwargs, training, key, *named)

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
                    f"{one.title} changed the shape of its state {path!r} from {before.shape} to {jnp.shape(value)}: a "
                    "state keeps its shapes, so that the next step can take it"
                )
            # A copy: what the model handed through may be the user's own array, which a program would use up.
            found[path] = value.copy() if is_key(before) else jnp.array(value, before.dtype)
        return found


def _keeper(one: Bound) -> Keeper:
    return cast(Keeper, one.library)


def _held(one: Bound) -> Leaves:
    """What the user's object holds, by path."""
    params, state = _keeper(one).present()
    return one.params.flatten(params) | one.state.flatten(state)


def _twins(bound: Mapping[str, Bound]) -> list[tuple[str, str]]:
    """Pairs of paths of two models that are one array.

    Raises:
        UnknownModelError: two models that keep their arrays share a variable, which copies would make two of.
    """
    seen: dict[int, tuple[str, str]] = {}
    found: list[tuple[str, str]] = []
    for name, one in bound.items():
        keeps = one.library.keeps_arrays
        trees = _keeper(one).variables() if keeps else (one.library.params, ())
        spec: Any = jax.tree_util.tree_structure((one.library.params, one.library.state if keeps else ()))
        paths = (*one.params.paths, *(one.state.paths if keeps else ()))
        for path, leaf in zip(paths, spec.flatten_up_to(trees), strict=True):
            other, first = seen.setdefault(id(leaf), (name, path))
            if other == name:
                continue
            if keeps:
                raise UnknownModelError(
                    f"{first!r} and {path!r} are one variable, in two models, of which the learner would make two: "
                    "pass one model that holds both parts, whose methods are called as learner.model.<method>(...); "
                    "or, if they are to be two, a copy, such as nnx.clone(module)"
                )
            found.append((first, path))
    return found


def _described(tree: Tree, prefix: str, start: str, bare: str) -> tuple[Part, list[Any]]:
    """The part and its leaves; paths begin with ``start``, that of a single array is ``bare``."""
    leaves, spec = jax.tree_util.tree_flatten(tree)
    paths = tuple(start + word if word else bare for word in names_of(tree))
    return Part(prefix, paths, spec), leaves


def names_of(tree: Tree) -> list[str]:
    """The words of the leaves of a tree; that of a single array is empty."""
    entries, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in entries]


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
