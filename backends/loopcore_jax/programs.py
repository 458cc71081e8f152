"""Compiling: one program of trees of arrays, with what its trace recorded besides."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from loopcore.backend import Tree
from loopcore_jax.array_store import CurrentArrays

_FRAME = re.compile(r"^(?!The )(.+?):(\d+)(?::\d+)? \(", re.MULTILINE)  # how JAX writes where a leaked value was made


class TracedRead(Exception):
    """A trace formatted an array that has no value yet."""


@jax.tree_util.register_pytree_node_class
class Recorded:
    """A Python object among the results of a program.

    ``jax.jit`` returns arrays only; but the structure of the results, which it keeps for each trace, may have any
    object in it. So each call gets the object of the very trace that its program came from.

    Args:
        value: any object.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> tuple[tuple[()], Recorded]:
        """No arrays; the structure is the object itself, so that equal ones are never taken for each other."""
        return (), self

    @classmethod
    def tree_unflatten(cls, recorded: Recorded, leaves: tuple[()]) -> Recorded:
        """Return the object that the trace recorded."""
        return recorded


class Programs:
    """Makes programs of functions that read and write the current arrays.

    Args:
        current: gets a store of tracers while a function is traced.

    Attributes:
        traces: how often a function was traced.
    """

    def __init__(self, current: CurrentArrays) -> None:
        self._current = current
        self.traces = 0

    def compile(
        self, fn: Callable[..., tuple[Tree, Any]], donate: tuple[int, ...] = ()
    ) -> Callable[..., tuple[Tree, Any]]:
        """Compile ``fn(*trees) -> (tree, static)`` by ``jax.jit``; ``static`` is from the trace that fits a call.

        Args:
            fn: array code; ``static`` is any object that its trace recorded.
            donate: which arguments the program may write its results over.
        """

        def traced(*trees: Tree) -> tuple[Tree, Recorded]:
            with self._current.tracing():
                tree, static = fn(*trees)
            self.traces += 1
            return tree, Recorded(static)

        program = jax.jit(traced, donate_argnums=donate)

        def call(*trees: Tree) -> tuple[Tree, Any]:
            try:
                tree, recorded = program(*trees)
            except jax.errors.UnexpectedTracerError as error:
                # The message says where the leaked value was made; the core shows these lines to the user.
                vars(error)["lines"] = tuple((name, int(line)) for name, line in _FRAME.findall(str(error)))
                raise
            except TypeError as error:
                # An f-string with a tracer in it: JAX has no type for that error, only this text.
                if "Tracer.__format__" not in str(error):
                    raise
                better = TracedRead(str(error)).with_traceback(error.__traceback__)
                for note in getattr(error, "__notes__", ()):
                    better.add_note(note)
                raise better from error
            return tree, recorded.value

        return call
