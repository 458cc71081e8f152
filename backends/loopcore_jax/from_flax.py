"""Modules of flax: nnx, and linen with its variables."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import flax.core
import flax.errors
import jax
import jax.numpy as jnp
from flax import nnx

from loopcore.backend import Array, Tree
from loopcore.backend.pairs import keywords, mode_of
from loopcore.errors import BackendError, OptimizerError, UnknownModelError
from loopcore.handles.randomness import refuse_in_a_loop
from loopcore_jax.random import LOOPS


class Nnx:
    """An ``nnx.Module``: trained is what is an ``nnx.Param``, its random state follows the step's key.

    Parts that are in eval mode when the learner takes it stay in it, unless all are.
    """

    takes_key = keeps_arrays = True
    state_prefix = False

    def __init__(self, module: Any) -> None:
        self.owner = module
        self.methods = type(module)
        # The graph of the module and its variables in three groups: parameters, random state, and all the others.
        parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        self._graph, params, rngs, buffers = parts
        self._params = dict(nnx.to_flat_state(params))
        self._rngs = dict(nnx.to_flat_state(rngs))
        self._buffers = dict(nnx.to_flat_state(buffers))
        self.params, self.state = self.present()
        self._resting = _resting(module)
        self.eval_parts = [".".join(map(str, path)) for path in self._resting]
        self._attributes = _attributes(module)

    def call(
        self,
        params: Tree,
        state: Tree,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        training: bool,
        key: Any,
        method: str = "__call__",
    ) -> tuple[Any, Tree]:
        """Call a copy of the module, or a method of it, in train or eval mode.

        Args:
            params: values of its parameters.
            state: values of its other variables.
            args: of the call.
            kwargs: of the call.
            training: the mode.
            key: the random streams of the module follow from it.
            method: which is called.

        Returns:
            The result and the new values of the other variables.
        """
        if training and self._rngs:
            refuse_in_a_loop(LOOPS, f"{self.methods.__name__} drew random numbers, as dropout does,")
        module = self._filled(params, state, self._seeded(key))
        _set_mode(module, training, self._resting)
        result = getattr(module, method)(*args, **kwargs)
        # The call may have made other variables, as ``self.sow`` does, and removed some: the state keeps its paths.
        new = dict(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))))
        return result, _tree(
            {path: new[path].get_value() if path in new else _at(state, path) for path in self._buffers}
        )

    def _filled(self, params: Tree, state: Tree, rngs: Any) -> Any:
        """Build a copy of the module with these values of its variables."""
        return nnx.merge(self._graph, _filled(self._params, params), rngs, _filled(self._buffers, state), copy=True)

    def _seeded(self, key: Array) -> Any:
        """Make the random state at the begin of a call: a key of its own for each stream, and counts of zero."""
        entries: list[tuple[Any, Any]] = []
        for number, (path, variable) in enumerate(self._rngs.items()):
            old = variable.get_value()
            # Of a stream nnx has a key and the count of keys taken from it; `nnx.split_rngs` makes arrays of keys.
            if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                stream_key = jax.random.fold_in(key, number)
                entries.append(
                    (path, variable.replace(jax.random.split(stream_key, old.shape) if old.shape else stream_key))
                )
            else:
                entries.append((path, variable.replace(jnp.zeros_like(old))))
        return nnx.from_flat_state(entries)

    def native(self, params: Tree, state: Tree) -> Any:
        """Write arrays into the variables of the user's module, and return it."""
        nnx.update(self.owner, _filled(self._params, params), _filled(self._buffers, state))
        return self.owner

    def copy(self, params: Tree, state: Tree) -> Any:
        """Build a copy of the module, for where the user's own cannot hold the arrays, since they are tracers."""
        return self._filled(params, state, self._old())

    def variables(self) -> tuple[Tree, Tree]:
        """The variables of the user's module."""
        return _tree(self._params), _tree(self._buffers)

    def present(self) -> tuple[Tree, Tree]:
        """The arrays of the variables of the user's module."""
        return tuple(  # type: ignore[return-value]
            _tree({path: variable.get_value() for path, variable in variables.items()})
            for variables in (self._params, self._buffers)
        )

    def check(self) -> None:
        """See that the user's module has the parts and settings it had; its mode and its variables may be others.

        Raises:
            BackendError: it has others.
        """
        # Before every run: identity of the attributes is compared first, and the graph only where one differs.
        if all(len(attributes) == len(before) and _same(attributes, before) for attributes, before in self._attributes):
            return
        new = Nnx(self.owner)
        before = self._filled(*self.present(), self._old())
        if [*new._params, *new._buffers] != [*self._params, *self._buffers] or _plain(self.owner) != _plain(before):
            raise BackendError(
                "the module of flax.nnx has other parts or settings than when the learner took it, and compiled steps "
                "would not know: call learner.set_model(module)"
            )
        self._params, self._rngs, self._buffers = new._params, new._rngs, new._buffers
        self._attributes = new._attributes

    def _old(self) -> Any:
        """The random state that the user's module has."""
        return nnx.from_flat_state(list(self._rngs.items()))

    def trained_by(self, wrt: Any) -> Any:
        """Find the parameters that a filter of nnx takes, as a state of nnx with their paths in place of the arrays.

        Raises:
            OptimizerError: it takes variables that are no parameters.
        """
        selected = dict(nnx.to_flat_state(nnx.state(self.owner, wrt)))
        invalid = [path for path in selected if path not in self._params]
        if invalid:
            names = ", ".join(".".join(map(str, path)) for path in invalid[:5])
            raise OptimizerError(
                f"wrt={wrt!r} of the nnx.Optimizer takes {names}, and only what is an nnx.Param is trained: make the "
                "class of these variables a subclass of nnx.Param"
            )
        return nnx.from_flat_state([(path, ".".join(map(str, path))) for path in selected])


def _resting(module: Any) -> tuple[Any, ...]:
    """Find the paths of the parts that the user put in eval mode; none where the whole module is."""
    modes = {
        path: flag
        for path, part in nnx.iter_modules(module)
        for flag in (getattr(part, "deterministic", None), getattr(part, "use_running_average", None))
        if isinstance(flag, bool)
    }
    return tuple(path for path, resting in modes.items() if resting) if not all(modes.values()) else ()


def _set_mode(module: Any, training: bool, resting: tuple[Any, ...]) -> None:
    """Put a module in train or eval mode, some of its parts in eval mode anyway."""
    module.train() if training else module.eval()
    if training and resting:
        parts = dict(nnx.iter_modules(module))
        for path in resting:
            parts[path].eval()  # type: ignore[no-untyped-call]


def _attributes(module: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The attributes of all parts of a module, as they are and as they were."""
    parts = [vars(part) for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Pytree)]
    return [(part, dict(part)) for part in parts]


def _same(attributes: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether attributes are the very objects they were before."""
    return all(map(is_, attributes.values(), before.values()))


def _plain(module: Any) -> Any:
    """What a module is besides its arrays and its mode."""
    copy = nnx.clone(module)
    copy.train()  # the mode is an attribute like others, and the user may change it
    return nnx.graphdef(copy)


def _tree(leaves: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Turn values by path into nested dicts."""
    tree: dict[Any, Any] = {}
    for path, value in leaves.items():
        branch = tree
        for word in path[:-1]:
            branch = branch.setdefault(word, {})
        branch[path[-1]] = value
    return tree


def _at(tree: Tree, path: tuple[Any, ...]) -> Any:
    """The value at a path of nested dicts."""
    for word in path:
        tree = tree[word]
    return tree


def _filled(variables: Mapping[Any, Any], tree: Tree) -> Any:
    """Make a state of nnx with the variables of one and the values of the other."""
    return nnx.from_flat_state([(path, variable.replace(_at(tree, path))) for path, variable in variables.items()])


class Linen:
    """``(module, variables)`` of flax.linen, or ``(module, variables, names of its random streams)``."""

    takes_key = True
    keeps_arrays = state_prefix = False

    def __init__(self, module: Any, tail: list[Any], title: str) -> None:
        if len(tail) not in (1, 2) or not isinstance(tail[0], Mapping) or "params" not in tail[0]:
            raise UnknownModelError(
                f"{title} is a linen module, whose arrays are apart from it: write (module, variables), with "
                'variables = module.init(key, x), a dict with the key "params"'
            )
        if len(tail) == 2 and (isinstance(tail[1], (str, Mapping)) or not all(isinstance(n, str) for n in tail[1])):
            raise UnknownModelError(
                f"{title} is a tuple of three: the third part are the names of the random streams of the module, such "
                'as (module, variables, ("dropout", "noise")); all collections belong into variables'
            )
        variables: dict[str, Any] = flax.core.unfreeze(dict(tail[0]))
        self._streams: tuple[str, ...] = ("dropout",) if len(tail) == 1 else tuple(tail[1])
        self._extra = tail[1:]  # the names as the user gave them, for `native`
        self._module = module
        self.methods = type(module)
        self._title = title
        self._mode, _ = keywords(type(module).__call__)
        self.params: Tree = variables["params"]
        self.state: Tree = {name: value for name, value in variables.items() if name != "params"}

    def call(
        self,
        params: Tree,
        state: Tree,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        training: bool,
        key: Any,
        method: Any = None,
    ) -> tuple[Any, Tree]:
        """Call ``module.apply(variables, *args, rngs=..., mutable=...)`` with the mode if its signature has it.

        A call may name a ``method=``, give some of the ``rngs=`` itself, and ask for more collections by ``mutable=``,
        such as ``["intermediates"]``: then it returns ``(y, those collections)``, as in linen.
        """
        user_options = dict(kwargs)
        method = user_options.pop("method", method)
        mode = self._mode if method is None else keywords(_function(self._module, method))[0]
        options = {**mode_of(mode, training), **user_options, **({} if method is None else {"method": method})}
        rngs = {name: jax.random.fold_in(key, number) for number, name in enumerate(self._streams)}
        options["rngs"] = {**rngs, **(options.get("rngs") or {})}
        user_mutable = options.pop("mutable", False)
        names = _collection_names(user_mutable)
        # All collections of the state may change, as running statistics do; the caller decides whether that is kept.
        variables, mutable = {"params": params, **state}, user_mutable is True or list(dict.fromkeys((*state, *names)))
        try:
            if not mutable:
                return self._module.apply(variables, *args, **options), None
            result, new = self._module.apply(variables, *args, mutable=mutable, **options)
        except flax.errors.InvalidRngError as error:
            error.add_note(
                f"{self._title} has random streams for {', '.join(self._streams) or 'nothing'}: name all that it "
                'uses, (module, variables, ("dropout", "noise"))'
            )
            raise
        new = flax.core.unfreeze(new)
        asked_for = {name: new[name] for name in new if user_mutable is True or name in names}
        new_state = {name: new.get(name, old) for name, old in state.items()}
        return (result, asked_for) if user_mutable else result, new_state

    def native(self, params: Tree, state: Tree) -> Any:
        """Build the tuple that the user gave, with these arrays."""
        return (self._module, {"params": params, **state}, *self._extra)


def _collection_names(mutable: Any) -> tuple[str, ...]:
    """The collections that ``mutable=`` of a call names: one, several, or none where it is a bool."""
    if isinstance(mutable, str):
        return (mutable,)
    return () if mutable in (True, False) else tuple(mutable)


def _function(module: Any, method: Any) -> Any:
    """The function of a method, which linen takes by name or as it is."""
    return getattr(type(module), method) if isinstance(method, str) else method
