"""Callbacks that declare something, and what their order is or why they have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import pytest

from loopcore.callback import Callback, Resolution, RunFirst
from loopcore.errors import CallbackError
from loopcore.ordering import Order, order_callbacks


def make_class(name: str, base: type[Callback] = Callback, /, **declared: Any) -> type[Callback]:
    return type(name, (base,), {"__module__": "cases", **declared})


def make(name: str, base: type[Callback] = Callback, /, **declared: Any) -> Callback:
    return make_class(name, base, **declared)()


def names(order: Order) -> list[str]:
    return [type(callback.identity()).__name__ for callback in order.callbacks]


def ordered(*callbacks: Callback) -> list[str]:
    """Names in order, after checking that every order of the list gives the same."""
    found = {tuple(names(order_callbacks(listed))) for listed in permutations(callbacks)}
    assert len(found) == 1, found
    return list(found.pop())


def failure(kind: type[CallbackError], *callbacks: Any, available: Sequence[str] = ()) -> str:
    """The message of the error, after checking that every order of the list gives the same."""
    texts: set[str] = set()
    for listed in permutations(callbacks):
        with pytest.raises(kind) as caught:
            order_callbacks(listed, available)
        assert type(caught.value) is kind
        texts.add(str(caught.value))
    assert len(texts) == 1, texts
    return texts.pop()


def answering(answer: Callable[[Callback, Callback], Any]) -> Callable[[Callback, Callback], Any]:
    return lambda self, other: answer(self, other)


class Wrapper(Callback):
    """Stands for another callback and passes on what that declares."""

    def __init__(self, inner: Callback) -> None:
        self.inner = inner
        for attribute in ("reads", "traced_reads", "writes", "run_after", "run_before", "requires"):
            setattr(self, attribute, getattr(inner, attribute))

    def identity(self) -> Callback:
        return self.inner.identity()

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        return self.inner.resolve_conflict(other)
