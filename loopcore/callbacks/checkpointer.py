"""Checkpoints while training."""

from __future__ import annotations

import secrets
import warnings
from math import isnan
from pathlib import Path
from typing import Any

from loopcore.callback import Callback, on
from loopcore.callbacks.monitor import Mode, check_mode, monitored
from loopcore.checkpoint_file import manifest_of
from loopcore.errors import CallbackError, CheckpointError
from loopcore.events import EpochEnd, FitEnd
from loopcore.phases import AbstractTrainingPhase


class Checkpointer(Callback):
    """Save the learner when an epoch ends, and keep the best checkpoints.

    Files are called ``<run>-epoch-000012.safetensors``; only files of its own run are ever deleted, and only after a
    newer one is on the disk. `best` and `last` are found in the folder, so that a run that goes on knows the files of
    its beginning. Load one with ``learner.load(path)``.

    When a fit ends, what was trained since the last checkpoint is saved too; of an epoch that was stopped in the middle
    under ``<run>-epoch-000012-stopped.safetensors``. After an error or Ctrl-C nothing more is saved, since a step may
    be half done: the last checkpoint is the one to go on from.

    Reads: params, buffers, optimizer, hyper, shared.history, shared.metrics_epoch
    Handles: EpochEnd, FitEnd

    Args:
        folder: where to; made when it is needed.
        monitor: key of the history that says which are the best; None keeps the latest.
        mode: what is better, ``"min"`` or ``"max"``.
        keep_top_k: how many are kept, at least 1; the latest one always is.
        every: epochs between two checkpoints.

    Raises:
        CallbackError: an argument is out of its range.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keeper = lc.Checkpointer(folder, monitor="loss", keep_top_k=2)
        ...     result = lc.testing.toy_learner(callbacks=[keeper]).fit(4)
        ...     [path.name.partition("-")[2] for path in keeper.paths()], keeper.best.name == keeper.last.name
        (['epoch-000003.safetensors', 'epoch-000004.safetensors'], True)
    """

    reads = ("params", "buffers", "optimizer", "hyper", "shared.history", "shared.metrics_epoch")
    run_after = (Callback,)

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        *,
        mode: Mode = "min",
        keep_top_k: int = 3,
        every: int = 1,
    ) -> None:
        check_mode(mode)
        for name, value in (("keep_top_k", keep_top_k), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise CallbackError(f"{name}={value!r}: a whole number, at least 1")
        self.folder = Path(folder)
        self.monitor = monitor
        self.mode = mode
        self.keep_top_k = keep_top_k
        self.every = every
        self.run = secrets.token_hex(4)
        self._epochs = 0
        self._latest: float | None = None
        self._trained = False  # since the last checkpoint

    @on(EpochEnd)
    def look(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Save, if it is time."""
        self._trained |= isinstance(phase, AbstractTrainingPhase) and learner.epoch.attempted > 0
        value = None
        if self.monitor is not None:
            value = monitored(learner, phase, event, self.monitor)
            if value is None:
                return
        elif not learner.epoch.last or event.outcome != "completed":
            return
        self._epochs += 1
        self._latest = value
        if self._epochs % self.every == 0:
            self._save(learner, value)

    @on(FitEnd)
    def end(self, learner: Any, phase: Any, event: FitEnd) -> None:
        """Save what was trained since the last checkpoint, unless an error ended the fit."""
        if event.outcome != "failed" and self._trained:
            stopped = event.outcome == "cancelled"
            self._save(learner, None if stopped else self._latest, stopped=stopped)

    def _save(self, learner: Any, value: float | None, *, stopped: bool = False) -> None:
        epoch = self._epochs + stopped
        path = self.folder / f"{self.run}-epoch-{epoch:06d}{'-stopped' * stopped}.safetensors"
        learner.save(path, run=self.run, epoch=epoch, monitor=self.monitor, value=value)
        self._trained = False
        for other in self._worst():
            try:
                other.unlink(missing_ok=True)
            except OSError as error:
                warnings.warn(f"an old checkpoint cannot be deleted: {error}", stacklevel=2)

    def paths(self) -> list[Path]:
        """The checkpoints of this run, the oldest first."""
        return sorted(self.folder.glob(f"{self.run}-epoch-*.safetensors"))

    @property
    def last(self) -> Path:
        """The latest checkpoint.

        Raises:
            CheckpointError: there is none yet.
        """
        paths = self.paths()
        if not paths:
            raise CheckpointError(f"run {self.run} has no checkpoint in {self.folder} yet")
        return paths[-1]

    @property
    def best(self) -> Path:
        """The checkpoint with the best value; without a monitor the latest.

        Raises:
            CheckpointError: there is none yet.
        """
        return self._ranked(self.paths() or [self.last])[0]

    def _ranked(self, paths: list[Path]) -> list[Path]:
        """The best first; of equal ones the newer, and what has no value, or none that is a number, last."""

        def rank(place: int) -> tuple[bool, float, int]:
            value = self._value(paths[place])
            if value is None or isnan(value):
                return True, 0.0, -place
            return False, value if self.mode == "min" else -value, -place

        return [paths[place] for place in sorted(range(len(paths)), key=rank)]

    def _value(self, path: Path) -> float | None:
        if self.monitor is None:
            return 0.0
        try:
            return manifest_of(path).get("value")
        except CheckpointError:  # somebody else's damage: it is no best one
            return None

    def _worst(self) -> list[Path]:
        paths = self.paths()
        return [path for path in self._ranked(paths)[self.keep_top_k :] if path != paths[-1]]

    def state_dict(self) -> dict[str, Any]:
        """The name of the run, and its epochs."""
        return {"run": self.run, "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same run."""
        self.run, self._epochs, self._trained = str(state["run"]), int(state["epochs"]), False
