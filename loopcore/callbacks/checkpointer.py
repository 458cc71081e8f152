"""Checkpoints while training."""

from __future__ import annotations

import secrets
from math import isfinite
from pathlib import Path
from typing import Any

from loopcore.callback import Callback, on
from loopcore.callbacks.monitor import Mode, check_mode, monitored
from loopcore.checkpoint import manifest_of
from loopcore.errors import CallbackError, CheckpointError
from loopcore.events import EpochEnd, FitEnd


class Checkpointer(Callback):
    """Save the learner when an epoch ends, and keep the best checkpoints.

    Files are called ``<run>-epoch-000012.safetensors``; only files of its own run are ever deleted, and only after a
    newer one is on the disk. `best` and `last` are found in the folder, so that a run that goes on knows the files of
    its beginning. Load one with ``learner.load(path)``.

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
        self._saved = -1

    @on(EpochEnd)
    def look(self, learner: Any, phase: Any, event: EpochEnd) -> None:
        """Save, if it is time."""
        value = None
        if self.monitor is not None:
            value = monitored(learner, phase, event, self.monitor)
            if value is None:
                return
        elif not learner.epoch.last or event.outcome != "completed":
            return
        self._epochs += 1
        if self._epochs % self.every == 0:
            self._save(learner, value)

    @on(FitEnd)
    def end(self, learner: Any, phase: Any) -> None:
        """Save what was trained since the last checkpoint, however the fit ended."""
        if self._saved != self._epochs:
            self._save(learner, None)

    def _save(self, learner: Any, value: float | None) -> None:
        path = self.folder / f"{self.run}-epoch-{self._epochs:06d}.safetensors"
        self._saved = self._epochs
        learner.save(path, run=self.run, epoch=self._epochs, monitor=self.monitor, value=value)
        for other in self._worst():
            other.unlink(missing_ok=True)

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
        """The best first; of equal ones the newer, and what has no value last."""

        def rank(place: int) -> tuple[float, int]:
            value = manifest_of(paths[place]).get("value") if self.monitor is not None else None
            if value is None or not isfinite(value):
                return float("inf") if self.monitor is not None else 0.0, -place
            return value if self.mode == "min" else -value, -place

        return [paths[place] for place in sorted(range(len(paths)), key=rank)]

    def _worst(self) -> list[Path]:
        paths = self.paths()
        return [path for path in self._ranked(paths)[self.keep_top_k :] if path != paths[-1]]

    def state_dict(self) -> dict[str, Any]:
        """The name of the run, and its epochs."""
        return {"run": self.run, "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same run."""
        self.run, self._epochs = str(state["run"]), int(state["epochs"])
        self._saved = self._epochs
