"""Reading the arguments of a Learner: models, optimizers, data and phases in one form each."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from loopcore.arguments import is_whole
from loopcore.callback import Callback
from loopcore.data.arrays import walked
from loopcore.errors import (
    CallbackError,
    DataError,
    DataExhaustedError,
    EmptyDataError,
    LossError,
    NoDataError,
    OptimizerError,
)
from loopcore.ordering import ROOTS
from loopcore.phases import AbstractValidationPhase, Phase, TrainingPhase, ValidationPhase

if TYPE_CHECKING:
    from loopcore.learner import Learner


def named_models(model: Any) -> dict[str, Any]:
    """One model under the name ``""``, or the user's names."""
    if not isinstance(model, dict):
        return {"": model}
    for name in model:
        if not (isinstance(name, str) and name.isidentifier()):
            raise TypeError(f"models are named by identifiers, so that learner.model.<name> works; got {name!r}")
    if not model:
        raise TypeError("Learner({}) has no model")
    return model


def named_optimizers(optimizer: Any) -> dict[str, Any]:
    """Optimizers by path prefix; one alone covers everything."""
    if optimizer is None:
        return {}
    if isinstance(optimizer, type):
        raise OptimizerError(f"optimizer={optimizer.__name__} is a class: write {optimizer.__name__}(...)")
    if isinstance(optimizer, Mapping):
        return dict(optimizer)
    return {"": optimizer}


def named_data(data: Any) -> dict[str, Any]:
    """Data by key, without the absent ones."""
    if data is None:
        return {}
    if isinstance(data, Mapping):
        named = dict(data)
    elif isinstance(data, tuple):
        if len(data) > 2:
            raise DataError(f"data is a pair (train, valid), but {len(data)} were given: use a dict for more")
        named = dict(zip(("training", "validation"), data, strict=False))
    else:
        raise DataError(
            f"data={type(data).__name__} is ambiguous: write data=(train, valid), data=(train, None) or "
            'data={"training": train}'
        )
    return {key: _iterable(key, value) for key, value in named.items() if value is not None}


def _iterable(key: str, value: Any) -> Any:
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
    kinds = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(value).__mro__}
    return ("torch", "Dataset") in kinds and not kinds & {("torch", "IterableDataset"), ("torch", "DataLoader")}


def checked_phases(phases: Sequence[Phase] | None) -> tuple[Phase, ...]:
    """The phases of an epoch of ``fit``."""
    if phases is None:
        return (TrainingPhase(), ValidationPhase())
    found = (phases,) if isinstance(phases, Phase) else tuple(phases)
    for phase in found:
        check_phase(phase)
        checked_reads(type(phase).__name__, phase.reads)
    names = [phase.name for phase in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"two phases are named {twice[0]!r}, and would share counters and history: override name")
    return found


def no_loss(*_: Any) -> Any:
    """Stand for the loss of a learner that was given none."""
    raise LossError("this learner has no loss: pass Learner(model, loss_fn), such as lc.losses.cross_entropy")


def check_options(callbacks: Any, loss_fn: Any, hyper: Any, seed: Any) -> None:
    """Refuse arguments of a Learner that would be misunderstood, or fail at the first step only."""
    if isinstance(callbacks, Callback):
        raise CallbackError(f"callbacks is a list: write callbacks=[{type(callbacks).__name__}(...)]")
    if isinstance(loss_fn, type):
        raise LossError(f"loss_fn={loss_fn.__name__} is a class: write {loss_fn.__name__}()")
    if loss_fn is not None and not callable(loss_fn):
        raise LossError(f"loss_fn={loss_fn!r} cannot be called: pass loss_fn(y_pred, ys), such as lc.losses.mse")
    if not (hyper is None or isinstance(hyper, Mapping)):
        raise TypeError(f'hyper={hyper!r} is no mapping: write names and numbers, such as hyper={{"kl_weight": 0.5}}')
    if not (seed is None or is_whole(seed, least=0)):
        raise ValueError(f"seed is a whole number, at least 0, or None to draw one, not {seed!r}")


def check_phase(phase: Any) -> None:
    """Refuse what is no phase, such as its class."""
    if not isinstance(phase, Phase):
        write = f": write {phase.__name__}()" if isinstance(phase, type) else ""
        raise TypeError(f"a phase is an instance of a subclass of Phase, not {phase!r}{write}")
    if phase.name == "val":
        raise ValueError(
            f"{type(phase).__name__} has the name 'val': its metrics would have the names of validation's, val_loss, "
            "and nobody could tell them apart: give it another name"
        )


def checked_reads(owner: str, reads: Any) -> tuple[str, ...]:
    """Step paths that a phase or the caller wants kept."""
    wrong = [reads] if isinstance(reads, str) else [r for r in reads if str(r).partition(".")[0] not in ROOTS]
    if wrong:
        name = wrong[0] if isinstance(wrong[0], str) else "y_pred"
        path = name if name.startswith("step.") else f"step.{name}"
        raise TypeError(f'{owner} has reads={reads!r}: write a tuple of dotted paths, such as reads=("{path}",)')
    return tuple(reads)


class Batches:
    """The data of one epoch; an error if it yields nothing.

    Args:
        data: what yields the batches.
        phase: whose epoch, for the error.
        begun: by the id of data, what goes on with an iteration that was begun to look at a batch.
    """

    def __init__(self, data: Any, phase: Phase, begun: dict[int, tuple[Any, Iterator[Any]]] | None = None) -> None:
        self._data = data
        self._phase = phase
        self._begun = {} if begun is None else begun

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        _, batches = self._begun.pop(id(self._data), (None, None))
        if batches is None:
            batches = walked(self._data)
        for first in batches:
            return chain((first,), batches)
        raise nothing_in(self._phase, self._data)


def epoch_hooks(data: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What data wants to have called before and after each of its epochs, as ``keras.utils.PyDataset`` does."""
    names = ("on_epoch_begin", "on_epoch_end")
    begin, end = (hook if callable(hook := getattr(data, name, None)) else _nothing for name in names)
    return begin, end


def _nothing() -> None:
    """Stand for a hook that data lacks."""


def nothing_in(phase: Phase, data: Any) -> EmptyDataError:
    """The error for data without a batch."""
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
    """Number of batches, where the data tells."""
    try:
        return len(data)
    except TypeError:
        return None


def data_of(learner: Learner, phase: Phase, data: Any = None) -> Any:
    """The data a phase runs on; None for a phase without data.

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
            there = ", ".join(map(repr, learner.data)) or "none"
            raise NoDataError(
                f"phase {phase.name!r} runs on data {phase.data_key!r}, which the learner does not have (it has: "
                f"{there}): pass Learner(data={{{phase.data_key!r}: ...}}) or run_epoch(phase, data)"
            )
    if length_of(data) == 0:
        raise nothing_in(phase, data)
    found = _iterable(phase.name, data)
    if hasattr(found, "follow_seed"):  # several learners may share it
        found.follow_seed(learner.seed)
    return found


def phases_of_fit(learner: Learner, epochs: int) -> list[tuple[Phase, Any]]:
    """The phases that ``fit`` runs, with their data; all that can be wrong is found before the first step.

    Raises:
        NoDataError: a phase that is no validation phase has no data, or no phase is left.
        DataExhaustedError: a generator would be read more than once.
        OptimizerError: the supervised training phase has nothing to train.
    """
    found: list[tuple[Phase, Any]] = []
    for phase in learner.phases:
        absent = phase.data_key is not None and learner.data.get(phase.data_key) is None
        if absent and isinstance(phase, AbstractValidationPhase):
            continue
        data = data_of(learner, phase)
        if epochs > 1 and isinstance(data, (types.GeneratorType, map, filter, zip)):
            raise DataExhaustedError(
                f"the data of phase {phase.name!r} is a {type(data).__name__}, which can be read once, but "
                f"fit({epochs}) reads it {epochs} times: pass a list, or an object whose __iter__ starts anew"
            )
        if isinstance(phase, TrainingPhase) and type(phase).step is TrainingPhase.step and not learner.params.names:
            raise OptimizerError(f"nothing is trained: {_why_nothing(learner)}")
        if type(phase).step in (TrainingPhase.step, ValidationPhase.step) and learner.loss_fn is no_loss:
            no_loss()
        found.append((phase, data))
    if not found:
        raise NoDataError("no phase of this fit has data: pass Learner(data=(train, valid))")
    return found


def _why_nothing(learner: Learner) -> str:
    if not learner.trained:
        return "pass Learner(..., optimizer=lc.Adam(1e-3))"
    frozen = ", ".join(learner.frozen[:3]) + (", ..." if learner.frozen[3:] else "")
    return (
        f"all that has an optimizer is frozen by the framework's own flag ({frozen}): let go of what is to be trained, "
        "or give it an optimizer under its own path"
    )


def iterable_batches(data: Any) -> Iterable[Any]:
    """Data for predictions: one array is one batch."""
    return [data] if hasattr(data, "shape") else data
