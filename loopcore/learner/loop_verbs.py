"""What runs phases, and what is running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from loopcore.backend.protocol import Extras
from loopcore.errors import BackendError, UnpackError
from loopcore.history import Epochs
from loopcore.learner.explain import explain
from loopcore.loop import dry_run
from loopcore.loop.batches import EpochBatches, data_of, epoch_hooks, iterable_batches, length_of
from loopcore.loop.fit import FitResult, fit
from loopcore.loop.predict import joined, names_taken
from loopcore.loop.scopes import EpochInfo, execute_step, run_epoch
from loopcore.loop.session import Session
from loopcore.phases.base import Phase, check_phase
from loopcore.phases.supervised import PredictionPhase
from loopcore.protocols import LearnerParts
from loopcore.state import State

_NONE: frozenset[str] = frozenset()


class LoopVerbs:
    """A base of `Learner`: fits, epochs and steps, those that are tried out, and the state of what is running."""

    runs: Session
    shared: Any

    @property
    def step(self) -> Any:
        """State of the running step, then of the last one."""
        return self.runs.step

    @property
    def epoch(self) -> EpochInfo | None:
        """The running epoch, then the last one; None before the first."""
        return self.runs.epoch

    @property
    def attempt(self) -> Any:
        """Number of the running step among those begun in its phase, from 0; an input of a compiled step."""
        return self.runs.attempt

    @property
    def step_number(self) -> int:
        """Number of the running step among the completed ones of its phase, from 1: its place on the axis of steps."""
        return self.runs.step_number

    @property
    def history(self) -> Epochs:
        """Epoch values of the metrics: ``learner.history["val_loss"]`` is a list of floats, one an epoch."""
        return Epochs(self.shared)

    def fit(self: LearnerParts, epochs: int) -> FitResult:
        """Run rounds of one epoch of every phase.

        Args:
            epochs: how many rounds, at least 0. A validation phase without data is skipped.

        Returns:
            How it ended. A clean stop does not raise.

        Raises:
            DataError, OptimizerError, LossError: something is missing; found before the first step.
            ReentrantFitError: this learner is in ``fit``.

        Example:
            >>> import loopcore as lc
            >>> lc.testing.toy_learner().fit(2).status
            'completed'
        """
        return fit(self, epochs)

    def run_epoch(
        self: LearnerParts, phase: Phase, data: Iterable[Any] | None = None, *, last: bool = True
    ) -> EpochInfo:
        """Run one epoch of a phase.

        Outside of ``fit``, one of a training phase begins a round of a hand-written loop, and those of other phases
        that follow belong to it, each once. Any other is a measurement by hand: no round, by which nothing is saved,
        stopped or counted.

        Args:
            phase: what a step is.
            data: batches; default ``learner.data[phase.data_key]``. Where they have methods ``on_epoch_begin`` and
                ``on_epoch_end``, as ``keras.utils.PyDataset``, these are called around it.
            last: whether it ends a round, so that printers show the round.

        Returns:
            The epoch, with its outcome, its counts and, in ``metrics``, what was measured in it.
        """
        feed = data_of(self, phase, data)
        runs = self.runs
        runs.last_epoch = None
        mark = runs.mark()
        begin, end = epoch_hooks(feed)
        begin()
        try:
            runs.length, runs.last = (None if feed is None else length_of(feed)), last
            phase.epoch(self, None if feed is None else EpochBatches(feed, phase, runs.peeked))
        finally:
            runs.rewind(mark)  # in case of an interrupt in the loop itself
            runs.length, runs.last = None, True
        info: EpochInfo | None = runs.last_epoch
        if info is None:
            raise TypeError(
                f"{type(phase).__name__}.epoch opened no epoch: write with lc.run_epoch(learner, self) around its "
                "steps. To leave one out, raise lc.CancelEpochException in a callback at EpochBegin"
            )
        end()
        return info

    def run_step(self: LearnerParts, phase: Phase, batch: Any, *, reads: Sequence[str] = ()) -> State:
        """Run one step of a phase.

        Args:
            phase: what a step is.
            batch: what `Phase.unpack` of the phase takes.
            reads: step values to keep besides the declared ones, such as ``("step.y_pred",)``; ``("step",)`` for all.

        Returns:
            The state of the step.
        """
        if not isinstance(phase, Phase):
            check_phase(phase)
        initial = phase.unpack(batch)
        if type(initial) is not dict and not isinstance(initial, Mapping):
            raise UnpackError(
                f"{type(phase).__name__}.unpack returned a {type(initial).__name__}: return a dict that names the "
                'parts, {"xs": xs, "ys": ys}'
            )
        return execute_step(phase.step, self, phase, initial, self.runs.names_of(reads) if reads else _NONE)

    def predict(self: LearnerParts, data: Any) -> Any:
        """Run the model forward on data, in evaluation mode.

        Args:
            data: batches as `PredictionPhase` takes them, or one array as a single batch. Of a mapping without
                ``xs`` the model gets the parts that it takes by name, or the mapping if it takes none.

        Returns:
            What the model returns, arrays of all batches concatenated along their first axis as NumPy arrays, in the
            structure that it returned: a dict, a tuple, on PyTorch a dataclass too. Scalars are stacked, None stays.

        Raises:
            DataError: there is no data, or outputs differ in shape.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> lc.testing.toy_learner().predict([np.ones((3, 1)), np.ones((2, 1))]).shape
            (5, 1)
        """
        phase = PredictionPhase()
        outputs: list[Any] = []
        feed = data_of(self, phase, iterable_batches(data))
        begin, end = epoch_hooks(feed)
        begin()
        with run_epoch(self, phase, length=length_of(feed)):
            for batch in EpochBatches(feed, phase):
                if isinstance(batch, Mapping) and "xs" not in batch and phase.names is None:
                    phase.names = names_taken(self.model.native, batch)
                outputs.append(self.to_host(self.run_step(phase, batch).y_pred))
        end()
        return self.backend.tree_map(lambda *parts: joined(parts), *outputs)

    def peek(self: LearnerParts, phase: Phase) -> Any:
        """Look at the next batch of a phase and put it back: the next epoch of that data begins with it.

        Args:
            phase: whose data.

        Returns:
            The batch as the data yields it; None for a phase without data.

        Raises:
            DataError: there is no data, or no batch in it.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner(data=(iter([(1.0, 1.0), (2.0, 2.0)]), None))
            >>> learner.peek(lc.TrainingPhase()), learner.peek(lc.TrainingPhase())
            ((1.0, 1.0), (1.0, 1.0))
        """
        return dry_run.peek(self, phase)

    def rehearse(self: LearnerParts, phase: Phase, batch: Any) -> State:
        """Run one step of a phase that changes nothing: no callback hears it, and no update takes effect.

        It runs eagerly, and shows the real error of a body that does not work. Weights, buffers, counts, ``shared``
        and the attributes of the phase are put back; what else a body changes is not.

        Args:
            phase: what a step is.
            batch: what `Phase.unpack` of the phase takes.

        Returns:
            The state of the step, with all its values.

        Raises:
            CallbackError: a step is running.

        Example:
            >>> import loopcore as lc
            >>> learner, phase = lc.testing.toy_learner(), lc.TrainingPhase()
            >>> float(learner.rehearse(phase, learner.peek(phase)).loss), learner.params.value
            (1.0, {'w': array([0.])})
        """
        return dry_run.rehearse(self, phase, batch)

    def profile(self: LearnerParts, folder: str | Path) -> AbstractContextManager[None]:
        """Profile what runs in a ``with`` block with the framework's own profiler.

        Args:
            folder: where its files go; made when it is needed. NumPy writes one for ``pstats``; the others what
                TensorBoard's profiler, Perfetto or ``chrome://tracing`` shows.

        Raises:
            BackendError: the backend has none.

        Example:
            >>> import loopcore as lc, tempfile, pathlib
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with lc.testing.toy_learner().profile(folder):
            ...         pass
            ...     [path.suffix for path in pathlib.Path(folder).iterdir()]
            ['.pstats']
        """
        if not hasattr(self.backend, "profile"):
            raise BackendError(f"the {self.backend.name} backend has no profiler")
        Path(folder).mkdir(parents=True, exist_ok=True)
        return cast(Extras, self.backend).profile(Path(folder))

    @property
    def accelerator(self: LearnerParts) -> Any:
        """The first accelerator that the framework sees, such as a GPU, for `to_device`; None if it sees none."""
        return cast(Extras, self.backend).accelerator() if hasattr(self.backend, "accelerator") else None

    def explain(self: LearnerParts) -> str:
        """Print the order of the callbacks with the reason of each edge, and the plan of each phase.

        Returns:
            The printed text.
        """
        text = explain(self)
        print(text)
        return text
