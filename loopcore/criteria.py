"""When to stop, decided on a series of losses: the criteria of EarlyStopping.jl, for `EarlyStopping`.

A criterion sees the loss of each epoch, the smaller the better, and says whether it is time to stop.
"""

from __future__ import annotations

from collections import deque
from math import fsum, inf, isfinite, isnan
from time import monotonic
from typing import Any, TypeAlias

from loopcore._utils.validation import is_number, is_whole

__all__ = [
    "GL",
    "PQ",
    "Criterion",
    "Disjunction",
    "InvalidValue",
    "NumberLimit",
    "NumberSinceBest",
    "Patience",
    "Threshold",
    "TimeLimit",
    "Warmup",
]

State: TypeAlias = dict[str, Any]  # what a criterion has seen, as JSON values by name


class Criterion:
    """Base of the criteria. ``a | b`` stops when one of them does.

    Example:
        >>> import loopcore as lc
        >>> class Even(lc.criteria.Criterion):
        ...     def update(self, loss):
        ...         return loss % 2 == 0
        >>> either = Even() | lc.criteria.Threshold(0.5)
        >>> [either.update(loss) for loss in (3, 2, 0.1)]
        [False, True, True]
    """

    def update(self, loss: float) -> bool:
        """Take the next loss; return whether to stop."""
        raise NotImplementedError(f"{type(self).__name__} does not say when to stop: define update(self, loss)")

    def update_training(self, loss: float) -> None:
        """Take the next training loss, which `PQ` and `InvalidValue` look at."""

    def reset(self) -> None:
        """Forget all losses."""

    def state_dict(self) -> State:
        """Return what it has seen, as JSON values."""
        state: State = {}
        for name, value in vars(self).items():
            if isinstance(value, Criterion):
                state[name] = value.state_dict()
            elif name == "criteria":
                state[name] = [criterion.state_dict() for criterion in value]
            elif name != "_first" and name.startswith("_"):  # times of one process mean nothing in another
                state[name] = list(value) if isinstance(value, deque) else value
        return state

    def load_state_dict(self, state: State) -> None:
        """Go on from what `state_dict` returned."""
        for name, value in state.items():
            member = getattr(self, name)
            if isinstance(member, Criterion):
                member.load_state_dict(value)
            elif name == "criteria":
                for criterion, criterion_state in zip(member, value, strict=True):
                    criterion.load_state_dict(criterion_state)
            else:
                setattr(self, name, deque(value, member.maxlen) if isinstance(member, deque) else value)

    def __or__(self, other: Criterion) -> Disjunction:
        return Disjunction(self, other)

    def __repr__(self) -> str:
        arguments = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


class Threshold(Criterion):
    """Stop when a loss is below a value.

    Raises:
        ValueError: it is no number.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.Threshold(0.1)
        >>> stop.update(0.2), stop.update(0.05)
        (False, True)
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value = _number("value", value)

    def update(self, loss: float) -> bool:
        """Return whether the loss is below the value."""
        return loss < self.value


class Patience(Criterion):
    """Stop after ``n`` increases in a row, each compared with the loss before it.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.Patience(2)
        >>> [stop.update(loss) for loss in (3, 2, 3, 4)]
        [False, False, False, True]
    """

    def __init__(self, n: int = 5) -> None:
        self.n = _at_least_1("n", n)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._last, self._rises = inf, 0

    def update(self, loss: float) -> bool:
        """Return whether the loss is the n-th increase in a row."""
        self._rises = self._rises + 1 if loss > self._last else 0
        self._last = loss
        return self._rises >= self.n


class NumberSinceBest(Criterion):
    """Stop when the best loss is ``n`` losses ago.

    Args:
        n: at least 1.
        min_delta: how much better than the best a loss has to be to count as better, at least 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.NumberSinceBest(2)
        >>> [stop.update(loss) for loss in (3, 1, 2, 1.5)]
        [False, False, False, True]
    """

    def __init__(self, n: int = 6, min_delta: float = 0.0) -> None:
        self.n = _at_least_1("n", n)
        self.min_delta = _number("min_delta", min_delta, least=0)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._best, self._since = inf, 0

    def update(self, loss: float) -> bool:
        """Return whether the best loss is n losses ago."""
        # The first finite loss is the best so far, whatever the delta: infinity less a number is infinity.
        if loss < self._best - self.min_delta or (self._best == inf and isfinite(loss)):
            self._best, self._since = loss, 0
        else:
            self._since += 1
        return self._since >= self.n


class NumberLimit(Criterion):
    """Stop at the n-th loss.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.NumberLimit(2)
        >>> stop.update(1.0), stop.update(0.5)
        (False, True)
    """

    def __init__(self, n: int = 100) -> None:
        self.n = _at_least_1("n", n)
        self.reset()

    def reset(self) -> None:
        """Forget how many losses there were."""
        self._count = 0

    def update(self, loss: float) -> bool:
        """Return whether the loss is the n-th."""
        self._count += 1
        return self._count >= self.n


class TimeLimit(Criterion):
    """Stop when the first loss is so many seconds ago.

    Raises:
        ValueError: they are not above 0.

    Example:
        >>> import loopcore as lc
        >>> lc.criteria.TimeLimit(3600).update(1.0)
        False
    """

    def __init__(self, seconds: float = 1800.0) -> None:
        self.seconds = _above_0("seconds", seconds)
        self.reset()

    def reset(self) -> None:
        """Forget when the first loss came."""
        self._first: float | None = None

    def update(self, loss: float) -> bool:
        """Return whether the time since the first loss is over."""
        if self._first is None:
            self._first = monotonic()
        return monotonic() - self._first >= self.seconds


class InvalidValue(Criterion):
    """Stop when a loss, or a training loss, is NaN or infinite.

    Example:
        >>> import loopcore as lc
        >>> lc.criteria.InvalidValue().update(float("nan"))
        True
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._found = False

    def update_training(self, loss: float) -> None:
        """Note whether a training loss is NaN or infinite."""
        self._found |= not isfinite(loss)

    def update(self, loss: float) -> bool:
        """Return whether a loss so far, in training too, was NaN or infinite."""
        self._found |= not isfinite(loss)
        return self._found


class GL(Criterion):
    """Stop when the generalisation loss, ``100 * (loss - best) / abs(best)``, is above ``alpha``.

    Prechelt, Early stopping - but when? (1998).

    Args:
        alpha: in percent, above 0.

    Raises:
        ValueError: it is not.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.GL(10)
        >>> [stop.update(loss) for loss in (2.0, 1.0, 1.05, 1.2)]
        [False, False, False, True]
    """

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = _above_0("alpha", alpha)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._best = inf

    def update(self, loss: float) -> bool:
        """Return whether the generalisation loss is above alpha."""
        self._best = min(self._best, loss)
        return _over_best(loss, self._best) > self.alpha


class PQ(Criterion):
    """Stop when the generalisation loss is more than ``alpha`` times the progress in training, or that has stalled.

    The generalisation loss is that of `GL`; the progress over the last ``k`` training losses is
    ``1000 * (mean - min) / abs(min)``. Prechelt, Early stopping - but when? (1998).

    Args:
        alpha: above 0.
        k: training losses that count, at least 2. Before there are so many it stops nothing.
        tol: a progress not above this is none, above 0.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.PQ(alpha=0.75, k=2)
        >>> found = []
        >>> for training, loss in ((4.0, 4.0), (2.0, 2.0), (1.99, 2.5)):
        ...     stop.update_training(training)
        ...     found.append(stop.update(loss))
        >>> found
        [False, False, True]
    """

    def __init__(self, alpha: float = 0.75, k: int = 5, tol: float = 2.0**-52) -> None:
        self.alpha = _above_0("alpha", alpha)
        self.k = _at_least_1("k", k)
        if k == 1:
            raise ValueError("k=1: the progress of a single loss is always 0; at least 2")
        self.tol = _above_0("tol", tol)
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self._best = inf
        self._training: deque[float] = deque(maxlen=self.k)

    def update_training(self, loss: float) -> None:
        """Keep a training loss among the last k."""
        self._training.append(loss)

    def update(self, loss: float) -> bool:
        """Return whether the quotient is above alpha or nothing progressed; never before k training losses."""
        self._best = min(self._best, loss)
        if len(self._training) < self.k:
            return False
        # Per mille, as Prechelt has it, while the generalisation loss is in percent.
        mean = fsum(self._training) / len(self._training)
        progress = 10 * _over_best(mean, min(self._training))
        return progress <= self.tol or _over_best(loss, self._best) > self.alpha * progress


class Warmup(Criterion):
    """Another criterion that begins after ``n`` losses, which it does not see; nor the training losses until then.

    Raises:
        TypeError: it is no criterion.
        ValueError: ``n`` is not at least 1.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.Warmup(lc.criteria.NumberSinceBest(1), n=1)
        >>> [stop.update(loss) for loss in (0.1, 0.5, 0.6)]
        [False, False, True]
    """

    def __init__(self, criterion: Criterion, n: int = 1) -> None:
        (self.criterion,) = _criteria("Warmup", criterion)
        self.n = _at_least_1("n", n)
        self._count = 0

    def reset(self) -> None:
        """Forget all losses."""
        self._count = 0
        self.criterion.reset()

    def update_training(self, loss: float) -> None:
        """Hand a training loss on, after the first n losses."""
        if self._count >= self.n:
            self.criterion.update_training(loss)

    def update(self, loss: float) -> bool:
        """Return whether the criterion stops; never at the first n losses."""
        self._count += 1
        return self._count > self.n and self.criterion.update(loss)


class Disjunction(Criterion):
    """Stop when one of several criteria does; all see every loss.

    Raises:
        TypeError: one is no criterion.

    Example:
        >>> import loopcore as lc
        >>> stop = lc.criteria.NumberLimit(9) | lc.criteria.InvalidValue()
        >>> stop.update(float("inf"))
        True
    """

    def __init__(self, *criteria: Criterion) -> None:
        self.criteria = _criteria("Disjunction", *criteria)

    def reset(self) -> None:
        """Forget all losses."""
        for criterion in self.criteria:
            criterion.reset()

    def update_training(self, loss: float) -> None:
        """Hand a training loss on to all criteria."""
        for criterion in self.criteria:
            criterion.update_training(loss)

    def update(self, loss: float) -> bool:
        """Return whether one of the criteria stops."""
        # A list and no generator: all of them have to see the loss, also behind one that stops.
        return any([criterion.update(loss) for criterion in self.criteria])

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.criteria))


def _over_best(value: float, best: float) -> float:
    """Return how many percent a value is above the best one."""
    return 100 * (value - best) / abs(best) if best else (0.0 if value == best else inf)


def _criteria(class_name: str, *criteria: Criterion) -> tuple[Criterion, ...]:
    for criterion in criteria:
        if not isinstance(criterion, Criterion):
            suggestion = (
                f"write {criterion.__name__}()" if isinstance(criterion, type) else "such as lc.criteria.Threshold(0.1)"
            )
            raise TypeError(
                f"{class_name} takes criteria, instances of lc.criteria.Criterion, not {criterion!r}: {suggestion}"
            )
    return criteria


def _number(name: str, value: float, least: float = -inf) -> float:
    if not is_number(value) or isnan(value) or value < least:
        raise ValueError(f"{name}={value!r}: a number{'' if least == -inf else f', at least {least}'}")
    return value


def _above_0(name: str, value: float) -> float:
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name}={value!r}: a number above 0")
    return value


def _at_least_1(name: str, value: int) -> int:
    if not is_whole(value, least=1):
        raise ValueError(f"{name}={value!r}: a whole number, at least 1")
    return value
