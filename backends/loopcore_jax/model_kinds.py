"""How the models of each library are taken apart and called. No library is imported that the user did not import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, Protocol

from loopcore.backend import Tree
from loopcore.backend.foreign import called
from loopcore.backend.pairs import keywords, mode_of, two_parts
from loopcore.errors import BackendError, UnknownModelError


class Library(Protocol):
    """A model taken apart into arrays and a function of them, in the way of the library that it is of.

    One with methods besides its forward pass has ``methods``, the class they are of, and its ``call`` takes ``method``.

    Attributes:
        params: its parameters, a tree of floating arrays.
        state: its other arrays, an empty tree without any.
        takes_key: whether a call gets a random key.
        keeps_arrays: whether the user's object holds arrays that `native` writes; then it is a `Keeper`.
        state_prefix: whether the paths of the state begin with ``state.``.
    """

    params: Tree
    state: Tree
    takes_key: bool
    keeps_arrays: bool
    state_prefix: bool

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Run the forward pass; returns its result and the new state, None without."""
        ...

    def native(self, params: Tree, state: Tree) -> Any:
        """Build what the user gave, with these arrays in it; a `Keeper` writes them into the user's object."""
        ...


class Keeper(Library, Protocol):
    """A model whose user's object holds its arrays, and changes where it is.

    Attributes:
        owner: the user's object.
    """

    owner: Any

    def variables(self) -> tuple[Tree, Tree]:
        """The variables that hold the arrays in the user's object, in the structure of ``params`` and of ``state``."""
        ...

    def present(self) -> tuple[Tree, Tree]:
        """The arrays that the user's object holds now, as ``params`` and ``state``.

        Raises:
            BackendError: it has other parts than when the learner took it.
        """
        ...


def is_keras(model: Any) -> bool:
    """Whether a model is a model or layer of Keras, which is not imported to find out."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Layer)


def library_of(model: Any, title: str) -> Library:
    """Take a model apart, whichever library it is of.

    Raises:
        UnknownModelError: it is of no kind that the JAX backend takes.
    """
    library = _of_imported_library(model, title)
    return _of_functions_and_arrays(model, title) if library is None else library


def _of_imported_library(model: Any, title: str) -> Library | None:
    """A model of one of the libraries that the user imported, taken apart; None if it is of none of them.

    A model can only be of a library that was imported before it was made. So ``sys.modules`` decides, and nobody waits
    for the import of a library that he does not use.

    Raises:
        UnknownModelError: it is of one of them, and not in the form that the backend takes.
    """
    first, *tail = model if isinstance(model, tuple) and model else (model,)
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    equinox, haiku = sys.modules.get("equinox"), sys.modules.get("haiku")
    if is_keras(model):
        from loopcore_jax.from_keras import Keras

        return Keras(model, title)
    if nnx is not None and isinstance(model, nnx.Module):
        from loopcore_jax.from_flax import Nnx

        return Nnx(model)
    if linen is not None and (module := _linen_module(first, linen, title)) is not None:
        from loopcore_jax.from_flax import Linen

        return Linen(module, tail, title)
    if equinox is not None and isinstance(first, equinox.Module) and len(tail) < 2:
        from loopcore_jax.from_equinox import Equinox

        return Equinox(first, tail, title)
    if haiku is not None and isinstance(model, (haiku.Transformed, haiku.TransformedWithState)):
        raise UnknownModelError(
            f"{title} has no parameters yet: write (transformed, params), with params = transformed.init(key, x)"
        )
    if haiku is not None and isinstance(first, (haiku.Transformed, haiku.TransformedWithState)):
        return Haiku(first, tail, title)
    return None


def _of_functions_and_arrays(model: Any, title: str) -> Library:
    """``(apply_fn, params[, state])`` or a tree of arrays, taken apart.

    Raises:
        UnknownModelError: it is neither, as are models without their arrays and objects that hold an optimizer too.
    """
    first, *tail = model if isinstance(model, tuple) and model else (model,)
    # A tuple of arrays is a tree of parameters; a function in it says that a pair was meant.
    if isinstance(model, tuple) and any(map(callable, model)):
        if callable(first) and len(tail) in (1, 2):
            _check_collections(tail[0], title)
            return Plain(first, *tail, title=title)
        raise UnknownModelError(
            f"{title} is a tuple of {len(model)} with a function in it: write (apply_fn, params) or "
            "(apply_fn, params, state), in this order"
        )
    if all(hasattr(model, name) for name in ("apply_fn", "params", "tx", "opt_state")):  # a TrainState of Flax
        raise UnknownModelError(
            f"{title} is a {type(model).__name__}, which is a model and an optimizer: write Learner((state.apply_fn, "
            '{"params": state.params}), ..., optimizer=state.tx); of flax.linen the model is (module, variables)'
        )
    if callable(model):
        hint = f": write {model.__name__}(...)" if isinstance(model, type) else ""
        raise UnknownModelError(
            f"{title} is a {type(model).__name__}{hint}. The JAX backend takes a module of flax.nnx or equinox, "
            "(module, variables) of flax.linen, (transformed, params) of haiku, (apply_fn, params), or a tree of arrays"
        )
    return Arrays(model, title)


def _linen_module(first: Any, linen: Any, title: str) -> Any:
    """The linen module that is the first part of a model, itself or as a bound ``module.apply``; None if it is none.

    Raises:
        UnknownModelError: arguments of ``module.apply`` are bound too, which the learner would not know of.
    """
    if isinstance(first, linen.Module):
        return first
    # A bound method is another object each time that it is read, but equal ones compare so.
    inner = first.func if isinstance(first, partial) else first
    module: Any = getattr(inner, "__self__", None)
    if not isinstance(module, linen.Module) or inner != module.apply:
        return None
    if inner is not first:
        raise UnknownModelError(
            f"{title} is a partial of module.apply: write (module, variables), whose mode, rngs= and mutable= the "
            'learner gives; more names of rngs as (module, variables, ("dropout", "noise"))'
        )
    return module


def _check_collections(params: Any, title: str) -> None:
    """Refuse variables of linen in the place of parameters: all of them would be trained.

    Raises:
        UnknownModelError: says what to write.
    """
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= params.keys():
        raise UnknownModelError(
            f"the parameters of {title} are all variables of a linen module, {', '.join(map(repr, params))}, and "
            "statistics are not to be trained: write (module, variables), or (apply_fn, params, state) with an "
            "apply_fn that takes both and returns (y, new_state)"
        )


class Arrays:
    """A tree of arrays: parameters without a forward."""

    takes_key = keeps_arrays = state_prefix = False

    def __init__(self, params: Tree, title: str) -> None:
        self.params = params
        self.state: Tree = ()
        self._title = title

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Refuse: a tree of arrays has nothing to call."""
        raise BackendError(
            f"{self._title} is a tree of arrays, parameters without a forward: read them with "
            "learner.params.value, or pass (apply_fn, params) to the Learner"
        )

    def native(self, params: Tree, state: Tree) -> Any:
        """Return the tree of parameters."""
        return params


class Plain:
    """A function with its arrays, ``(apply_fn, params[, state])``."""

    keeps_arrays = state_prefix = False

    def __init__(self, apply_fn: Callable[..., Any], params: Tree, state: Tree | None = None, *, title: str) -> None:
        self.params = params
        self.state: Tree = () if state is None else state
        self._apply_fn = apply_fn
        self._has_state = state is not None
        self._title = title
        self._mode, names = keywords(apply_fn)
        self.takes_key = "rng" in names

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Call ``apply_fn(params, [state,] *args, **kwargs)`` with the mode and ``rng=`` if its signature has them."""
        # What the caller passes comes last: he may set the mode or the key of a call himself.
        rng = {"rng": key} if self.takes_key else {}
        options = {**mode_of(self._mode, training), **rng, **kwargs}
        if not self._has_state:
            return called(self._apply_fn, self._title, "jax", params, *args, **options), None
        result = called(self._apply_fn, self._title, "jax", params, state, *args, **options)
        return two_parts(result, f"{self._title} has a state, so its apply_fn")

    def native(self, params: Tree, state: Tree) -> Any:
        """Build the tuple that the user gave, with these arrays."""
        return (self._apply_fn, params, state) if self._has_state else (self._apply_fn, params)


class Haiku:
    """A transformed function of haiku with its arrays, ``(transformed, params[, state])``."""

    keeps_arrays = state_prefix = False

    def __init__(self, transformed: Any, tail: list[Any], title: str) -> None:
        haiku = sys.modules["haiku"]  # imported, since `transformed` is of it
        self._has_state = isinstance(transformed, haiku.TransformedWithState)
        if len(tail) != 1 + self._has_state:
            form = "(transformed, params, state)" if self._has_state else "(transformed, params)"
            raise UnknownModelError(f"{title} is a tuple of {1 + len(tail)}, but its haiku function needs {form}")
        self.params: Tree = tail[0]
        self.state: Tree = tail[1] if self._has_state else ()
        self._transformed = transformed
        self._mode, _ = keywords(transformed.apply)
        # haiku passes the key by position, after the parameters and the state.
        names = list(signature(transformed.apply).parameters)
        self.takes_key = names[1 + self._has_state : 2 + self._has_state] == ["rng"]  # not after without_apply_rng

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Call ``apply(params, [state,] [rng,] *args, **kwargs)`` with the mode if its signature has it."""
        options = {**mode_of(self._mode, training), **kwargs}
        rng = (key,) if self.takes_key else ()
        if not self._has_state:
            return self._transformed.apply(params, *rng, *args, **options), None
        result, new = self._transformed.apply(params, state, *rng, *args, **options)
        return result, new

    def native(self, params: Tree, state: Tree) -> Any:
        """Build the tuple that the user gave, with these arrays."""
        return (self._transformed, params, state) if self._has_state else (self._transformed, params)
