"""Modules of equinox, with and without a state."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isfunction
from typing import Any

import equinox as eqx
import jax

from loopcore.backend import Tree
from loopcore.backend.pairs import keywords, two_parts
from loopcore.errors import UnknownModelError


class Equinox:
    """An equinox module, or ``(module, state)``: trained are its floating arrays.

    The module is called on the batch. Its ``__call__`` gets ``key=`` and ``state=`` if its signature has them, and
    returns ``(y, state)`` then.
    """

    keeps_arrays = False
    state_prefix = True

    def __init__(self, module: Any, tail: list[Any], title: str) -> None:
        # ``tail`` is what follows the module in the tuple that the user gave: a state, or nothing.
        if tail and not isinstance(tail[0], eqx.nn.State):
            raise UnknownModelError(
                f"{title} is (module, {type(tail[0]).__name__}): the second part is an equinox.nn.State, as "
                "equinox.nn.make_with_state returns it"
            )
        self.params, static = eqx.partition(module, eqx.is_inexact_array)
        self.state: Tree = tail[0] if tail else ()
        self._static = static
        self.eval_parts = _resting(static)
        # Where the user put some parts in inference mode, training is the module as it is; else all parts train.
        training = static if self.eval_parts else eqx.nn.inference_mode(static, value=False)
        self._modes = {True: training, False: eqx.nn.inference_mode(static)}
        self._has_state = bool(tail)
        self.methods = type(module)
        # Which keywords each method takes is read once, not at each call.
        functions = {name: value for cls in reversed(type(module).__mro__) for name, value in vars(cls).items()}
        self._keywords = {name: keywords(value)[1] for name, value in functions.items() if isfunction(value)}
        self._keywords["__call__"] = keywords(type(module).__call__)[1]
        self.takes_key = any("key" in names for name, names in self._keywords.items() if name != "__init__")
        if self._has_state and "state" not in self._keywords["__call__"]:
            raise UnknownModelError(
                f"{title} has a state, but {type(module).__name__}.__call__ does not take one: write "
                "def __call__(self, x, state) and return (y, state)"
            )
        self._title = title

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
        """Call ``module(*args, [state=, key=,] **kwargs)``, or a method of it, in training or inference mode.

        Args:
            params: the floating arrays of the module.
            state: its ``equinox.nn.State``, or an empty tree.
            args: of the call.
            kwargs: of the call.
            training: the mode.
            key: a random key, for a method that takes one.
            method: which is called.

        Returns:
            The result and the new state, None without.
        """
        module = eqx.combine(params, self._modes[training])
        names = self._keywords[method] if method in self._keywords else keywords(getattr(self.methods, method))[1]
        # What the caller passes wins over the key and the state of the learner.
        options = {"key": key, **kwargs} if "key" in names else kwargs
        if not (self._has_state and "state" in names):
            return getattr(module, method)(*args, **options), None
        result = getattr(module, method)(*args, **{"state": state, **options})
        return two_parts(result, f"{self._title} has a state, so its {method}")

    def native(self, params: Tree, state: Tree) -> Any:
        """Build the module with these arrays, or the pair of it and the state."""
        # As the user made it, with the modes that its parts had.
        module = eqx.combine(params, self._static)
        return (module, state) if self._has_state else module


def _resting(module: Any) -> list[str]:
    """Find the paths of the parts that the user put in inference mode; none where all are.

    A module that is all in inference mode comes from an evaluation, and is meant to be trained.
    """
    parts, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=_has_mode)
    modes = {path: part.inference for path, part in parts if _has_mode(part) and isinstance(part.inference, bool)}
    resting = [path for path, inference in modes.items() if inference]
    return [] if len(resting) == len(modes) else [jax.tree_util.keystr(p, simple=True, separator=".") for p in resting]


def _has_mode(part: Any) -> bool:
    """Whether a part of a module has a mode, as dropout and batch normalisation do."""
    return hasattr(part, "inference")
