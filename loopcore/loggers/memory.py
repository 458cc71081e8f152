"""Values kept in memory."""

from __future__ import annotations

from typing import Any

from loopcore.loggers.base import Figure, Histogram, Image, Logger, Text, Value


class MemoryLogger(Logger):
    """Keeps everything in lists.

    Attributes:
        entries: by name, pairs of step and value.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> logger.log("loss", 0.5, 1)
        >>> logger.entries
        {'loss': [(1, 0.5)]}
    """

    kinds = (Value, Text, Image, Histogram, Figure)

    def __init__(self) -> None:
        self.entries: dict[str, list[tuple[int, Any]]] = {}

    def write(self, name: str, value: Any, step: int) -> None:
        """Keep a value; numbers and texts as they are."""
        plain = value.value if isinstance(value, Value) else value.text if isinstance(value, Text) else value
        self.entries.setdefault(name, []).append((step, plain))
