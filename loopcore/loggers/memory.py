"""Values kept in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

from loopcore.loggers.base import Array, Figure, Histogram, Image, Loggable, Logger, Text, Value


class MemoryLogger(Logger):
    """Keeps everything; numbers take 12 bytes each.

    Example:
        >>> import loopcore as lc
        >>> logger = lc.loggers.MemoryLogger()
        >>> logger.log("loss", 0.5, 1)
        >>> logger.entries
        {'loss': [(1, 0.5)]}
    """

    kinds = (Value, Text, Image, Histogram, Figure, Array)

    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[str, _Column] = {}

    @property
    def entries(self) -> dict[str, list[tuple[int, Any]]]:
        """By name, pairs of step and value."""
        return {name: list(column) for name, column in self._columns.items()}

    def write(self, name: str, value: Loggable, step: int) -> None:
        """Keep a value; numbers, texts and arrays as they are."""
        plain = value.text if isinstance(value, Text) else value.values if isinstance(value, Array) else value
        self._columns.setdefault(name, _Column()).add(step, plain.value if isinstance(plain, Value) else plain)


class _Column:
    """Steps and values of one name."""

    __slots__ = ("_steps", "_values")

    def __init__(self) -> None:
        self._steps: array[int] | list[int] = array("i")
        self._values: array[float] | list[Any] = array("d")

    def add(self, step: int, value: Any) -> None:
        # Packed as long as all are floats: as lists they would take five times the memory.
        if isinstance(self._values, array) and not isinstance(value, float):
            self._values = list(self._values)
        if isinstance(self._steps, array) and not -_INT32 <= step < _INT32:
            self._steps = list(self._steps)
        self._steps.append(step)
        self._values.append(value)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return zip(self._steps, self._values, strict=True)


_INT32 = 2**31
