"""Reading the arguments of a Learner: models, optimizers, data and phases in one form each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loopcore._utils.argument_order import predictions_first
from loopcore._utils.validation import is_whole
from loopcore.backend import choice, registry
from loopcore.backend.protocol import Backend
from loopcore.callback import Callback
from loopcore.errors import (
    CallbackError,
    DataError,
    LossError,
    OptimizerError,
)
from loopcore.execution.plan import checked_reads
from loopcore.loop.batches import checked_iterable, no_loss
from loopcore.phases.base import Phase, check_phase
from loopcore.phases.supervised import TrainingPhase, ValidationPhase


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


def backend_for(models: Mapping[str, Any], name: str | None, *, device: Any, compile: bool | str) -> Backend:
    """The backend of a name, else the one whose models these are; where models are nobody's, what was chosen."""
    backend_name = registry.infer(models, neutral=choice.name) if name is None else choice.resolve(name)
    place = choice.device_of(backend_name) if device is None else device
    return registry.make(backend_name, device=place, compile=compile)


def loss_of(loss_fn: Callable[..., Any] | None) -> Callable[..., Any]:
    """The loss as it is called, predictions first; for none what says so."""
    return predictions_first(loss_fn) or no_loss


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
        data_by_key = dict(data)
    elif isinstance(data, tuple):
        if len(data) > 2:
            raise DataError(f"data is a pair (train, valid), but {len(data)} were given: use a dict for more")
        data_by_key = dict(zip(("training", "validation"), data, strict=False))
    else:
        raise DataError(
            f"data={type(data).__name__} is ambiguous: write data=(train, valid), data=(train, None) or "
            'data={"training": train}'
        )
    return {key: checked_iterable(key, value) for key, value in data_by_key.items() if value is not None}


def checked_phases(phases: Sequence[Phase] | None) -> tuple[Phase, ...]:
    """The phases of an epoch of ``fit``."""
    if phases is None:
        return (TrainingPhase(), ValidationPhase())
    checked = (phases,) if isinstance(phases, Phase) else tuple(phases)
    for phase in checked:
        check_phase(phase)
        checked_reads(type(phase).__name__, phase.reads)
    names = [phase.name for phase in checked]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TypeError(f"two phases are named {repeated[0]!r}, and would share counters and history: override name")
    return checked


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
