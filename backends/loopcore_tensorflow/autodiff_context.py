"""What one thread is in the middle of: open objectives, their tapes, and the step body whose models they call."""

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
    """What one thread is in the middle of.

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
        """A step body runs; one within an objective is no part of it."""
        outer = self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts
        self.states.clear()
        with self.unrecorded():
            self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts = [], {}, key, 0, {}, parts
            try:
                yield
            finally:
                self.tapes, self.stand_ins, self.key, self.calls, self.lent, self.parts = outer
                self.states.clear()

    @contextmanager
    def objective(self, tape: Any, sources: list[Any], stand_ins: Leaves) -> Iterator[None]:
        """An objective or a function is differentiated by this tape."""
        outer = self.stand_ins
        self.stand_ins = {**outer, **stand_ins}
        self.tapes.append((tape, sources))
        try:
            yield
        finally:
            self.tapes.pop()
            self.stand_ins = outer
            if not self.tapes:
                self.lent.clear()
                self.states.clear()

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """What is computed here is part of no open objective."""
        with ExitStack() as stack:
            for tape, _ in reversed(self.tapes):
                stack.enter_context(tape.stop_recording())
            yield

    def lend(self, tensor: Any) -> Any:
        """The value of a tensor that the tapes do not know; the same one each time."""
        pair = self.lent.get(~id(tensor))
        if pair is None:
            with self.unrecorded():
                plain = tf.identity(tensor)
            self.lent[id(plain)] = plain, tensor
            pair = self.lent[~id(tensor)] = tensor, plain
        return pair[1]

    def returned(self, leaf: Any) -> Any:
        """What a tensor stands for that a host handler hands back; None for another one."""
        pair = self.lent.get(id(leaf))
        return None if pair is None else pair[1]
