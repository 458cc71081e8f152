"""What a step may change, and what one thread is in the middle of."""

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
    """All that a step may change.

    Attributes:
        params: by path.
        buffers: non-trainable state, by path.
        states: one tree for each optimizer.
        tree: all but the hyperparameters, as it was asked for last.
        hyper: present hyperparameters of the optimizers, by ``"index.name"``.
    """

    params: Leaves = field(default_factory=dict[str, Array])
    buffers: Leaves = field(default_factory=dict[str, Array])
    states: list[Tree] = field(default_factory=list[Tree])
    tree: Tree = None
    hyper: dict[str, Any] = field(default_factory=dict[str, Any])

    def copy(self) -> ArrayStore:
        """Another store of the same arrays."""
        return ArrayStore(dict(self.params), dict(self.buffers), list(self.states), None, dict(self.hyper))

    def is_tree(self) -> bool:
        """Whether ``tree`` still holds the present arrays."""
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
    """The present arrays beside those that the user's own object holds: which of both are others than they were.

    Of a present array only the identity is kept, so that none lives longer for it.
    """

    def __init__(self) -> None:
        self._agreed: dict[Any, tuple[weakref.ref[Any], Any]] = {}

    def agree(self, name: Any, present: Array, user_array: Any) -> None:
        """From now on these two have the same value."""
        self._agreed[name] = weakref.ref(present), user_array

    def user_array(self, name: Any, present: Array) -> Any:
        """What the user's object holds for it, if that has its value; else None."""
        reference, user_array = self._agreed.get(name, (None, None))
        return user_array if reference is not None and reference() is present else None

    def is_user_array(self, name: Any, value: Any) -> bool:
        """Whether it is what the user's object held when both agreed."""
        return name in self._agreed and self._agreed[name][1] is value


class AutodiffContext(threading.local):
    """What one thread is in the middle of.

    Attributes:
        store: that of the program being traced; None outside.
        traced: the arrays that an open objective sees in place of parameters, by path; None outside.
        kind: type of the arrays that depend on what it is differentiated by.
        key: of the running step body.
        depth: how many objectives and functions are open.
        calls: how many random keys its models were given.
    """

    store: ArrayStore | None = None
    traced: Leaves | None = None
    kind: type | None = None
    key: DrawKey = DrawKey(0, 0, 0)
    depth: int = 0
    calls: int = 0


class CurrentArrays:
    """The present arrays. Tracers of a program live in a store of its own, which other threads never see."""

    def __init__(self) -> None:
        self._store = ArrayStore()
        self.context = AutodiffContext()

    @property
    def store(self) -> ArrayStore:
        """That of the program being traced in this thread, else the learner's."""
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
        """The present array; inside an objective the one that stands for it."""
        traced, store = self.context.traced, self.store
        if traced and path in traced:
            return traced[path]
        return store.params[path] if path in store.params else store.buffers[path]

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """A program is traced: what it writes does not reach the learner's own arrays."""
        context, store = self.context, self.store.copy()
        outer = context.store, context.traced, context.key, context.calls, context.depth
        context.store, context.traced, context.depth = store, None, 0
        try:
            yield
        finally:
            context.store, context.traced, context.key, context.calls, context.depth = outer

    @contextmanager
    def body(self, key: DrawKey) -> Iterator[None]:
        """A step body runs; one within an objective is no part of it."""
        context = self.context
        outer = context.traced, context.key, context.calls, context.depth
        if self.in_objective:
            store = self.store
            store.buffers = {path: primal(value) for path, value in store.buffers.items()}
        context.traced, context.key, context.calls, context.depth = None, key, 0, 0
        try:
            yield
        finally:
            context.traced, context.key, context.calls, context.depth = outer
