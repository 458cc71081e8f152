"""Trying things out: a look at the next batch, and steps that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

from loopcore.access.members import make_member
from loopcore.callback import Callback, on
from loopcore.checkpoint.parts import HyperPart, OptimizersPart
from loopcore.data.arrays import walked
from loopcore.errors import CallbackError
from loopcore.events import StepBegin
from loopcore.execution.plan import make_plan
from loopcore.execution.runner import Runner
from loopcore.loop.batches import data_of, nothing_in
from loopcore.phases.base import AbstractTrainingPhase, check_phase
from loopcore.protocols import LearnerParts
from loopcore.state import settle

if TYPE_CHECKING:
    from loopcore.phases.base import Phase
    from loopcore.state import State


def peek(learner: LearnerParts, phase: Phase) -> Any:
    """Look at the next batch of a phase; see `Learner.peek`."""
    data = data_of(learner, phase)
    if data is None:
        return None
    # The iterator that was begun is kept, and the next epoch goes on with it: a loader that is opened twice shuffles
    # twice, and one that can be read once would lose the batch.
    peeked = learner.runs.peeked
    state, batches = peeked.get(id(data)) or (_state_of(data), walked(data))
    for first in batches:
        peeked[id(data)] = state, chain((first,), batches)
        return first
    raise nothing_in(phase, data)


def _state_of(data: Any) -> Any:
    """Return where a loader is, if it says so: a checkpoint before the next epoch keeps what it was before the look."""
    return deepcopy(data.state_dict()) if hasattr(data, "state_dict") else None


def build(learner: LearnerParts, models: Mapping[str, Any]) -> None:
    """Give weights to a model that makes them from the first batch; several models have to be built before."""
    build_model = getattr(learner.backend, "build", None)
    if build_model is not None and len(models) == 1:
        (model,) = models.values()
        # Asked for by the adapter, if the model has no weights yet: a look at the data costs time, and may be
        # impossible.
        build_model(model, lambda: _first_input(learner))


def _first_input(learner: LearnerParts) -> Any:
    """Return what the model of a learner is called with: ``xs`` of the next batch, or its first part."""
    phase = next((candidate for candidate in learner.phases if candidate.data_key in learner.data), None)
    if phase is None:
        return None
    parts = dict(phase.unpack(peek(learner, phase)))
    return parts["xs"] if "xs" in parts else next(iter(parts.values()), None)


class _NoUpdates(Callback):
    """A callback that withholds the effect of every update."""

    writes = ("step.apply",)

    @on(StepBegin)
    def begin(self, learner: Any, phase: Any) -> None:
        learner.step.apply = False


def rehearse(learner: LearnerParts, phase: Phase, batch: Any) -> State:
    """Run one step that changes nothing; see `Learner.rehearse`."""
    with aside(learner, phase, (_NoUpdates(),), compiles=False):
        return learner.run_step(phase, batch)


@contextmanager
def aside(
    learner: LearnerParts, phase: Phase, callbacks: Sequence[Callback], *, compiles: bool, trains: bool = False
) -> Iterator[None]:
    """Steps of a phase that only these callbacks hear, and that leave the learner as it was.

    Put back are weights, what is in ``learner.shared``, counts, and the attributes of the phase.

    Args:
        learner: runs the steps.
        phase: whose steps.
        callbacks: all that listen.
        compiles: whether steps are compiled as usual.
        trains: whether updates take effect, so that optimizers and hyperparameters are put back too.
    """
    check_phase(phase)
    if learner.runs.runner is not None:
        raise CallbackError("a step is running: try things out between two steps, for instance when a fit begins")
    mark = learner.runs.mark()
    try:
        learner.runs.open()  # what an adapter hands to the user's own objects when a run ends are the values of before
        with _put_back(learner, phase, trains), _heard_by(learner, phase, callbacks, compiles):
            yield
    finally:
        learner.runs.rewind(mark)


@contextmanager
def _put_back(learner: LearnerParts, phase: Phase, trains: bool) -> Iterator[None]:
    runs, backend, shared = learner.runs, learner.backend, learner.shared
    paths = [path for kind in ("params", "buffers") for part in backend.paths(kind).values() for path in part]
    # All weights, not those of this phase: what the user's step touches nobody knows before.
    weights, step, record = backend.snapshot(paths), runs.step, runs.record
    settle(shared)
    snapshots = [(values, dict(values)) for values in (vars(shared), runs.attempts, runs.missed, vars(phase))]
    undo = ExitStack()
    for part in (OptimizersPart(learner), HyperPart(learner)) if trains else ():
        part.keep(undo)
    try:
        yield
    finally:
        settle(shared)
        for values, old in snapshots:
            values.clear()
            values.update(old)
        runs.step, runs.record = step, record
        backend.set(weights)
        undo.close()


@contextmanager
def _heard_by(learner: LearnerParts, phase: Phase, callbacks: Sequence[Callback], compiles: bool) -> Iterator[None]:
    runners = learner.runs.runners
    compiles = compiles and learner.backend.compiles and phase.compile and learner.compile is not False
    plan = make_plan(callbacks, phase, ("step",), compiles=compiles, reason="tried out")
    members = [make_member(learner, callback) for callback in callbacks]
    # A runner of its own, with programs of its own: the plan depends on who listens, and these callbacks are gone
    # afterwards.
    before = runners.get(id(phase))
    runners[id(phase)] = Runner(learner, phase, plan, members, isinstance(phase, AbstractTrainingPhase))
    try:
        yield
    finally:
        del runners[id(phase)]
        if before is not None:
            runners[id(phase)] = before
