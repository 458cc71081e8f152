"""Checkpoints while training."""

from __future__ import annotations

import re
import warnings
from os import urandom
from pathlib import Path

from loopcore._utils.validation import is_whole
from loopcore.callback import Callback, on
from loopcore.callbacks.monitor import Mode, check_mode, monitored, ranked, worst
from loopcore.checkpoint.file import manifest_of
from loopcore.errors import CallbackError, CheckpointError, NotFiniteError
from loopcore.events import EpochBegin, EpochEnd, FitEnd, StepEnd
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView, StateDict


class Checkpointer(Callback):
    """Save the learner when a round ends, and keep the best checkpoints.

    Files are called ``<run>-epoch-000012.safetensors`` by their round; only files of its own run are ever deleted, and
    only after a newer one is on the disk. `best` and `last` are found in the folder, so that a run that goes on knows
    the files of its beginning. Load one with ``learner.load(path)``. A run that goes on from an older file than its
    last is another run from there on, and leaves the files alone.

    A fit that is completed, or stopped by a `CancelFittingException`, also saves at its end what was trained since the
    last checkpoint; in the middle of the 13th epoch as ``<run>-epoch-000013-begun.safetensors``, which has no value to
    be the best by. A cancel is no rollback, and what is saved is what the learner goes on with. A fit that failed saves
    nothing: half of a step may be in its weights. That goes for Ctrl-C too.

    What is monitored may be measured anywhere in the round: the checkpoint has all of it. A value that is measured
    within an epoch, as by a validation every 100 steps, is saved with the weights it was measured with, as
    ``<run>-epoch-000013-step-000100.safetensors``. Predictions, and measurements by hand outside of rounds, save
    nothing.

    Weights that are NaN or infinite are not saved, which a warning says, and never take the place of good ones.

    Of equal values the newer one is better, infinite ones count, and NaN is worse than any number.

    Reads: params, buffers, optimizer, hyper, shared.history, shared.metrics_epoch
    Handles: EpochBegin, StepEnd, EpochEnd, FitEnd

    Args:
        folder: where to; made when it is needed.
        monitor: key of the history that says which are the best; None keeps the latest.
        mode: what is better, ``"min"`` or ``"max"``.
        keep_top_k: how many are kept, at least 1; the latest one always is.
        every: rounds between two checkpoints; of those with a value, if one is monitored.

    Raises:
        CallbackError: an argument is out of its range.
        CheckpointError: within a fit, the system refused to write a file or to delete an old one.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keeper = lc.Checkpointer(folder, monitor="loss", keep_top_k=2)
        ...     result = lc.testing.toy_learner(callbacks=[keeper]).fit(4)
        ...     [path.name.partition("-")[2] for path in keeper.paths()], keeper.best.name == keeper.last.name
        (['epoch-000003.safetensors', 'epoch-000004.safetensors'], True)
    """

    reads = ("params", "buffers", "optimizer", "hyper", "shared.history", "shared.metrics_epoch")
    # What others do when an epoch or the fit ends belongs into the file.
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
            if not is_whole(value, least=1):
                raise CallbackError(f"{name}={value!r}: a whole number, at least 1")
        self.folder = Path(folder)
        self.monitor = monitor
        self.mode: Mode = mode
        self.keep_top_k = keep_top_k
        self.every = every
        self.run = urandom(4).hex()
        self._present_round = 0  # the present round
        self._round = 0  # the last one in which something was trained or measured
        self._count = 0  # rounds that could be saved
        self._steps = 0  # training steps of the present round
        self._value: float | None = None  # the monitored value of the present round
        self._fresh = False  # whether something was trained since the last checkpoint
        self._midway = False  # whether a training epoch of the round is not over

    @on(StepEnd, AbstractTrainingPhase)
    def note(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Note that something was trained; a cancelled step may have changed weights too."""
        if event.outcome != "skipped":
            if self._present_round != self._round:
                self._enter(self._present_round)
            self._fresh = self._midway = True
            self._steps += 1

    @on(EpochBegin)
    def begin(self, learner: LearnerView, phase: Phase) -> None:
        """Note the round that the epoch belongs to; one outside of rounds leaves the last."""
        number = learner.epoch.round
        self._present_round = self._present_round if number is None else number

    def _enter(self, number: int) -> None:
        self._round, self._steps, self._value, self._midway = number, 0, None, False

    @on(EpochEnd)
    def look(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Note the monitored value, and save when a round is over or a value was measured within an epoch."""
        epoch = learner.epoch
        if epoch.round is None:
            return
        value = None if self.monitor is None else monitored(learner, phase, event, self.monitor)
        if epoch.round != self._round and (epoch.over or value is not None):
            self._enter(epoch.round)
        if epoch.nested:
            if value is not None and self._midway:
                self._save_if_due(learner, value, f"-step-{self._steps:06d}")
                return
        elif isinstance(phase, AbstractTrainingPhase) and epoch.over:
            self._midway = False
        self._value = self._value if value is None else value
        over = epoch.last and not epoch.nested and epoch.over
        if over and (self.monitor is None or self._value is not None):
            self._save_if_due(learner, self._value)

    def _save_if_due(self, learner: LearnerView, value: float | None, part: str = "") -> None:
        self._count += 1
        if self._count % self.every == 0:
            self._save(learner, value, part)

    @on(FitEnd)
    def end(self, learner: LearnerView, phase: None, event: FitEnd) -> None:
        """Save what was trained since the last checkpoint, unless the fit failed."""
        if self._fresh and event.outcome != "failed":
            self._save(learner, None if self._midway else self._value)

    def _save(self, learner: LearnerView, value: float | None, part: str = "") -> None:
        path = self.folder / self._name(part)
        about = {"run": self.run, "epoch": self._round, "monitor": self.monitor, "value": value}
        try:
            learner.save(path, only_finite=True, **about)
        except NotFiniteError as error:
            warnings.warn(f"{error}; the checkpoints of before stay", stacklevel=2)
            return
        self._fresh = False
        # Only now, with the new file on the disk, may older ones go.
        paths = self.paths()
        for place in worst(self._values(paths), self.mode, self.keep_top_k):
            try:
                paths[place].unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(f"{paths[place]} is one too many, and could not be deleted: {error}") from error

    def _name(self, part: str = "") -> str:
        part = part or ("-begun" if self._midway else "")
        return f"{self.run}-epoch-{self._round:06d}{part}.safetensors"

    def paths(self) -> list[Path]:
        """List the checkpoints of this run, the oldest first.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        try:
            entries = list(self.folder.iterdir()) if self.folder.exists() else []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read as a folder of checkpoints: {error}") from error
        orders = {path: order for path in entries if (order := _order(path.name, self.run))}
        return sorted(orders, key=lambda path: orders[path])

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
        paths = self.paths() or [self.last]
        return paths[ranked(self._values(paths), self.mode)[0]]

    def _values(self, paths: list[Path]) -> list[float | None]:
        """The monitored value of each checkpoint; None without a monitor, so that newer ones rank higher."""
        return [None if self.monitor is None else manifest_of(path).get("value") for path in paths]

    def state_dict(self) -> StateDict:
        """Return the name of the run, and the counts of its rounds and steps."""
        state = {"run": self.run, "epochs": self._round, "midway": self._midway}
        return {**state, "steps": self._steps, "count": self._count}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on with the same run, or with another where the run went on already.

        Raises:
            CheckpointError: the name of the run is none of ours.
        """
        run = str(state["run"])
        if not re.fullmatch("[0-9a-f]{8}", run):  # it becomes part of paths, and says what may be deleted
            raise CheckpointError(f"{run!r} is no name of a run, which has eight hexadecimal digits")
        old = "count" not in state  # of an older version, whose count of epochs did not have one that was begun
        self.run, self._midway = run, bool(state["midway"])
        self._round = int(state["epochs"]) + (old and self._midway)
        self._present_round = self._round
        self._count, self._steps = int(state["epochs"] if old else state["count"]), int(state.get("steps", 0))
        self._fresh, self._value = False, None
        order = _order(self._name(), run)
        # Files that come after this one are of the run as it went on then, and may be somebody's best.
        if any((_order(path.name, run) or ()) > (order or ()) for path in self.paths()):
            self.run = urandom(4).hex()


def _order(name: str, run: str) -> tuple[int, int, int] | None:
    """Place a file among those of a run: by round, steps within it, then one of its middle; None for others."""
    match = re.fullmatch(rf"{run}-epoch-(\d+)(-begun)?(?:-step-(\d+))?\.safetensors", name)
    if match is None:
        return None
    # Of one round: what was measured in its middle, then what a stop left, then the whole round.
    return int(match[1]), 0 if match[3] else 1 if match[2] else 2, int(match[3] or 0)
