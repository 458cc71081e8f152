"""One differentiation with autograd: boxes for what is differentiated, and the way back out of them.

``autograd.grad`` differentiates a function of its arguments. An objective instead closes over the parameters and
leaves values behind in the step's state, so the boxes are made and opened here, from autograd's public parts.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optree
from autograd.core import backward_pass
from autograd.extend import VJPNode, defvjp_argnums, primitive
from autograd.tracer import isbox, new_box, trace_stack

from loopcore.backend import Array
from loopcore.errors import LossError

SCALARS = frozenset({bool, int, float, complex, str, bytes, type(None)})
_PLAIN = SCALARS | {np.ndarray, np.float32, np.float64, np.int64, np.bool_}
_lock = threading.Lock()
_last_level = 0


def _new_level() -> int:
    """Draw a level above all others.

    autograd takes the higher of two levels for the inner differentiation. Its own counter is shared by all threads
    and not put back after an exception, so levels are never reused here; raising the counter too keeps
    ``autograd.grad`` usable inside an objective.
    """
    global _last_level
    with _lock:
        level = max(_last_level, int(trace_stack.top)) + 1
        _last_level = trace_stack.top = level
    return level


class _Exit(VJPNode):  # type: ignore[misc]  # autograd has no types
    """The node of `_leave`: notes its arguments without their outermost box, and the nodes of those boxes."""

    __slots__ = ()

    def __init__(
        self, value: Any, fun: Any, args: Any, kwargs: Any, parent_argnums: Sequence[int], parents: Sequence[Any]
    ) -> None:
        note, _, *values = args
        # The first two arguments are the note and the anchor.
        note.append((values, {n - 2: node for n, node in zip(parent_argnums, parents, strict=True) if n > 1}))


def _leave_values(note: list[Any], anchor: Any, *values: Any) -> float:
    return 0.0


_leave: Any = primitive(_leave_values)
# Boxes of an outer differentiation are stripped on the way down as well; nothing depends on what this returns.
defvjp_argnums(_leave, lambda argnums, ans, args, kwargs: lambda g: (0.0 for _ in argnums))


class Tape:
    """Records what is computed from some values, until `leave` opens the boxes around them again. Tapes nest."""

    def __init__(self) -> None:
        self._level = _new_level()
        self._anchor = new_box(0.0, self._level, _Exit.new_root())  # makes every `_leave` one of this level
        self._gradients: dict[Hashable, Array] = {}

    def watch(self, key: Hashable, value: Array) -> Array:
        """Put a box around a floating array (or around the box of an outer tape); ``key`` names its gradient."""
        # A root of a backward pass has nothing to pass on: instead it stores the gradient that arrives.
        root = VJPNode.new_root()
        root.vjp = partial(self._collect, key)
        return new_box(value, self._level, root)

    def _collect(self, key: Hashable, gradient: Array) -> tuple[()]:
        self._gradients[key] = gradient
        return ()

    def leave(self, values: Sequence[Any]) -> tuple[list[Any], dict[int, Any]]:
        """Return the values without the boxes of this tape, and the nodes of those that had one; outer boxes stay."""
        note: list[tuple[list[Any], dict[int, Any]]] = []
        _leave(note, self._anchor, *values)
        return note[0]

    def strip(self, scopes: Sequence[MutableMapping[str, Any]]) -> None:
        """Replace in place every value of the scopes, at any depth, that holds a box of this tape."""
        leaves: list[Any] = []
        places: list[tuple[MutableMapping[str, Any], str, Any]] = []
        for scope, key, value in _candidates(scopes):
            # All boxes of all scopes are opened by one call, and put back in place afterwards.
            flat, spec = optree.tree_flatten(value, none_is_leaf=True)
            if any(map(isbox, flat)):
                places.append((scope, key, spec))
                leaves += flat
        if not places:
            return
        plain = iter(self.leave(leaves)[0])
        for scope, key, spec in places:
            scope[key] = spec.unflatten([next(plain) for _ in range(spec.num_leaves)])

    def backward(self, node: Any, value: Array) -> dict[Hashable, Array]:
        """Return the gradients of one scalar with respect to the watched values it depends on."""
        self._gradients = {}
        backward_pass(np.ones((), value.dtype), node)
        return self._gradients

    def scalars(self, result: Any) -> tuple[list[Any], dict[int, Any]]:
        """Open the boxes of an objective's result, one scalar or several, as `leave` does.

        Raises:
            LossError: a value is not a 0-d number.
        """
        plain, nodes = self.leave(result if isinstance(result, (tuple, list)) else (result,))
        for value in plain or (None,):
            check_scalar(value)
        return plain, nodes


def _candidates(scopes: Sequence[MutableMapping[str, Any]]) -> Iterator[tuple[MutableMapping[str, Any], str, Any]]:
    """Yield the entries of the scopes that may hold a box."""
    for scope in scopes:
        for key, value in scope.items():
            if type(value) not in _PLAIN:
                yield scope, key, value


def check_scalar(value: Any) -> None:
    """Refuse a result that cannot be a loss: nothing, or an array of several elements."""
    if value is None:
        raise LossError("the objective returned nothing: end it with return state.loss")
    shape: Any = getattr(value, "shape", () if isinstance(value, (int, float)) else None)
    if shape is None:
        raise LossError(f"the objective returned a {type(value).__name__}, not a scalar: end it with return state.loss")
    if shape != ():
        raise LossError(
            f"the objective returned an array of shape {tuple(shape)}, a gradient needs a scalar: use "
            'reduction="mean" in the loss, or xp.mean'
        )
