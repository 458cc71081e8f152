"""Other libraries on PyTorch, each in one function that makes variants; absent ones are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.models.bench import Variant


def variants(
    model: Callable[[], Any], loss_fn: Callable[..., Any], optimizer: Callable[[Any], Any], threads: int
) -> tuple[list[Variant], list[str]]:
    """All installed peers, and the names of the others with the reason."""
    return [], []
