"""Parts of a learner that say themselves what they keep, as JSON: callbacks and loaders."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from copy import deepcopy
from typing import TypeAlias

from loopcore.callback import Callback, name_of
from loopcore.checkpoint.file import Arrays, Json, Manifest, encoded
from loopcore.checkpoint.parts import CheckpointPart, File
from loopcore.errors import CheckpointError, DataError

Attributes: TypeAlias = list[tuple[dict[str, object], dict[str, object]]]  # those of an object, and a copy


class Callbacks(CheckpointPart):
    """The states of the callbacks, by name; numbered where there are several of a class."""

    def save(self, arrays: Arrays) -> Manifest:
        """Return the state of each callback for the manifest."""
        return {"callbacks": {key: _state(key, callback) for key, callback in self._keyed().items()}}

    def differences(self, file: File) -> list[str]:
        """List the states that only the learner or only the checkpoint has."""
        present, stored = self._keyed(), file.manifest["callbacks"]
        absent = [key for key, state in stored.items() if state and key not in present]
        new = [key for key, callback in present.items() if key not in stored and callback.state_dict()]
        return [f"callbacks: {key} kept a state, and is none of this learner: pass it" for key in absent] + [
            f"callbacks: {key} keeps a state, and the checkpoint has none: add it after load, learner.callbacks.add"
            for key in new
        ]

    def load(self, file: File, undo: ExitStack) -> None:
        """Give each callback the state that was saved under its name."""
        states = file.manifest["callbacks"]
        for key, callback in self._keyed().items():
            if key in states:
                # A copy: the state may be made of the very lists that the callback goes on writing.
                undo.callback(_put_back, callback, deepcopy(callback.state_dict()), _attributes(callback))
                with _naming(f"callbacks: {key} refuses its state"):
                    callback.load_state_dict(states[key])

    def _keyed(self) -> dict[str, Callback]:
        callbacks: dict[str, Callback] = {}
        for callback in self.learner.callbacks:
            name, number = name_of(callback), 1
            key = name
            # Callbacks of one class are told apart by their order alone: a learner that is made alike gives them the
            # same numbers.
            while key in callbacks:
                number += 1
                key = f"{name} {number}"
            callbacks[key] = callback
        return callbacks


class Loaders(CheckpointPart):
    """Where each loader of the data is, and how exactly a run goes on with it.

    ``exact``: with the batch that would have come next. ``epoch``: a list, which keeps no place, and whose epoch was
    left in the middle: it begins again. ``none``: what the loader gives next is its own affair.
    """

    def save(self, arrays: Arrays) -> Manifest:
        """Return for each loader its state, and how exactly it resumes."""
        return {"data": {key: self._entry(key, loader) for key, loader in self.learner.data.items()}}

    def differences(self, file: File) -> list[str]:
        """List the loaders that were saved with a place and now keep none."""
        data = self.learner.data
        lost = [key for key, state in self._states(file).items() if key in data and not keeps_place(data[key])]
        return [
            f"data: the {key} data was a loader with a place, here it is a {type(data[key]).__name__} without "
            "load_state_dict: pass the one it was"
            for key in lost
        ]

    def load(self, file: File, undo: ExitStack) -> None:
        """Put each loader in the place that was saved."""
        for key, state in self._states(file).items():
            loader = self.learner.data.get(key)  # the learner may have no data of that name any more
            if loader is not None:
                runs = self.learner.runs
                undo.callback(runs.put_in_place, loader, runs.place_of(loader))
                with _naming(f"data: the {key} loader refuses its place"):
                    runs.put_in_place(loader, state)

    def _states(self, file: File) -> Manifest:
        return {key: entry["state"] for key, entry in file.manifest["data"].items() if entry["state"] is not None}

    def _entry(self, key: str, loader: object) -> Manifest:
        # A list is walked from its begin each time: between two epochs it is where it was.
        if isinstance(loader, (list, tuple)):
            return {"resume": "epoch" if self._is_midway(key) else "exact", "state": None}
        state = None
        if keeps_place(loader):
            with suppress(DataError, TypeError, RecursionError):  # one inside it keeps no place, or it is no JSON
                state = _json(self.learner.runs.place_of(loader))
        return {"resume": "none" if state is None else "exact", "state": state}

    def _is_midway(self, key: str) -> bool:
        epoch = self.learner.epoch
        return epoch is not None and epoch.phase.data_key == key and epoch.outcome != "completed"


class _naming:  # noqa: N801 - with _naming(what): ...
    """A block whose errors become a CheckpointError that says what it is about."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            raise CheckpointError(f"{self._title}: {type(error).__name__}: {error}") from error


def _state(key: str, callback: Callback) -> Json:
    try:
        return _json(callback.state_dict())
    except (TypeError, RecursionError) as error:
        raise CheckpointError(f"the state_dict of {key} is not made of JSON values: {error}") from error


def _json(state: Json) -> Json:
    """Return the state as it is if it can be encoded; the file encodes its whole manifest, and once is enough."""
    encoded(state)
    return state


def keeps_place(loader: object) -> bool:
    """Whether a loader has ``state_dict`` and ``load_state_dict``."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def _attributes(callback: Callback) -> Attributes:
    """Return the attributes of a callback, and those of what it wraps, each with a copy."""
    return [(vars(owner), dict(vars(owner))) for owner in (callback, callback.identity())]


def _put_back(callback: Callback, state: Json, attributes: Attributes) -> None:
    """Put back a state, then the attributes that `load_state_dict` sets beside it, such as that a run goes on."""
    with suppress(Exception):  # it may refuse the state, as it was never loaded; the attributes come back below
        callback.load_state_dict(state)
    for current, before in attributes:
        current.clear()
        current.update(before)
