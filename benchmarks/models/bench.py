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
    """One way to train: ``block`` runs it, ``close`` ends what it keeps open.

    Attributes:
        against: the variant that it is divided by, where that is not the first one.
    """

    name: str
    block: Block
    close: Callable[[], None] = _nothing
    against: str = ""


@dataclass(frozen=True)
class Bench:
    """The batches, the variants (the first is the yardstick), why some are absent, and what makes the model."""

    batches: Sequence[Any]
    variants: Sequence[Variant]
    absent: Sequence[str] = ()
    model: Callable[[], Any] | None = None


def chosen(variants: Sequence[Variant], only: str) -> list[Variant]:
    """Those whose name contains this, and what they are divided by."""
    found = [variant for variant in variants if only in variant.name]
    yardsticks = {variants[0].name, *(variant.against for variant in found)}
    return [variant for variant in variants if variant in found or variant.name in yardsticks]
