"""What a run remembers: counts per phase, metric values per epoch, and the latest ones per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from loopcore._utils.history_names import prefix_of
from loopcore.errors import UnknownMetricError
from loopcore.metrics import EpochValue
from loopcore.optional_imports import optional

if TYPE_CHECKING:
    from loopcore.phases.base import Phase

Entries = TypeVar("Entries")  # what holds the values of one metric in one phase: a list or a `Ring`


class Counts(NamedTuple):
    """Completed epochs and steps of one phase, as they were when it was asked for.

    Attributes:
        epochs: completed epochs.
        steps: completed steps.
        steps_epoch: completed steps of the running (then last) epoch.
        attempts: steps that ended, however they ended.
    """

    epochs: int = 0
    steps: int = 0
    steps_epoch: int = 0
    attempts: int = 0

    def __repr__(self) -> str:
        return f"Counts(epochs={self.epochs}, steps={self.steps}, steps_epoch={self.steps_epoch})"


class Tally:
    """Counts that go on; only a `Recorder` has them, others get `Counts`."""

    __slots__ = Counts._fields

    def __init__(self, epochs: int = 0, steps: int = 0, steps_epoch: int = 0, attempts: int = 0) -> None:
        self.epochs, self.steps, self.steps_epoch, self.attempts = epochs, steps, steps_epoch, attempts


class History(Mapping[str, Counts]):
    """Counts by phase, ``learner.shared.history``; ``history[phase]`` takes a phase or its name.

    A phase that has not run yet has zeros; looking it up creates nothing.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Tally] = {}

    def __getitem__(self, phase: str | Phase) -> Counts:
        tally = self._counts.get(phase if isinstance(phase, str) else phase.name)
        return Counts() if tally is None else Counts(tally.epochs, tally.steps, tally.steps_epoch, tally.attempts)

    def __contains__(self, phase: object) -> bool:
        return getattr(phase, "name", phase) in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"History({dict(self)})"


def tallies_of(history: History) -> dict[str, Tally]:
    """The counts of a history that still count, by name of the phase: always the same dict."""
    return history._counts  # pyright: ignore[reportPrivateUsage]  # whoever has the history is to read alone


class Ring:
    """The latest values of a series that may be endless, in float64, and the numbers of their steps.

    Args:
        size: how many values are kept.
    """

    __slots__ = ("_numbers", "_values", "count")

    def __init__(self, size: int = 16_384) -> None:
        self._values = np.empty(size)
        self._numbers = np.empty(size, np.int64)
        self.count = 0  # all values ever added

    def extend(self, values: NDArray[np.float64], numbers: NDArray[np.int64] | None = None) -> None:
        """Add values, the newest last.

        Args:
            values: ``(n,)``.
            numbers: of the step of each, from 1, ``(n,)``. Default: those that follow the last one.
        """
        if numbers is None:
            numbers = self.last + 1 + np.arange(len(values))
        size = len(self._values)
        # More than fit may come at once, of which the last ones stay.
        newest = values[-size:]
        places = (self.count + len(values) - len(newest) + np.arange(len(newest))) % size
        self._values[places], self._numbers[places] = newest, numbers[-size:]
        self.count += len(values)

    @property
    def last(self) -> int:
        """The number of the newest value, 0 before the first."""
        return int(self._numbers[(self.count - 1) % len(self._numbers)]) if self.count else 0

    def latest(self) -> NDArray[np.float64]:
        """Return the kept values in order, the newest last."""
        return self._values[self._places()]

    def numbers(self) -> NDArray[np.int64]:
        """Return the numbers of the steps of the kept values."""
        return self._numbers[self._places()]

    def _places(self) -> NDArray[np.int64]:
        """Return where the kept values lie, in order: the newest overwrite the oldest."""
        size = len(self._values)
        return np.arange(max(0, self.count - size), self.count) % size

    def __repr__(self) -> str:
        return f"Ring({self.count} values, to step {self.last})"


class Series(Mapping[str, Mapping[str, Any]]):
    """Series of metric values, by phase name and metric name; read-only but for `Metrics`.

    It is no dict, so that no backend looks for arrays in it at every step.
    """

    def __init__(self) -> None:
        self._by_phase: dict[str, dict[str, Any]] = {}
        self._before: dict[str, dict[str, EpochValue]] = {}  # measured before the first round
        # measured within an epoch of another phase: round, completed steps of that phase by then, and value
        self.within: dict[str, dict[str, list[tuple[int, int, EpochValue]]]] = {}
        self._by_hand: dict[tuple[str, str], int] = {}  # where the last one stands that no round measured

    def put(self, phase: str, name: str, place: int, value: EpochValue) -> None:
        """Put a value at its round, from 1; rounds without one are None. At 0 it is one of before the first."""
        values: list[EpochValue] = self.of(phase, name, list)
        if place < 1:
            self._before.setdefault(phase, {})[name] = value
            return
        # A list by round, so that all metrics of a history have one axis: a metric that joins late begins with gaps.
        values += [None] * (place - len(values))
        values[place - 1] = value

    def put_by_hand(self, phase: str, name: str, place: int, value: EpochValue) -> None:
        """Put what was measured after a round, where the round itself measured nothing."""
        # What a round measured stays; what was measured by hand after it may be measured again.
        if self.at(phase, name, place) is None or self._by_hand.get((phase, name)) == place:
            self.put(phase, name, place, value)
            self._by_hand[phase, name] = place

    def at(self, phase: str, name: str, place: int) -> EpochValue:
        """Return the value at a round, None where there is none."""
        values: list[EpochValue] = self._by_phase.get(phase, {}).get(name, [])
        if place < 1:
            return self._before.get(phase, {}).get(name)
        return values[place - 1] if place <= len(values) else None

    def all(self, phase: str, name: str) -> list[Any]:
        """Return the values by round; where no round has one, that of before the first."""
        values: list[Any] = self._by_phase[phase][name]
        before = self._before.get(phase, {})
        return [before[name]] if not values and name in before else list(values)

    def of(self, phase: str, name: str, new: Callable[[], Entries]) -> Entries:
        """Return the series of a metric, to add to; ``new()`` makes it the first time."""
        by_name = self._by_phase.setdefault(phase, {})
        entries: Entries = by_name[name] if name in by_name else by_name.setdefault(name, new())
        return entries

    def __getitem__(self, phase: str) -> Mapping[str, Any]:
        return MappingProxyType(self._by_phase[phase])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_phase)

    def __len__(self) -> int:
        return len(self._by_phase)

    def __repr__(self) -> str:
        return f"Series({', '.join(prefix_of(phase) + name for phase in self for name in self[phase])})"


def entries_of(series: Series) -> dict[str, dict[str, Any]]:
    """What holds the values of a series, by phase and name: always the same dict."""
    return series._by_phase  # pyright: ignore[reportPrivateUsage]  # as in `tallies_of`


class Epochs(Mapping[str, list[float | None]]):
    """Epoch values of every metric, ``learner.history``.

    Keys are metric names with the prefix of their phase: none for ``training``, ``val_`` for ``validation``, else
    the phase's name and ``_``. Values are lists by round, up to the last one in which there was a value: entry 0 is
    that of the first round, and None stands where a round has none. Rounds go on through several fits and checkpoints;
    an epoch that a hand-written loop trains is one too. If a phase has several epochs in a round, the last one counts,
    and `within` has all. One that was stopped has the mean of what it completed. Values of metrics that are no scalar
    are lists, by class for instance.

    What is measured by hand outside of rounds, as by ``learner.run_epoch(lc.ValidationPhase())`` after a fit, is
    ``EpochInfo.metrics`` of that epoch. Here it stands at the round after which it was measured, where that has no
    value of its own.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> result = learner.fit(2)
        >>> len(learner.history["loss"])
        2
    """

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def steps(self, key: str) -> list[float]:
        """The latest values of a metric by step, the newest last (bounded; all of them in a short run)."""
        return [float(value) for value in self._ring(key).latest()]

    def step_numbers(self, key: str) -> list[int]:
        """The numbers of the steps of these values, among the completed ones of the phase, from 1.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner(steps=2)
            >>> result = learner.fit(2)
            >>> learner.history.step_numbers("loss")
            [1, 2, 3, 4]
        """
        return [int(number) for number in self._ring(key).numbers()]

    def _ring(self, key: str) -> Ring:
        phase, name = self._find(key, vars(self._shared).get("metrics_step") or Series())
        ring: Ring = self._shared.metrics_step[phase][name]
        return ring

    def within(self, key: str) -> list[tuple[int, int, Any]]:
        """What was measured within epochs of another phase: round, completed steps of that phase by then, and value.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> def validate(learner, phase):
            ...     learner.run_epoch(lc.ValidationPhase())
            >>> every = lc.FunctionCallback(validate, lc.StepEnd, lc.TrainingPhase)
            >>> valid = [(np.ones((4, 1)), np.ones((4, 1)))]
            >>> learner = lc.testing.toy_learner([every], data=(valid * 2, valid), phases=[lc.TrainingPhase()])
            >>> result = learner.fit(1)
            >>> [(round, step) for round, step, value in learner.history.within("val_loss")]
            [(1, 1), (1, 2)]
        """
        phase, name = self._find(key, self._table())
        return list(self._table().within.get(phase, {}).get(name, ()))

    def records(self) -> list[dict[str, Any]]:
        """One dict for each round, from 1, with the value of each metric; None where there is none.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner(steps=1)
            >>> result = learner.fit(2)
            >>> learner.history.records()[0]
            {'epoch': 1, 'loss': 1.0}
        """
        columns: dict[str, list[EpochValue]] = {
            prefix_of(phase) + name: values
            for phase, series in self._table().items()
            for name, values in series.items()
        }
        count = max(map(len, columns.values()), default=0)
        padded = {key: [*values, *[None] * (count - len(values))] for key, values in columns.items()}
        return [{"epoch": n + 1, **{key: values[n] for key, values in padded.items()}} for n in range(count)]

    def to_pandas(self) -> Any:
        """Make a ``pandas.DataFrame`` of the epochs, with the epoch as its index.

        Raises:
            MissingFrameworkError: pandas is not installed.
        """
        pandas = optional("pandas", "history.to_pandas()", "pandas")
        gaps = [{key: np.nan if value is None else value for key, value in row.items()} for row in self.records()]
        return pandas.DataFrame(gaps, columns=["epoch", *self]).set_index("epoch")

    def plot(self) -> Any:
        """The metrics by epoch, one panel each with a curve for every phase, and below them what a `Scheduler` set.

        Returns:
            A ``matplotlib.figure.Figure``; a notebook shows it, ``figure.savefig("history.png")`` keeps it.

        Raises:
            MissingFrameworkError: matplotlib is not installed.
        """
        from loopcore.plotting import plot_history  # plotting is seldom needed

        phases = {key: self.phase_of(key) for key in self}
        hyper = vars(self._shared).get("hyper_step") or Series()
        return plot_history(dict(self), phases, {phase: dict(series) for phase, series in hyper.items()})

    def phase_of(self, key: str) -> str:
        """Name the phase that a metric belongs to.

        Raises:
            UnknownMetricError: there is no such metric yet; names those there are.
        """
        return self._find(key, self._table())[0]

    def _table(self) -> Series:
        table: Series = vars(self._shared).get("metrics_epoch") or Series()
        return table

    def _find(self, key: str, table: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
        # The prefix alone would not do: training has none, and ``val_loss`` might be its metric.
        for phase, series in table.items():
            prefix = prefix_of(phase)
            if key.startswith(prefix) and key[len(prefix) :] in series:
                return phase, key[len(prefix) :]
        raise UnknownMetricError(key, [prefix_of(phase) + name for phase, series in table.items() for name in series])

    def __getitem__(self, key: str) -> list[float | None]:
        table = self._table()
        phase, name = self._find(key, table)
        return table.all(phase, name)

    def __iter__(self) -> Iterator[str]:
        return (prefix_of(phase) + name for phase, series in self._table().items() for name in series)

    def __len__(self) -> int:
        return sum(len(series) for series in self._table().values())

    def __reduce__(self) -> tuple[object, ...]:
        tables = vars(self._shared)  # a copy stands by itself: without the learner, and what it holds later
        return _standing_alone, ({name: tables[name] for name in _TABLES if name in tables},)

    def __repr__(self) -> str:
        rounds = max((len(values) for series in self._table().values() for values in series.values()), default=0)
        return f"<history of {', '.join(self) or 'nothing'} in {rounds} rounds>"


_TABLES = ("metrics_epoch", "metrics_step", "hyper_step")


def _standing_alone(tables: dict[str, Series]) -> Epochs:
    return Epochs(SimpleNamespace(**tables))
