"""The data of an epoch: what a phase runs on, and what can be wrong with it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from loopcore.data.arrays import walked
from loopcore.errors import DataError, DataExhaustedError, EmptyDataError, LossError, NoDataError, OptimizerError
from loopcore.phases.base import AbstractValidationPhase, Phase, check_phase
from loopcore.phases.supervised import TrainingPhase, ValidationPhase
from loopcore.protocols import LearnerParts


def checked_iterable(key: str, value: Any) -> Any:
    """Return data that can be iterated as batches; raise an error that says what to pass for anything else."""
    if isinstance(value, (str, bytes)) or not (hasattr(value, "__iter__") or hasattr(value, "__getitem__")):
        raise DataError(f"the {key} data is a {type(value).__name__} and cannot be iterated: pass batches")
    if _is_dataset_of_samples(value):
        raise DataError(
            f"the {key} data is the Dataset {type(value).__name__}, which gives single samples, and a phase takes "
            "batches: write DataLoader(dataset, batch_size=32), or batch_size=None if its items are batches already"
        )
    return value


def _is_dataset_of_samples(value: Any) -> bool:
    """Whether it is one of PyTorch's, which only a DataLoader makes batches of."""
    # By names: the core imports no framework to ask it.
    kinds = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(value).__mro__}
    return ("torch", "Dataset") in kinds and not kinds & {("torch", "IterableDataset"), ("torch", "DataLoader")}


def no_loss(*_: Any) -> Any:
    """Stand for the loss of a learner that was given none."""
    raise LossError("this learner has no loss: pass Learner(model, loss_fn), such as lc.losses.cross_entropy")


class EpochBatches:
    """The data of one epoch; an error if it yields nothing.

    Args:
        data: what yields the batches.
        phase: whose epoch, for the error.
        begun: by the id of data, what goes on with an iteration that was begun to look at a batch.
    """

    def __init__(self, data: Any, phase: Phase, peeked: dict[int, tuple[Any, Iterator[Any]]] | None = None) -> None:
        self._data = data
        self._phase = phase
        self._peeked = {} if peeked is None else peeked

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        _, batches = self._peeked.pop(id(self._data), (None, None))
        if batches is None:
            batches = walked(self._data)
        # The first batch is taken here so that data without any is an error, and not an epoch without a loss.
        for first in batches:
            return chain((first,), batches)
        raise nothing_in(self._phase, self._data)


def epoch_hooks(data: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what data wants to have called before and after each of its epochs, as ``keras.utils.PyDataset`` does."""
    names = ("on_epoch_begin", "on_epoch_end")
    begin, end = (hook if callable(hook := getattr(data, name, None)) else _nothing for name in names)
    return begin, end


def _nothing() -> None:
    """Stand for a hook that data lacks."""


def nothing_in(phase: Phase, data: Any) -> EmptyDataError:
    """Make the error for data without a batch."""
    if is_one_shot(data):
        return DataExhaustedError(
            f"the data of phase {phase.name!r} is a {type(data).__name__} that is used up: it can be read only once. "
            "Pass a list, or an object whose __iter__ starts anew, such as lc.data.batches(...)"
        )
    return EmptyDataError(f"the data of phase {phase.name!r} ({type(data).__name__}) yielded no batch")


def is_one_shot(data: Any) -> bool:
    """Whether the data is its own iterator."""
    return hasattr(data, "__next__") and iter(data) is data


def length_of(data: Any) -> int | None:
    """Return the number of batches, where the data tells it."""
    try:
        return len(data)
    except TypeError:
        return None


def data_of(learner: LearnerParts, phase: Phase, data: Any = None) -> Any:
    """Return the data that a phase runs on; None for a phase without data.

    Raises:
        NoDataError: there is none.
        EmptyDataError: it has length 0.
    """
    check_phase(phase)
    if data is None:
        if phase.data_key is None:
            return None
        data = learner.data.get(phase.data_key)
        if data is None:
            names = ", ".join(map(repr, learner.data)) or "none"
            raise NoDataError(
                f"phase {phase.name!r} runs on data {phase.data_key!r}, which the learner does not have (it has: "
                f"{names}): pass Learner(data={{{phase.data_key!r}: ...}}) or run_epoch(phase, data)"
            )
    if length_of(data) == 0:
        raise nothing_in(phase, data)
    batches = checked_iterable(phase.name, data)
    if hasattr(batches, "follow_seed"):  # several learners may share it
        batches.follow_seed(learner.seed)
    return batches


def phases_of_fit(learner: LearnerParts, epochs: int) -> list[tuple[Phase, Any]]:
    """The phases that ``fit`` runs, with their data; all that can be wrong is found before the first step.

    Raises:
        NoDataError: a phase that is no validation phase has no data, or no phase is left.
        DataExhaustedError: a generator would be read more than once.
        OptimizerError: the supervised training phase has nothing to train.
    """
    phases: list[tuple[Phase, Any]] = []
    for phase in learner.phases:
        absent = phase.data_key is not None and learner.data.get(phase.data_key) is None
        # The default phases validate; a learner without validation data is no mistake.
        if absent and isinstance(phase, AbstractValidationPhase):
            continue
        data = data_of(learner, phase)
        if epochs > 1 and isinstance(data, (types.GeneratorType, map, filter, zip)):
            raise DataExhaustedError(
                f"the data of phase {phase.name!r} is a {type(data).__name__}, which can be read once, but "
                f"fit({epochs}) reads it {epochs} times: pass a list, or an object whose __iter__ starts anew"
            )
        # Only where the step is known to train all of it: one of the user's own may train nothing, or by other means.
        if isinstance(phase, TrainingPhase) and type(phase).step is TrainingPhase.step and not learner.params.names:
            raise OptimizerError(f"nothing is trained: {_why_nothing(learner)}")
        if type(phase).step in (TrainingPhase.step, ValidationPhase.step) and learner.loss_fn is no_loss:
            no_loss()
        phases.append((phase, data))
    if not phases:
        raise NoDataError("no phase of this fit has data: pass Learner(data=(train, valid))")
    return phases


def _why_nothing(learner: LearnerParts) -> str:
    if not learner.trained:
        return "pass Learner(..., optimizer=lc.Adam(1e-3))"
    frozen = ", ".join(learner.frozen[:3]) + (", ..." if learner.frozen[3:] else "")
    return (
        f"all that has an optimizer is frozen by the framework's own flag ({frozen}): let go of what is to be trained, "
        "or give it an optimizer under its own path"
    )


def iterable_batches(data: Any) -> Iterable[Any]:
    """Return data for predictions as batches: one array is one batch."""
    # An array could be iterated, and would be a batch for each row.
    return [data] if hasattr(data, "shape") else data
