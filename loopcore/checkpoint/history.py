"""What a learner remembers: counts, and the series of values by epoch and by step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar

import numpy as np

from loopcore.checkpoint.file import Arrays, Json, Manifest
from loopcore.checkpoint.parts import CheckpointPart, File
from loopcore.history import History, Ring, Series, Tally, entries_of, tallies_of

Key = TypeVar("Key")
Value = TypeVar("Value")
Measured: TypeAlias = Any  # a list of values by epoch, or a `Ring` of those by step


class CountsPart(CheckpointPart):
    """The seed and the counts that random draws follow from, and the counts of completed epochs and steps."""

    def save(self, arrays: Arrays) -> Manifest:
        """Return the seed and all counts for the manifest; there are no arrays."""
        runs = self.learner.runs
        history = {name: list(counts) for name, counts in getattr(self.learner.shared, "history", {}).items()}
        draws = {"seed": self.learner.seed, "attempts": dict(runs.attempts), "draws": dict(runs.draws_outside_steps)}
        return {**draws, "missed": dict(runs.missed), "rounds": runs.rounds_to_keep(), "history": history}

    def load(self, file: File, undo: ExitStack) -> None:
        """Set the seed and the counts to those of a checkpoint."""
        learner, runs, manifest = self.learner, self.learner.runs, file.manifest
        undo.callback(setattr, learner, "seed", learner.seed)
        learner.seed = int(manifest["seed"])
        _refill(runs.attempts, {name: int(n) for name, n in manifest["attempts"].items()}, undo)
        _refill(runs.missed, _missed(manifest), undo)
        undo.callback(runs.set_rounds, runs.rounds)
        runs.set_rounds(int(manifest.get("rounds", _most_epochs(manifest))))
        _refill(runs.draws_outside_steps, {name: int(n) for name, n in manifest["draws"].items()}, undo)
        history = getattr(learner.shared, "history", None)
        if isinstance(history, History):
            _refill(tallies_of(history), {name: Tally(*counts) for name, counts in manifest["history"].items()}, undo)


class Values(CheckpointPart):
    """The series of metrics and hyperparameters: all by epoch, the latest by step.

    Series of anything else, as `Traces` notes them, are no part of a checkpoint, and loading leaves them alone.
    """

    def save(self, arrays: Arrays) -> Manifest:
        """Return the lists of values by epoch for the manifest, and add the values by step as arrays."""
        tables: Manifest = {}
        for table, series in self._series().items():
            tables[table] = {phase: _chosen(values, saved=True) for phase, values in series.items()}
            for values in tables[table].values():
                for name, ring in values.items():
                    if isinstance(ring, Ring):
                        # Numbered, since the name of a metric may have a slash in it.
                        key = f"steps/{sum(other.startswith('steps/') for other in arrays)}"
                        arrays[key] = ring.latest()
                        arrays[f"numbers/{key}"] = ring.numbers()
                        values[name] = {"array": key, "count": ring.count}
        nested = {table: series.within for table, series in self._series().items() if series.within}
        return {"series": tables, "within": nested}

    def load(self, file: File, undo: ExitStack) -> None:
        """Replace the series of the learner by those of a checkpoint, except those that are never saved."""
        for table, series in self._series().items():
            stored: dict[str, Manifest] = file.manifest["series"].get(table, {})
            new = {phase: _chosen(values, saved=False) for phase, values in series.items()}
            for phase, values in stored.items():
                new.setdefault(phase, {}).update({name: _series(v, file.arrays) for name, v in values.items()})
            nested = file.manifest.get("within", {}).get(table, {})
            entries = {p: {n: [tuple(entry) for entry in v] for n, v in values.items()} for p, values in nested.items()}
            _refill(series.within, entries, undo)
            _refill(entries_of(series), {phase: values for phase, values in new.items() if values}, undo)

    def _series(self) -> dict[str, Series]:
        return {name: value for name, value in vars(self.learner.shared).items() if isinstance(value, Series)}


def _chosen(values: Mapping[str, Value], *, saved: bool) -> dict[str, Value]:
    """Select the series that a checkpoint saves, or the others."""
    return {name: value for name, value in values.items() if isinstance(value, (list, Ring)) == saved}


def _series(saved: Json, arrays: Arrays) -> Measured:
    """Make a series of what was saved: a list of values by epoch, or a ring of the latest by step."""
    if isinstance(saved, list):
        return list(saved)
    ring, latest = Ring(), arrays[saved["array"]]
    # The ring goes on from where it was, also if it keeps fewer values than there ever were.
    count = int(saved["count"])
    numbers = arrays.get(f"numbers/{saved['array']}", np.arange(count - len(latest), count) + 1)  # an old file has none
    ring.count = count - len(latest)
    ring.extend(latest, numbers)
    return ring


def _missed(manifest: Mapping[str, Json]) -> dict[str, int]:
    """Count steps that were begun and not completed, by phase; of an old checkpoint by the counts of its `Recorder`."""
    history = {name: counts[1] for name, counts in manifest["history"].items()}
    old = {name: int(n) - int(history.get(name, n)) for name, n in manifest["attempts"].items()}
    return {name: int(n) for name, n in manifest.get("missed", old).items()}


def _most_epochs(manifest: Mapping[str, Json]) -> int:
    """Count the rounds of an old checkpoint, whose series had one value for each epoch of their phase."""
    series = manifest["series"].get("metrics_epoch", {}).values()
    lengths = [len(values) for by_name in series for values in by_name.values()]
    return max([*lengths, *(int(counts[0]) for counts in manifest["history"].values())], default=0)


def _refill(content: dict[Key, Value], new: dict[Key, Value], undo: ExitStack) -> None:
    """Replace the content of a dict in place, since others hold it; ``undo`` brings the old content back."""
    # An ExitStack goes backwards: it clears the dict, then fills it.
    undo.callback(content.update, dict(content))
    undo.callback(content.clear)
    content.clear()
    content.update(new)
