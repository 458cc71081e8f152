"""Modules of flax: nnx, and linen with its variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import nnx

from loopcore.backend import Array, Tree
from loopcore.errors import UnknownModelError
from loopcore.pairs import keywords, mode_of


class Nnx:
    """An ``nnx.Module``: trained is what is an ``nnx.Param``, its random state follows the step's key."""

    takes_key = keeps_arrays = True
    state_prefix = False

    def __init__(self, module: Any) -> None:
        self._module = module
        parts: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        self._graph, params, rngs, rest = parts
        self._params = dict(nnx.to_flat_state(params))
        self._rngs = dict(nnx.to_flat_state(rngs))
        self._rest = dict(nnx.to_flat_state(rest))
        self.params: Tree = _tree({path: variable.get_value() for path, variable in self._params.items()})
        self.state: Tree = _tree({path: variable.get_value() for path, variable in self._rest.items()})

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """Call a copy of the module in train or eval mode."""
        parts = (_filled(self._params, params), self._seeded(key), _filled(self._rest, state))
        module = nnx.merge(self._graph, *parts, copy=True)
        module.train() if training else module.eval()
        result = module(*args, **kwargs)
        new = dict(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))))
        return result, _tree({path: new[path].get_value() if path in new else _at(state, path) for path in self._rest})

    def _seeded(self, key: Array) -> Any:
        """The random state at the begin of a call: a key of its own for each stream, and counts of zero."""
        found: list[tuple[Any, Any]] = []
        for number, (path, variable) in enumerate(self._rngs.items()):
            old = variable.get_value()
            if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                own = jax.random.fold_in(key, number)
                found.append((path, variable.replace(jax.random.split(own, old.shape) if old.shape else own)))
            else:
                found.append((path, variable.replace(jnp.zeros_like(old))))
        return nnx.from_flat_state(found)

    def native(self, params: Tree, state: Tree) -> Any:
        """The user's module, with these arrays written into it."""
        nnx.update(self._module, _filled(self._params, params), _filled(self._rest, state))
        return self._module


def _tree(leaves: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Values by path -> nested dicts."""
    tree: dict[Any, Any] = {}
    for path, value in leaves.items():
        here = tree
        for word in path[:-1]:
            here = here.setdefault(word, {})
        here[path[-1]] = value
    return tree


def _at(tree: Tree, path: tuple[Any, ...]) -> Any:
    for word in path:
        tree = tree[word]
    return tree


def _filled(variables: Mapping[Any, Any], tree: Tree) -> Any:
    """A state of nnx with the variables of one and the values of the other."""
    return nnx.from_flat_state([(path, variable.replace(_at(tree, path))) for path, variable in variables.items()])


class Linen:
    """``(module, variables)`` of flax.linen, or ``(module, variables, names of its random streams)``."""

    takes_key = True
    keeps_arrays = state_prefix = False

    def __init__(self, module: Any, rest: list[Any], title: str) -> None:
        if len(rest) not in (1, 2) or not isinstance(rest[0], Mapping) or "params" not in rest[0]:
            raise UnknownModelError(
                f"{title} is a linen module, whose arrays are apart from it: write (module, variables), with "
                'variables = module.init(key, x), a dict with the key "params"'
            )
        variables: dict[str, Any] = flax.core.unfreeze(dict(rest[0]))
        self._streams: tuple[str, ...] = ("dropout",) if len(rest) == 1 else tuple(rest[1])
        self._extra = rest[1:]
        self._module = module
        self._mode, _ = keywords(type(module).__call__)
        self.params: Tree = variables["params"]
        self.state: Tree = {name: value for name, value in variables.items() if name != "params"}

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """``module.apply(variables, *args, rngs=..., mutable=...)`` with the mode if its signature has it."""
        given = {**mode_of(self._mode, training), **kwargs}
        rngs = {name: jax.random.fold_in(key, number) for number, name in enumerate(self._streams)}
        variables = {"params": params, **state}
        if not state:
            return self._module.apply(variables, *args, rngs=rngs, **given), None
        result, new = self._module.apply(variables, *args, rngs=rngs, mutable=list(state), **given)
        return result, {name: flax.core.unfreeze(new)[name] if name in new else old for name, old in state.items()}

    def native(self, params: Tree, state: Tree) -> Any:
        """The tuple."""
        return (self._module, {"params": params, **state}, *self._extra)
