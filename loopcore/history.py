"""What a run remembers: counts per phase, metric values per epoch, and the latest ones per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loopcore.errors import MissingFrameworkError, UnknownMetricError

if TYPE_CHECKING:
    from loopcore.phases import Phase

PREFIXES = {"training": "", "validation": "val_"}


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
    """Counts that still count; only a `Recorder` has them."""

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


class Ring:
    """The latest values of a series that may be endless, in float64.

    Args:
        size: how many values are kept.
    """

    __slots__ = ("_values", "count")

    def __init__(self, size: int = 16_384) -> None:
        self._values = np.empty(size)
        self.count = 0  # all values ever added

    def extend(self, values: np.ndarray[Any, Any]) -> None:
        """Add values, the newest last."""
        size = len(self._values)
        kept = values[-size:]
        start = self.count + len(values) - len(kept)
        self._values[(start + np.arange(len(kept))) % size] = kept
        self.count += len(values)

    def latest(self) -> np.ndarray[Any, Any]:
        """The kept values in order, the newest last."""
        size = len(self._values)
        first = max(0, self.count - size)
        return self._values[np.arange(first, self.count) % size]


class Series(Mapping[str, Mapping[str, Any]]):
    """Series of metric values, by phase name and metric name; read-only but for `Metrics`.

    It is no dict, so that no backend looks for arrays in it at every step.
    """

    def __init__(self) -> None:
        self._by_phase: dict[str, dict[str, Any]] = {}

    def of(self, phase: str, name: str, new: Callable[[], Any]) -> Any:
        """The series of a metric, to add to; ``new()`` makes it the first time."""
        found = self._by_phase.setdefault(phase, {})
        return found[name] if name in found else found.setdefault(name, new())

    def __getitem__(self, phase: str) -> Mapping[str, Any]:
        return MappingProxyType(self._by_phase[phase])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_phase)

    def __len__(self) -> int:
        return len(self._by_phase)

    def __repr__(self) -> str:
        return f"Series({self._by_phase})"


class Epochs(Mapping[str, list[float | None]]):
    """Epoch values of every metric, ``learner.history``.

    Keys are metric names with the prefix of their phase: none for ``training``, ``val_`` for ``validation``, else
    the phase's name and ``_``. Values are lists with one float for each completed epoch of the phase, None for an
    epoch without samples.

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
        phase, name = self._find(key, vars(self._shared).get("metrics_step") or Series())
        return [float(value) for value in self._shared.metrics_step[phase][name].latest()]

    def records(self) -> list[dict[str, Any]]:
        """One dict for each epoch, from 1, with the value of each metric; None where there is none.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner(steps=1)
            >>> result = learner.fit(2)
            >>> learner.history.records()[0]
            {'epoch': 1, 'loss': 1.0}
        """
        columns = dict(self)
        count = max(map(len, columns.values()), default=0)
        padded = {key: [*values, *[None] * (count - len(values))] for key, values in columns.items()}
        return [{"epoch": n + 1, **{key: values[n] for key, values in padded.items()}} for n in range(count)]

    def to_pandas(self) -> Any:
        """The epochs as a ``pandas.DataFrame``, with the epoch as its index.

        Raises:
            MissingFrameworkError: pandas is not installed.
        """
        pandas = optional("pandas", "history.to_pandas()", "pandas")
        return pandas.DataFrame(self.records(), columns=["epoch", *self]).set_index("epoch")

    def plot(self) -> Any:
        """The metrics by epoch, one panel each with a curve for every phase, and below them what a `Scheduler` set.

        Returns:
            A ``matplotlib.figure.Figure``; a notebook shows it, ``figure.savefig("history.png")`` keeps it.

        Raises:
            MissingFrameworkError: matplotlib is not installed.
        """
        from loopcore.plotting import plot_history  # it is seldom needed

        phases = {key: self.phase_of(key) for key in self}
        hyper = vars(self._shared).get("hyper_step") or Series()
        return plot_history(dict(self), phases, {phase: dict(series) for phase, series in hyper.items()})

    def phase_of(self, key: str) -> str:
        """The name of the phase that a metric belongs to.

        Raises:
            UnknownMetricError: there is no such metric yet; names those there are.
        """
        return self._find(key, self._table())[0]

    def _table(self) -> Series:
        table: Series = vars(self._shared).get("metrics_epoch") or Series()
        return table

    def _find(self, key: str, table: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
        for phase, series in table.items():
            prefix = prefix_of(phase)
            if key.startswith(prefix) and key[len(prefix) :] in series:
                return phase, key[len(prefix) :]
        raise UnknownMetricError(key, [prefix_of(phase) + name for phase, series in table.items() for name in series])

    def __getitem__(self, key: str) -> list[float | None]:
        table = self._table()
        phase, name = self._find(key, table)
        return list(table[phase][name])

    def __iter__(self) -> Iterator[str]:
        return (prefix_of(phase) + name for phase, series in self._table().items() for name in series)

    def __len__(self) -> int:
        return sum(len(series) for series in self._table().values())

    def __repr__(self) -> str:
        return repr(dict(self))


def optional(module: str, what: str, package: str, install: str = "") -> Any:
    """A library that only some need.

    Args:
        module: to import.
        what: needs it.
        package: how the library is called.
        install: what pip installs it by, where that is not its own name.

    Raises:
        MissingFrameworkError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            f"{what} needs {package}, which is not installed: pip install {install or package}"
        ) from error


def prefix_of(phase: str) -> str:
    """What the names of a phase's metrics begin with."""
    return PREFIXES.get(phase, f"{phase}_")
