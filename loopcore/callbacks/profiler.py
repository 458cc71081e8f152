"""Profiles of some steps."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from loopcore._utils.validation import is_whole
from loopcore.callback import Callback, on
from loopcore.errors import CallbackError
from loopcore.events import FitBegin, FitEnd, StepBegin, StepEnd
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView


class Profiler(Callback):
    """Profile some training steps of each fit with the framework's own profiler, see `Learner.profile`.

    Handles: FitBegin, StepBegin, StepEnd, FitEnd

    Args:
        folder: where the files go; those of the n-th fit into ``fit-n``, numbered on if there are some already.
        skip: training steps before it begins, so that compiling is no part of it; at least 0.
        steps: how many are profiled, at least 1.

    Raises:
        CallbackError: a number is out of its range.
        BackendError: the backend has no profiler; when the profile begins.

    Example:
        >>> import loopcore as lc, tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = lc.testing.toy_learner(callbacks=[lc.Profiler(folder, skip=1, steps=2)]).fit(1)
        ...     [path.name for path in pathlib.Path(folder, "fit-1").iterdir()]
        ['profile.pstats']
    """

    def __init__(self, folder: str | Path, *, skip: int = 5, steps: int = 10) -> None:
        for name, value, least in (("skip", skip, 0), ("steps", steps, 1)):
            if not is_whole(value, least=least):
                raise CallbackError(f"{name}={value!r}: a whole number of steps, at least {least}")
        self.folder = Path(folder)
        self.skip = skip
        self.steps = steps
        self._begun_steps = 0
        self._open: ExitStack | None = None

    @on(FitBegin)
    def begin(self, learner: LearnerView, phase: None) -> None:
        """Count the steps of each fit from 0."""
        self._begun_steps = 0

    @on(StepBegin, AbstractTrainingPhase)
    def begin_step(self, learner: LearnerView, phase: Phase) -> None:
        """Start the profile after the steps to skip."""
        # An ExitStack, since the block begins in one handler and ends in another.
        if self._begun_steps == self.skip and self._open is None:
            self._open = ExitStack()
            self._open.enter_context(learner.profile(self._new_folder()))
        self._begun_steps += 1

    @on(StepEnd, AbstractTrainingPhase)
    def end_step(self, learner: LearnerView, phase: Phase) -> None:
        """End the profile after its last step."""
        if self._begun_steps >= self.skip + self.steps:
            self._close()

    @on(FitEnd)
    def end(self, learner: LearnerView, phase: None) -> None:
        """End a profile that is still open."""
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            opened.close()

    def _new_folder(self) -> Path:
        number = 1
        while (folder := self.folder / f"fit-{number}").exists():
            number += 1
        return folder
