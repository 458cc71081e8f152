"""The arrays that a step may change, and which of them are current in a thread that traces or differentiates."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from loopcore.backend import Array, DrawKey, Leaves, Tree
from loopcore_jax.arrays import primal


@dataclass
class ArrayStore:
    """The arrays that a step may change, which is the state of a learner for JAX, whose functions change nothing.

    Attributes:
        params: parameters, by path.
        buffers: non-trainable state, by path.
        states: one tree for each optimizer.
        tree: all but the hyperparameters, as it was asked for last. It is kept, since between two programs
            most steps replace nothing, and need not build it again then.
        hyper: present hyperparameters of the optimizers, by ``"index.name"``.
    """

    params: Leaves = field(default_factory=dict[str, Array])
    buffers: Leaves = field(default_factory=dict[str, Array])
    states: list[Tree] = field(default_factory=list[Tree])
    tree: Tree = None
    hyper: dict[str, Any] = field(default_factory=dict[str, Any])

    def copy(self) -> ArrayStore:
        """Make another store of the same arrays."""
        return ArrayStore(dict(self.params), dict(self.buffers), list(self.states), None, dict(self.hyper))

    def is_tree(self) -> bool:
        """Whether ``tree`` still has all current arrays, by identity."""
        # Stores are changed by assignment to their dicts and lists, without notice, so that every array is compared.
        tree = self.tree
        if tree is None:
            return False
        return (
            len(tree["buffers"]) == len(self.buffers)
            and all(map(is_, tree["params"].values(), self.params.values()))
            and all(map(is_, tree["buffers"].values(), self.buffers.values()))
            and all(map(is_, tree["optimizers"], self.states))
        )


class Mirror:
    """Remembers which arrays of a user's own object have the values of which current arrays.

    So only what has changed is copied, from the learner into the object or back. Of a current array only the identity
    is kept, by a weak reference, so that its memory is free as soon as a step has replaced it.
    """

    def __init__(self) -> None:
        self._agreed: dict[Any, tuple[weakref.ref[Any], Any]] = {}

    def agree(self, name: Any, present: Array, user_array: Any) -> None:
        """Note that a current array and one of the user's object have the same value from now on.

        Args:
            name: what both are the value of.
            present: the learner's array.
            user_array: the one that the user's object holds.
        """
        self._agreed[name] = weakref.ref(present), user_array

    def user_array(self, name: Any, present: Array) -> Any:
        """The array that the user's object holds, if it has the value of a current array; else None."""
        reference, user_array = self._agreed.get(name, (None, None))
        return user_array if reference is not None and reference() is present else None

    def is_user_array(self, name: Any, value: Any) -> bool:
        """Whether an array is the one that the user's object held when both agreed; else the user wrote another."""
        return name in self._agreed and self._agreed[name][1] is value


class AutodiffContext(threading.local):
    """The trace, the objectives and the step body that one thread is in the middle of.

    Attributes:
        store: that of the program being traced; None outside.
        traced: the arrays that an open objective sees in place of parameters, by path; None outside.
        kind: type of the arrays that depend on what it is differentiated by.
        key: of the running step body.
        depth: how many objectives and functions are open.
        calls: how many random keys its models were given.
    """

    # A subclass of ``threading.local`` has these defaults anew in each thread.
    store: ArrayStore | None = None
    traced: Leaves | None = None
    kind: type | None = None
    key: DrawKey = DrawKey(0, 0, 0)
    depth: int = 0
    calls: int = 0


class CurrentArrays:
    """The arrays that are current in the calling thread: the learner's, or tracers that stand for them.

    Tracers of a program live in a store of its own, which other threads never see.

    Attributes:
        context: what this thread is in the middle of.
    """

    def __init__(self) -> None:
        self._store = ArrayStore()
        self.context = AutodiffContext()

    @property
    def store(self) -> ArrayStore:
        """The store of the program being traced in this thread, else the learner's."""
        inner = self.context.store
        return self._store if inner is None else inner

    @property
    def is_traced(self) -> bool:
        """Whether what this thread computes stands for arrays, in an objective or in a program that is traced."""
        return self.context.traced is not None or self.context.store is not None

    @property
    def in_objective(self) -> bool:
        """Whether an objective is open in this thread."""
        return self.context.traced is not None

    def is_differentiated(self, leaf: Any) -> bool:
        """Whether an array depends on what the open objective is differentiated by."""
        return self.in_objective and type(leaf) is self.context.kind

    def array(self, path: str) -> Array:
        """The current array of a path; inside an objective the tracer that stands for it."""
        traced, store = self.context.traced, self.store
        # Buffers are never in ``traced``: what an objective leaves in them goes into the store itself.
        if traced and path in traced:
            return traced[path]
        return store.params[path] if path in store.params else store.buffers[path]

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Run a block as the trace of a program: what it writes does not reach the learner's own arrays."""
        context, store = self.context, self.store.copy()
        outer = context.store, context.traced, context.key, context.calls, context.depth
        # JAX may trace in the middle of an objective, whose tracers are none of the program's.
        context.store, context.traced, context.depth = store, None, 0
        try:
            yield
        finally:
            context.store, context.traced, context.key, context.calls, context.depth = outer

    @contextmanager
    def body(self, key: DrawKey) -> Iterator[None]:
        """Run a block as a step body, whose random keys follow from ``key``; it is no part of an open objective."""
        context = self.context
        outer = context.traced, context.key, context.calls, context.depth
        if self.in_objective:
            store = self.store
            # The model calls of the objective left tracers in the buffers; the inner step starts from their values.
            store.buffers = {path: primal(value) for path, value in store.buffers.items()}
        context.traced, context.key, context.calls, context.depth = None, key, 0, 0
        try:
            yield
        finally:
            context.traced, context.key, context.calls, context.depth = outer
