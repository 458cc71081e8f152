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
from loopcore_jax.array_store import CurrentArrays, Mirror
from loopcore_jax.arrays import Arrays, copied, is_key
from loopcore_jax.model_kinds import Keeper, Library, library_of
from loopcore_jax.random import typed


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
        """Build the tree with the value of each path."""
        return jax.tree_util.tree_unflatten(self.spec, [leaves[path] for path in self.paths])

    def flatten(self, tree: Tree) -> Leaves:
        """Sort the leaves of a tree by path.

        Raises:
            ValueError: the structure differs.
        """
        leaves, spec = jax.tree_util.tree_flatten(tree)
        if spec != self.spec:
            raise ValueError(f"expected a tree like {self.spec}, got {spec}")
        return dict(zip(self.paths, leaves, strict=True))


class Bound(NamedTuple):
    """One model of the learner.

    Attributes:
        title: what messages call it.
        library: calls it.
        params: its parameters.
        state: its other arrays.
    """

    title: str
    library: Library
    params: Part
    state: Part

    def part(self, kind: Kind) -> Part:
        """The parameters or the state of the model."""
        return self.params if kind == "params" else self.state


class Models:
    """The bound models of one learner.

    Args:
        current: has the arrays, which stay in its store.
        arrays: makes them; gets its dtype from the parameters.
    """

    def __init__(self, current: CurrentArrays, arrays: Arrays) -> None:
        self._current = current
        self._arrays = arrays
        self._bound: dict[str, Bound] = {}
        self._mirror = Mirror()
        self._twins: list[tuple[str, str]] = []

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the models; their arrays are copied. Sets the dtype of `Arrays` from the parameters."""
        bound_models: dict[str, Bound] = {}
        params: Leaves = {}
        buffers: Leaves = {}
        for name, model in models.items():
            title, prefix = (f"the model {name!r}", f"{name}.") if name else ("the model", "")
            library = library_of(model, title)
            part, weights = _described(library.params, prefix, prefix, name or "param")
            if not weights:
                raise UnknownModelError(f"{title} has no parameters: give it arrays of floats that can be trained")
            state, values = _described(library.state, prefix, prefix, f"{prefix}state")
            # A path names one array: where the state has that of a parameter, all of it moves below ``state.``.
            if library.state_prefix or set(state.paths) & set(part.paths):
                state, values = _described(library.state, prefix, f"{prefix}state.", f"{prefix}state")
            params |= self._copies(title, part.paths, weights, _parameter_problem)
            buffers |= self._copies(title, state.paths, values, _buffer_problem)
            bound_models[name] = Bound(title, library, part, state)
        # A variable that two models share is refused or noted before anything is replaced.
        self._twins = _twins(bound_models)
        self._bound = bound_models
        store = self._current.store
        store.params, store.buffers = params, buffers
        self._mirror = Mirror()
        # The user's objects have their own arrays, and the learner's copies of these have the same values so far.
        for bound in self._keepers():
            for path, user_array in _user_arrays(bound).items():
                self._mirror.agree(path, self._current.array(path), user_array)
        self._arrays.dtype = np.dtype(jnp.result_type(*(value.dtype for value in params.values())))

    def _copies(
        self, title: str, paths: tuple[str, ...], leaves: list[Any], problem: Callable[[Any], str | None]
    ) -> Leaves:
        """Copy the leaves of a model.

        Args:
            title: what messages call the model.
            paths: of the leaves.
            leaves: as the user gave them.
            problem: says what is wrong with a leaf; None if nothing is.

        Raises:
            UnknownModelError: a leaf cannot be used.
        """
        copies: Leaves = {}
        for path, leaf in zip(paths, leaves, strict=True):
            wrong = "two arrays have this path: rename one" if path in copies else problem(leaf)
            if wrong:
                raise UnknownModelError(f"{title} cannot be used because of {path!r}: {wrong}")
            copies[path] = self._arrays.owned(leaf)
        return copies

    # -- trees -------------------------------------------------------------------------------------------------

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """Paths of the arrays of each model."""
        return {name: bound.part(kind).paths for name, bound in self._bound.items()}

    def tree_of(self, paths: Iterable[str]) -> Part | None:
        """The structure of the model whose parameters are these and no others; None if there is no such model."""
        selected = set(paths)
        return next((bound.params for bound in self._bound.values() if set(bound.params.paths) == selected), None)

    def trained_by(self, wrt: Any) -> list[Part]:
        """For each module of flax.nnx the parameters that a filter of nnx takes, as an ``nnx.State``.

        Raises:
            OptimizerError: it takes variables that are no parameters.
        """
        parts: list[Part] = []
        for bound in self._bound.values():
            trained_by: Any = getattr(bound.library, "trained_by", None)
            if trained_by is not None:
                words = trained_by(wrt)
                leaves, spec = jax.tree_util.tree_flatten(words)
                if leaves:
                    parts.append(Part(bound.params.prefix, tuple(bound.params.prefix + word for word in leaves), spec))
        return parts

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

    def get(self, paths: Iterable[str]) -> Leaves:
        """The present arrays by path; inside an objective the tracers that stand in for parameters."""
        return {path: self._current.array(path) for path in paths}

    def set(self, leaves: Mapping[str, Any]) -> None:
        """Copy values in, in the dtype of what they replace."""
        store = self._current.store
        for path, value in leaves.items():
            # The old array tells the dtype and whether it holds random keys.
            group = store.params if path in store.params else store.buffers
            group[path] = self._arrays.like(value, group[path])

    def snapshot(self, paths: Iterable[str]) -> Leaves:
        """Copy arrays by path; in an objective and in a program return the tracers, which nothing can change."""
        return {path: copied(array) for path, array in self.get(paths).items()}

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Build the model's own tree of leaves by relative path."""
        part = self._bound[model].part(kind)
        return part.build({path: leaves[path.removeprefix(part.prefix)] for path in part.paths})

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """Sort the leaves of a model's own tree by relative path, the inverse of `pack`.

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
        bound, current = self._bound[model], self._current
        if bound.library.keeps_arrays and not current.is_traced:
            self.show()
            return _keeper(bound).owner
        trees = (part.build({path: copied(current.array(path)) for path in part.paths}) for part in bound[2:])
        # One that keeps its arrays also has ``copy``, for where these cannot be written into the user's object.
        make = getattr(bound.library, "copy", bound.library.native)
        return make(*trees)

    def _keepers(self) -> list[Bound]:
        """The models whose arrays the user's own objects hold too."""
        return [bound for bound in self._bound.values() if bound.library.keeps_arrays]

    def show(self) -> None:
        """Write copies of the present arrays into what the user's objects hold, where these have other values."""
        store = self._current.store
        for bound in self._keepers():
            paths = (*bound.params.paths, *bound.state.paths)
            current = {path: store.params[path] if path in store.params else store.buffers[path] for path in paths}
            user_arrays = {path: self._mirror.user_array(path, array) for path, array in current.items()}
            # After an evaluation nothing has changed, and nothing is copied.
            if all(value is not None for value in user_arrays.values()):
                continue
            values = {
                path: copied(array) if user_arrays[path] is None else user_arrays[path]
                for path, array in current.items()
            }
            # The user's arrays that still have the right values are written back as they are.
            bound.library.native(bound.params.build(values), bound.state.build(values))
            for path, value in _user_arrays(bound).items():
                self._mirror.agree(path, current[path], value)

    def take(self) -> None:
        """Go on from what the user wrote into his objects since they were written last.

        Raises:
            BackendError: one has other parts than it had, or he gave an array another shape.
        """
        store = self._current.store
        self.check()
        for bound in self._keepers():
            for path, user_array in _user_arrays(bound).items():
                # Arrays of JAX do not change, so that an assignment shows in the identity.
                if not self._mirror.is_user_array(path, user_array):
                    group = store.params if path in store.params else store.buffers
                    if np.shape(user_array) != group[path].shape:
                        raise BackendError(
                            f"{path!r} of {bound.title} was {list(group[path].shape)} and is "
                            f"{list(np.shape(user_array))} now: a module that is another one is passed to "
                            "learner.set_model(module)"
                        )
                    group[path] = self._arrays.like(user_array, group[path])
                    self._mirror.agree(path, group[path], user_array)

    def check(self) -> None:
        """Check that the user's objects have the parts they had.

        Raises:
            BackendError: one has others.
        """
        for bound in self._keepers():
            check: Any = getattr(bound.library, "check", None)
            if check is not None:
                check()

    def keras_variables(self) -> dict[str, Any]:
        """The variables of all models of Keras, by full path."""
        return {
            f"{bound.params.prefix}{path}": variable
            for bound in self._bound.values()
            for path, variable in getattr(bound.library, "keras_variables", {}).items()
        }

    def constraints(self) -> dict[str, Callable[[Any], Any]]:
        """What becomes of parameters after an update, by full path."""
        return {
            f"{bound.params.prefix}{path}": constraint
            for bound in self._bound.values()
            for path, constraint in getattr(bound.library, "constraints", {}).items()
        }

    def frozen_by_user(self) -> frozenset[str]:
        """Full paths of what the user froze by the means of the model's own library."""
        frozen = ((bound.params.prefix, getattr(bound.library, "frozen", ())) for bound in self._bound.values())
        return frozenset(f"{prefix}{path}" for prefix, paths in frozen for path in paths)

    def eager(self) -> bool:
        """Whether the user asked by a model for steps without a program."""
        return any(getattr(bound.library, "eager", False) for bound in self._bound.values())

    def check_trained(self, paths: Iterable[str]) -> None:
        """Refuse to train a model that cannot be trained here.

        Raises:
            OptimizerError: says what to write.
        """
        trained = set(paths)
        for bound in self._bound.values():
            check = getattr(bound.library, "check_trained", None)
            if check is not None and not trained.isdisjoint(bound.params.paths):
                check()

    # -- forward -----------------------------------------------------------------------------------------------

    def eval_parts(self) -> tuple[str, ...]:
        """Names of the parts that stay in evaluation mode, as the user left them."""
        return tuple(
            bound.params.prefix + path
            for bound in self._bound.values()
            for path in getattr(bound.library, "eval_parts", ())
        )

    def has_method(self, model: str, name: str) -> bool:
        """Whether a model has a method of this name besides its forward pass."""
        return callable(getattr(getattr(self._bound[model].library, "methods", None), name, None))

    def call_method(
        self,
        model: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        training: bool,
        update_state: bool,
    ) -> Any:
        """Call a method of a module of nnx, linen or equinox as `forward` calls its ``__call__``."""
        return self.forward(model, args, kwargs, training=training, update_state=update_state, method=name)

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
        bound, store = self._bound[model], self._current.store
        # The state is the learner's: what the model returns is kept only here, so that `apply` leaves no trace.
        result, state = self._call(bound, self._params(bound), args, kwargs, training, method)
        if update_state and state is not None and bound.state.paths:
            store.buffers.update(self._new_state(bound, state, store.buffers))
        return result

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its state stays."""
        bound = self._bound[model]
        return self._call(bound, {**self._params(bound), **leaves}, args, kwargs, training)[0]

    def _params(self, bound: Bound) -> Leaves:
        """The present parameters of a model; inside an objective the tracers that stand for them."""
        return {path: self._current.array(path) for path in bound.params.paths}

    def _call(
        self,
        bound: Bound,
        params: Leaves,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        training: bool,
        method: str | None = None,
    ) -> tuple[Any, Tree]:
        """Call a model, or a method of it, with these parameters and its present state.

        Returns:
            The result and the new state, None without.
        """
        key = None
        if bound.library.takes_key:
            context = self._current.context
            context.calls += 1  # each call in a step draws other numbers
            key = jax.random.fold_in(typed(context.key), np.uint32(context.calls))
        state = bound.state.build(self._current.store.buffers)
        method_argument = () if method is None else (method,)
        return bound.library.call(bound.params.build(params), state, args, kwargs, training, key, *method_argument)

    def _new_state(self, bound: Bound, state: Tree, old: Leaves) -> Leaves:
        """Copy the state that a call left, in the dtype and shape of the old one.

        Raises:
            BackendError: it has another structure or another shape.
        """
        try:
            leaves = bound.state.flatten(state)
        except ValueError as error:
            raise BackendError(
                f"{bound.title} changed the structure of its state: {error}. Return a tree like the one it got"
            ) from None
        for path, value in leaves.items():
            before = old[path]
            if jnp.shape(value) != before.shape:
                raise BackendError(
                    f"{bound.title} changed the shape of its state {path!r} from {before.shape} to {jnp.shape(value)}: "
                    "a state keeps its shapes, so that the next step can take it"
                )
            # A copy: what the model handed through may be the user's own array, which a program would use up.
            leaves[path] = value.copy() if is_key(before) else jnp.array(value, before.dtype)
        return leaves


def _keeper(bound: Bound) -> Keeper:
    """The library of a model whose user's object holds its arrays, with the type that says so."""
    return cast(Keeper, bound.library)


def _user_arrays(bound: Bound) -> Leaves:
    """The arrays that the user's object holds, by path."""
    params, state = _keeper(bound).present()
    return bound.params.flatten(params) | bound.state.flatten(state)


def _twins(bound_models: Mapping[str, Bound]) -> list[tuple[str, str]]:
    """Find pairs of paths of two models that are one array.

    Raises:
        UnknownModelError: two models that keep their arrays share a variable, which copies would make two of.
    """
    owners: dict[int, tuple[str, str]] = {}
    twins: list[tuple[str, str]] = []
    for name, bound in bound_models.items():
        keeps = bound.library.keeps_arrays
        trees = _keeper(bound).variables() if keeps else (bound.library.params, ())
        # Variables are trees of their own for JAX; the structure of the arrays says where each of them is one leaf.
        spec: Any = jax.tree_util.tree_structure((bound.library.params, bound.library.state if keeps else ()))
        paths = (*bound.params.paths, *(bound.state.paths if keeps else ()))
        for path, leaf in zip(paths, spec.flatten_up_to(trees), strict=True):
            # Within one model a library decides itself whether an array that occurs twice is one parameter.
            other, first = owners.setdefault(id(leaf), (name, path))
            if other == name:
                continue
            if keeps:
                raise UnknownModelError(
                    f"{first!r} and {path!r} are one variable, in two models, of which the learner would make two: "
                    "pass one model that holds both parts, whose methods are called as learner.model.<method>(...); "
                    "or, if they are to be two, a copy, such as nnx.clone(module)"
                )
            twins.append((first, path))
    return twins


def _described(tree: Tree, prefix: str, start: str, bare: str) -> tuple[Part, list[Any]]:
    """Name the leaves of a tree.

    Args:
        tree: parameters or a state.
        prefix: of all paths of the model.
        start: what each path begins with.
        bare: the path of a tree that is a single array.

    Returns:
        The part, and the leaves in its order.
    """
    # JAX flattens dicts by sorted key: paths are in that order, as are the leaves.
    leaves, spec = jax.tree_util.tree_flatten(tree)
    paths = tuple(start + word if word else bare for word in names_of(tree))
    return Part(prefix, paths, spec), leaves


def names_of(tree: Tree) -> list[str]:
    """Name the leaves of a tree by their keys, as in ``layers.0.kernel``; the name of a single array is empty."""
    entries, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in entries]


def _parameter_problem(leaf: Any) -> str | None:
    """Why a leaf cannot be a parameter; None if it can."""
    if isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic):
        return f"it is the number {leaf!r}, but parameters are arrays of floats, such as jnp.array([1.0, 2.0])"
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return foreign(leaf, "jax")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"it has dtype {leaf.dtype}, only floats can be trained: keep it in the state, (apply_fn, params, state)"
    return None


def _buffer_problem(leaf: Any) -> str | None:
    """Why a leaf cannot be part of a state; None if it can."""
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)):
        return None
    return f"{foreign(leaf, 'jax')}; a state holds arrays and numbers"
