"""Loaders, and what they hand out as plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from loopcore import data

SETTINGS = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 23),
        "batch_size": st.integers(1, 9),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**40),
        "drop_last": st.booleans(),
    }
).filter(lambda s: not s["drop_last"] or s["samples"] >= s["batch_size"])


def make(samples: int, **settings: Any) -> data.Batches:
    return data.batches({"x": np.arange(samples), "y": np.arange(samples) * 2.0}, **settings)


def take(loader: Any, epochs: int) -> list[list[Any]]:
    """What a loader hands out, as plain lists."""
    return [[plain(batch) for batch in loader] for _ in range(epochs)]


def joined(lists: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def plain(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: plain(part) for name, part in batch.items()}
    return batch.tolist() if isinstance(batch, np.ndarray) else batch


class Pair(NamedTuple):
    left: Any
    right: Any


class Unsized:
    """A loader with a state and without a length, as a stream of a framework has it."""

    def __init__(self, inner: Any, lazy: bool = False) -> None:
        self._inner, self._lazy, self._taken, self._resume_at = inner, lazy, 0, 0

    def __iter__(self) -> Iterator[Any]:
        return self._run() if self._lazy else self._run(self._start())

    def _start(self) -> int:
        self._taken, self._resume_at = self._resume_at, 0
        return self._taken

    def _run(self, start: int | None = None) -> Iterator[Any]:
        for item in islice(self._inner, self._start() if start is None else start, None):
            self._taken += 1
            yield item
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume_at = self._taken = state["taken"]
