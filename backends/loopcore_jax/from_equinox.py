"""Modules of equinox, with and without a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from loopcore.backend import Tree
from loopcore.errors import UnknownModelError
from loopcore.pairs import keywords, two_parts


class Equinox:
    """An equinox module, or ``(module, state)``: trained are its floating arrays.

    The module is called on the batch. Its ``__call__`` gets ``key=`` and ``state=`` if its signature has them, and
    returns ``(y, state)`` then.
    """

    keeps_arrays = False
    state_prefix = True

    def __init__(self, module: Any, rest: list[Any], title: str) -> None:
        if rest and not isinstance(rest[0], eqx.nn.State):
            raise UnknownModelError(
                f"{title} is (module, {type(rest[0]).__name__}): the second part is an equinox.nn.State, as "
                "equinox.nn.make_with_state returns it"
            )
        self.params, static = eqx.partition(module, eqx.is_inexact_array)
        self.state: Tree = rest[0] if rest else ()
        self._static = static
        self._modes = {training: eqx.nn.inference_mode(static, value=not training) for training in (True, False)}
        self._has_state = bool(rest)
        _, named = keywords(type(module).__call__)
        self.takes_key = "key" in named
        if self._has_state and "state" not in named:
            raise UnknownModelError(
                f"{title} has a state, but {type(module).__name__}.__call__ does not take one: write "
                "def __call__(self, x, state) and return (y, state)"
            )
        self._title = title

    def call(
        self, params: Tree, state: Tree, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool, key: Any
    ) -> tuple[Any, Tree]:
        """``module(*args, [state=, key=,] **kwargs)`` in training or inference mode."""
        module = eqx.combine(params, self._modes[training])
        keyed = {"key": key} if self.takes_key else {}
        if not self._has_state:
            return module(*args, **{**keyed, **kwargs}), None
        result = module(*args, **{"state": state, **keyed, **kwargs})
        return two_parts(result, f"{self._title} has a state, so its __call__")

    def native(self, params: Tree, state: Tree) -> Any:
        """The module, or the pair."""
        module = eqx.combine(params, self._static)
        return (module, state) if self._has_state else module
