"""What counts as a number in an argument: those of Python and NumPy, but no bool."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number; a NaN is one, and fails every comparison.

    Example:
        >>> is_number(0.5), is_number(True), is_number("1")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether it is a whole number, not below ``least``.

    Example:
        >>> is_whole(3, least=1), is_whole(0, least=1), is_whole(2.0, least=1)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
