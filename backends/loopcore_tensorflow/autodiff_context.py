"""The state of automatic differentiation in one thread: its open tapes, and the step body whose models they record."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from loopcore.backend import DrawKey, Leaves

_OUTSIDE = DrawKey(0, 0, 0)


@dataclass
class AutodiffContext(threading.local):
    """The open objectives of one thread, and the key of its step body.

    Each thread has its own, since a loader or a second learner may compute while another thread differentiates.

    Attributes:
        tapes: of the open objectives and functions, the outermost first, each with what it differentiates by.
        stand_ins: tensors in place of parameters, by path.
        key: of the running step body.
        calls: how often its models were given random numbers.
        parts: whether model calls and updates are compiled, each by itself.
        states: what models left of their state within an open objective, by path; variables have it too, but no tape
            knows what was assigned.
        lent: by the id of a tensor that a host handler got within an objective, the tensor and what it stands for.
    """

    tapes: list[tuple[Any, list[Any]]] = field(default_factory=list[tuple[Any, list[Any]]])
    stand_ins: Leaves = field(default_factory=dict[str, Any])
    key: DrawKey = _OUTSIDE
    calls: int = 0
    parts: bool = False
    states: Leaves = field(default_factory=dict[str, Any])
    lent: dict[int, tuple[Any, Any]] = field(default_factory=dict[int, tuple[Any, Any]])

    @contextmanager
    def body(self, key: DrawKey, parts: bool) -> Iterator[None]:
        """Run a block as a step body; one that begins within an objective is no part of that.

        Args:
            key: names the random numbers of its models.
            parts: whether its model calls and updates are compiled, each by itself.
        """
        outer = self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts
        self.states.clear()
        # The tapes of an enclosing objective are put aside, or they would record the inner step and keep its memory.
        with self.unrecorded():
            self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts = [], {}, key, 0, {}, parts
            try:
                yield
            finally:
                self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts = outer
                self.states.clear()

    @contextmanager
    def objective(self, tape: Any, sources: list[Any], stand_ins: Leaves) -> Iterator[None]:
        """Run a block as an objective or a function that a tape records.

        Args:
            tape: records the block.
            sources: what it differentiates by.
            stand_ins: tensors that models read in place of parameters, by path; outer ones stay.
        """
        outer = self.stand_ins
        self.stand_ins = {**outer, **stand_ins}
        self.tapes.append((tape, sources))
        try:
            yield
        finally:
            self.tapes.pop()
            self.stand_ins = outer
            # The outermost objective has ended: the variables have every new state, and no tape knows a lent tensor.
            if not self.tapes:
                self.lent.clear()
                self.states.clear()

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Run a block that is part of no open objective: no tape records it."""
        with ExitStack() as stack:
            for tape, _ in reversed(self.tapes):
                stack.enter_context(tape.stop_recording())
            yield

    def lend(self, tensor: Any) -> Any:
        """Copy a tensor for a host handler, such that no tape knows the copy; the same copy each time.

        The handler may hand the copy back, and it has to count as the tensor itself then, with its gradient: see
        `returned`.
        """
        # One dict has both directions: a copy is under its id, an original under the complement, which is no id. The
        # entries hold both tensors, so that neither id is given to another object.
        pair = self.lent.get(~id(tensor))
        if pair is None:
            with self.unrecorded():
                plain = tf.identity(tensor)
            self.lent[id(plain)] = plain, tensor
            pair = self.lent[~id(tensor)] = tensor, plain
        return pair[1]

    def returned(self, leaf: Any) -> Any:
        """The original of a copy that `lend` gave and a host handler hands back; None for any other tensor."""
        pair = self.lent.get(id(leaf))
        return None if pair is None else pair[1]
