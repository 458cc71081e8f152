"""What can be logged, and what a logger is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from loopcore.loggers.names import Names, sanitised
from loopcore.text import clean


@dataclass(frozen=True)
class Value:
    """A single number.

    Example:
        >>> import loopcore as lc
        >>> lc.loggers.Value(0.5)
        Value(value=0.5)
    """

    value: float


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Example:
        >>> import loopcore as lc
        >>> lc.loggers.Text("a run").text
        'a run'
    """

    text: str


@dataclass(frozen=True)
class Image:
    """An image, ``(height, width)`` or ``(height, width, 3)``: floats from 0 to 1, or uint8.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.loggers.Image(np.zeros((8, 8))).pixels.shape
        (8, 8)
    """

    pixels: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Histogram:
    """How numbers are distributed.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.loggers.Histogram(np.arange(3)).values.tolist()
        [0, 1, 2]
    """

    values: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of matplotlib.

    Example:
        >>> import loopcore as lc
        >>> lc.loggers.Figure("a figure").figure
        'a figure'
    """

    figure: Any


Loggable: TypeAlias = Value | Text | Image | Histogram | Figure


class Logger:
    """Base of the loggers: says which kinds it takes, and writes one of them.

    Attributes:
        kinds: what it takes. Another kind is left out, which is said once.

    Example:
        >>> import loopcore as lc
        >>> class Printer(lc.loggers.Logger):
        ...     kinds = (lc.loggers.Value,)
        ...
        ...     def write(self, name, value, step):
        ...         print(f"{name} {value.value} at {step}")
        >>> Printer().log("loss", 0.5, 1)
        loss 0.5 at 1
    """

    kinds: tuple[type[Any], ...] = (Value,)
    _said: frozenset[type[Any]] = frozenset()

    def log(self, name: str, value: Loggable | float, step: int) -> None:
        """Log a value.

        Args:
            name: parts are separated by ``/``; what file systems and libraries do not like becomes ``_``. If two
                names become the same, the second one gets a number, which is said once.
            value: a number, or one of the kinds.
            step: where on the axis; does not go back for one name.
        """
        value = Value(float(value)) if isinstance(value, (int, float, np.generic)) else value
        if isinstance(value, self.kinds):
            self.write(self._names(name), value, step)
        elif type(value) not in self._said:
            self._said |= {type(value)}
            left_out = f"{clean(name)} is left out"
            warnings.warn(f"{type(self).__name__} takes no {type(value).__name__}: {left_out}", stacklevel=2)

    @cached_property
    def _names(self) -> Names:
        return Names(self.safe_name)

    def safe_name(self, name: str) -> str:
        """What a name is written as, unless another one is written so already."""
        return sanitised(name)

    def write(self, name: str, value: Any, step: int) -> None:
        """Write a value of a kind it takes, under a name that is safe."""
        raise NotImplementedError(f"{type(self).__name__} does not write: define write(self, name, value, step)")

    def flush(self) -> None:
        """Everything logged so far can be read by others now."""

    def close(self) -> None:
        """No value follows."""
