"""What can be logged, and what a logger is."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from loopcore._utils.text import clean
from loopcore.backend.protocol import HostArray
from loopcore.errors import LoopcoreError
from loopcore.loggers.names import Names, sanitised


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

    pixels: HostArray


@dataclass(frozen=True)
class Histogram:
    """How numbers are distributed.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.loggers.Histogram(np.arange(3)).values.tolist()
        [0, 1, 2]
    """

    values: HostArray


@dataclass(frozen=True)
class Figure:
    """A figure of matplotlib.

    Example:
        >>> import loopcore as lc
        >>> lc.loggers.Figure("a figure").figure
        'a figure'
    """

    figure: object


@dataclass(frozen=True)
class Array:
    """Numbers of any shape as they are: a value for each class, a confusion matrix, a curve.

    A logger that has no such kind writes the numbers of one that has at most 100 each by itself, ``name/0/2``.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> logger = lc.loggers.MemoryLogger()
        >>> logger.log("recall", lc.loggers.Array(np.array([0.5, 1.0])), 1)
        >>> logger.entries["recall"][0][1].tolist()
        [0.5, 1.0]
    """

    values: HostArray


Loggable: TypeAlias = Value | Text | Image | Histogram | Figure | Array
_MANY = 100  # numbers of an array that become values of their own


class Logger:
    """Base of the loggers: says which kinds it takes, and writes one of them.

    What the system or a library refuses, a full disk or a lost connection, does not end a training: callbacks say it
    once and go on, and what a file logger could not write it writes later.

    Args:
        strict: raise such errors instead.

    Attributes:
        kinds: what it takes. Another kind is left out, which is said once.
        strict: whether what it cannot write ends the training.

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

    kinds: tuple[type[Loggable], ...] = (Value,)
    strict: bool = False
    _refused_kinds: frozenset[type] = frozenset()
    _in_trouble = False

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict

    def log(self, name: str, value: Loggable | float | Any, step: int) -> None:
        """Log a value.

        Args:
            name: parts are separated by ``/``; what file systems and libraries do not like becomes ``_``. If two
                names become the same, the second one gets a number, which is said once.
            value: a number, as Python's or as a 0-d array of any framework, or one of the kinds.
            step: where on the axis; does not go back for one name.
        """
        # By shape and `__float__`: a logger knows no framework that it could ask.
        inner: Any = value.value if isinstance(value, Value) else value
        if isinstance(inner, (int, float)) or (not isinstance(inner, (str, bytes)) and is_scalar(inner)):
            value = Value(float(inner))
        if isinstance(value, self.kinds):
            self.write(self._names(name), value, step)
        elif isinstance(value, Array) and value.values.size <= _MANY and Value in self.kinds:
            for place, number in np.ndenumerate(value.values):
                self.write(self._names("/".join(map(str, (name, *place)))), Value(float(number)), step)
        elif type(value) not in self._refused_kinds:
            self._refused_kinds |= {type(value)}
            outcome = f"{clean(name)} is left out"
            warnings.warn(f"{type(self).__name__} takes no {type(value).__name__}: {outcome}", stacklevel=2)

    @cached_property
    def _names(self) -> Names:
        return Names(self.safe_name)

    def safe_name(self, name: str) -> str:
        """The name that a value is written under, unless another one is written so already."""
        return sanitised(name)

    def write(self, name: str, value: Any, step: int) -> None:
        """Write a value of a kind it takes, under a name that is safe."""
        raise NotImplementedError(f"{type(self).__name__} does not write: define write(self, name, value, step)")

    def flush(self) -> None:
        """Make everything logged so far readable for others."""

    def close(self) -> None:
        """End the log: no value follows."""

    def trouble(self, what: str) -> AbstractContextManager[None]:
        """A ``with`` block in which the system, or a library, may refuse: that is said once, or raised if ``strict``.

        Args:
            what: is done in it.
        """
        return Trouble(self, what)

    def __repr__(self) -> str:
        path = getattr(self, "path", None)
        return f"{type(self).__name__}({'' if path is None else repr(str(path))})"


class Trouble:
    """What `Logger.trouble` returns.

    Args:
        logger: what is written by.
        task: what is done, as the warning names it.
    """

    def __init__(self, logger: Logger, task: str) -> None:
        self._logger = logger
        self._task = task

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        logger = self._logger
        if error is None or logger.strict or not is_of_the_system(error):
            return False
        # Once for each logger: a full disk would warn at every epoch.
        if not logger._in_trouble:  # pyright: ignore[reportPrivateUsage]  # of this file
            logger._in_trouble = True  # pyright: ignore[reportPrivateUsage]
            warnings.warn(
                f"{logger!r} could not write ({clean(self._task)}): {type(error).__name__}: {error}. The training goes "
                f"on, this is said once; {type(logger).__name__}(..., strict=True) ends it instead",
                stacklevel=3,
            )
        return True


def is_of_the_system(error: BaseException) -> bool:
    """Whether an error comes from the system or a library, and not from a mistake in a program."""
    # A TypeError or a KeyError is a mistake in a program, and hiding it would hide a bug. What is not built in comes
    # from a library, whose classes of errors are not known here.
    is_a_mistake = type(error).__module__ == "builtins" or isinstance(error, LoopcoreError)
    return isinstance(error, Exception) and (isinstance(error, OSError) or not is_a_mistake)


def is_scalar(value: object) -> bool:
    """Whether it is a number that a framework keeps as an array without dimensions."""
    shape = getattr(value, "shape", None)
    return shape is not None and not len(shape) and hasattr(value, "__float__")
