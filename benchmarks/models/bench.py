"""What a backend offers to the benchmark: a problem's batches, and the ways to train on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Block: TypeAlias = Callable[[Sequence[Any]], object]  # trains on every batch of a block, once


def _nothing() -> None:
    """Close nothing."""


@dataclass(frozen=True)
class Size:
    """One problem.

    Attributes:
        name: in the table.
        widths: of the layers, inputs and outputs included.
        batch: samples.
        block: steps a variant runs in one turn.
        rounds: turns of each variant.
    """

    name: str
    widths: tuple[int, ...]
    batch: int
    block: int
    rounds: int


@dataclass(frozen=True)
class Variant:
    """One way to train: ``block`` runs it, ``close`` ends what it keeps open."""

    name: str
    block: Block
    close: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Bench:
    """The batches, the variants (the first is the yardstick), why some are absent, and what makes the model."""

    batches: Sequence[Any]
    variants: Sequence[Variant]
    absent: Sequence[str] = ()
    model: Callable[[], Any] | None = None
