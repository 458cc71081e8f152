"""Schedules: functions from a step (or an epoch), counted from 0, to a number. Any such function is one.

Those of optax and Keras are, as they are. What is past the last step of a schedule keeps its last value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import ParamSpec, TypeAlias

from loopcore._utils.validation import is_number

__all__ = [
    "constant",
    "cosine",
    "exponential",
    "linear",
    "one_cycle",
    "polynomial",
    "scale",
    "sequence",
    "shift",
    "steps",
    "warmup",
]

Schedule: TypeAlias = Callable[[float], float]
P = ParamSpec("P")


class _PrintableSchedule:
    """A schedule that knows how it was made, so that it can be printed, pickled and copied."""

    def __init__(self, name: str, args: tuple[object, ...], kwargs: dict[str, object], value: Schedule) -> None:
        self._recipe = name, args, kwargs
        # `linear` is made by `polynomial`, and has to print as what the user wrote.
        self._value: Schedule = value._value if isinstance(value, _PrintableSchedule) else value

    def __call__(self, step: float) -> float:
        return self._value(step)

    def __repr__(self) -> str:
        name, args, kwargs = self._recipe
        return f"{name}({', '.join([*map(repr, args), *(f'{key}={value!r}' for key, value in kwargs.items())])})"

    def __reduce__(self) -> tuple[object, ...]:
        # The function inside is a closure, which cannot be pickled; how it was made can.
        return _make, self._recipe


def _make(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Schedule:
    schedule: Schedule = globals()[name](*args, **kwargs)
    return schedule


def _printable(make: Callable[P, Schedule]) -> Callable[P, Schedule]:
    @wraps(make)
    def printable(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        return _PrintableSchedule(make.__name__, args, kwargs, make(*args, **kwargs))

    return printable


@_printable
def constant(value: float) -> Schedule:
    """Keep one value at every step.

    Args:
        value: at every step.

    Example:
        >>> import loopcore as lc
        >>> lc.schedules.constant(0.1)(1000)
        0.1
    """
    return lambda step: value


@_printable
def linear(start: float, stop: float, length: float) -> Schedule:
    """Draw a straight line from ``start`` at 0 to ``stop`` at ``length``.

    Args:
        start: value at 0.
        stop: value from ``length`` on.
        length: steps (or epochs) in between, above 0.

    Raises:
        ValueError: ``length`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> [lc.schedules.linear(1.0, 0.0, 4)(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return polynomial(start, stop, length, 1.0)


@_printable
def polynomial(start: float, stop: float, length: float, power: float) -> Schedule:
    """Follow ``stop + (start - stop) * (1 - step / length) ** power``.

    Args:
        start: value at 0.
        stop: value from ``length`` on.
        length: steps (or epochs) in between, above 0.
        power: 1 is a straight line; above 1 the first steps change most, below 1 the last ones.

    Raises:
        ValueError: ``length`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> lc.schedules.polynomial(1.0, 0.0, 4, 2)(2)
        0.25
    """
    _check("length", length)
    return lambda step: stop + (start - stop) * (1.0 - _share(step, length)) ** power


@_printable
def cosine(start: float, stop: float, length: float) -> Schedule:
    """Go half a cosine from ``start`` at 0 to ``stop`` at ``length`` (Loshchilov and Hutter, 2017, arXiv:1608.03983).

    Args:
        start: value at 0.
        stop: value from ``length`` on.
        length: steps (or epochs) in between, above 0.

    Raises:
        ValueError: ``length`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> round(lc.schedules.cosine(1.0, 0.0, 4)(2), 6)
        0.5
    """
    _check("length", length)
    return lambda step: stop + (start - stop) * 0.5 * (1.0 + math.cos(math.pi * _share(step, length)))


@_printable
def exponential(start: float, factor: float, every: float = 1) -> Schedule:
    """Follow ``start * factor ** (step / every)``.

    Args:
        start: value at 0.
        factor: what the value is multiplied by, bit by bit, within ``every`` steps.
        every: steps (or epochs), above 0.

    Raises:
        ValueError: ``every`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> lc.schedules.exponential(1.0, 0.5, every=10)(20)
        0.25
    """
    _check("every", every)
    return lambda step: start * factor ** (step / every)


@_printable
def steps(start: float, factor: float, every: int | Sequence[int]) -> Schedule:
    """Multiply by ``factor`` at each multiple of ``every``, or at each of these steps.

    Args:
        start: value at 0.
        factor: what the value is multiplied by, at once.
        every: steps (or epochs) from one change to the next, above 0; or the steps at which it changes.

    Raises:
        ValueError: ``every`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> [lc.schedules.steps(1.0, 0.1, every=30)(step) for step in (0, 29, 30)]
        [1.0, 1.0, 0.1]
        >>> lc.schedules.steps(1.0, 0.5, every=[10, 15])(20)
        0.25
    """
    if isinstance(every, Sequence):
        places = tuple(every)
        return lambda step: start * factor ** sum(step >= place for place in places)
    _check("every", every)
    return lambda step: start * factor ** (step // every)


@_printable
def warmup(schedule: Schedule, length: float, start: float = 0.0) -> Schedule:
    """Rise in a line from ``start`` to the first value of a schedule, which begins when it is reached.

    Args:
        schedule: counts from 0 when the line ends.
        length: steps (or epochs) of the line, above 0.
        start: value at 0.

    Raises:
        TypeError: ``schedule`` is no function.
        ValueError: ``length`` is not above 0.

    Example:
        >>> import loopcore as lc
        >>> schedule = lc.schedules.warmup(lc.schedules.constant(1.0), 4)
        >>> [schedule(step) for step in (0, 2, 4, 100)]
        [0.0, 0.5, 1.0, 1.0]
    """
    _check_schedules("warmup", schedule)
    return sequence(linear(start, schedule(0), length), schedule, at=(length,))


@_printable
def one_cycle(
    peak: float,
    length: float,
    *,
    start: float | None = None,
    stop: float | None = None,
    rise: float = 0.3,
) -> Schedule:
    """Rise by half a cosine to the peak, and fall by another (Smith and Topin, 2018, arXiv:1708.07120).

    Args:
        peak: the largest value.
        length: steps in all.
        start: the first value. Default: ``peak / 25``.
        stop: the last one. Default: ``start / 10,000``.
        rise: share of the steps that go up, above 0 and below 1.

    Raises:
        ValueError: ``length`` is not above 0, or ``rise`` out of its range.

    Example:
        >>> import loopcore as lc
        >>> schedule = lc.one_cycle(1.0, 100, start=0.0, stop=0.0)
        >>> [round(schedule(step), 3) for step in (0, 15, 30, 65, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check("length", length)
    if not (is_number(rise) and 0 < rise < 1):
        raise ValueError(f"rise={rise!r}: the share of the steps that go up, above 0 and below 1")
    first = peak / 25 if start is None else start
    last = first / 1e4 if stop is None else stop
    up = rise * length
    return sequence(cosine(first, peak, up), cosine(peak, last, length - up), at=(up,))


@_printable
def sequence(*schedules: Schedule, at: Sequence[float]) -> Schedule:
    """Run one schedule after the other; each counts from 0 when it begins.

    Args:
        *schedules: two or more.
        at: the steps at which the second, third, ... begin, in rising order.

    Raises:
        TypeError: a schedule is no function.
        ValueError: ``at`` does not have one step less than there are schedules, or they do not rise.

    Example:
        >>> import loopcore as lc
        >>> both = lc.schedules.sequence(lc.schedules.constant(1.0), lc.schedules.linear(1.0, 0.0, 10), at=(5,))
        >>> both(4), both(10)
        (1.0, 0.5)
    """
    _check_schedules("sequence", *schedules)
    if len(at) != len(schedules) - 1 or any(b <= a for a, b in pairwise(at)):
        raise ValueError(f"at={tuple(at)!r}: {len(schedules)} schedules need {len(schedules) - 1} rising steps")
    begins = (0.0, *at)

    def value(step: float) -> float:
        number = sum(step >= begin for begin in at)
        return schedules[number](step - begins[number])

    return value


@_printable
def shift(schedule: Schedule, by: float) -> Schedule:
    """Move a schedule ``by`` steps later; it has its first value until then.

    Args:
        schedule: what is moved.
        by: steps (or epochs); a negative number leaves out as many at the beginning.

    Raises:
        TypeError: ``schedule`` is no function.

    Example:
        >>> import loopcore as lc
        >>> later = lc.schedules.shift(lc.schedules.linear(1.0, 0.0, 10), 100)
        >>> later(50), later(105)
        (1.0, 0.5)
    """
    _check_schedules("shift", schedule)
    return lambda step: schedule(max(0.0, step - by))


@_printable
def scale(schedule: Schedule, factor: float) -> Schedule:
    """Multiply the values of a schedule by a factor.

    Args:
        schedule: what is multiplied.
        factor: of every value.

    Raises:
        TypeError: ``schedule`` is no function.

    Example:
        >>> import loopcore as lc
        >>> lc.schedules.scale(lc.schedules.constant(2.0), 0.5)(7)
        1.0
    """
    _check_schedules("scale", schedule)
    return lambda step: factor * schedule(step)


def _share(step: float, length: float) -> float:
    return min(max(step, 0.0), length) / length


def _check(name: str, value: float) -> None:
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name}={value!r}: a number of steps above 0")


def _check_schedules(function_name: str, *schedules: Schedule) -> None:
    for schedule in schedules:
        if not callable(schedule):
            raise TypeError(
                f"{function_name} takes a schedule, a function from a step to a number, not {schedule!r}: "
                f"write lc.schedules.constant({schedule!r})"
            )
