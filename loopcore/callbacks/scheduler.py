"""Hyperparameters that follow a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from loopcore.backend.protocol import Array
from loopcore.callback import NO_CONFLICT, Callback, Resolution, on
from loopcore.callbacks.accumulation import AccumulatedUpdate
from loopcore.callbacks.monitor import monitored
from loopcore.errors import CallbackError
from loopcore.events import EpochBegin, EpochEnd, StepBegin, StepEnd
from loopcore.handles.hyperparameters import HyperParameter
from loopcore.history import Ring, Series
from loopcore.optimizers import Momentum
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.protocols import LearnerView, StateDict

Unit = Literal["step", "epoch", "update"]
Key: TypeAlias = str | HyperParameter | type[Momentum]
_UNITS = ("step", "epoch", "update")
_FLUSH = 1024  # steps whose values wait at most
_WINDOW = "step.window"  # of GradientAccumulation: whether the step begins and whether it ends one


class _ByStep(Callback):
    """Keeps the values that steps ran with, for ``learner.history.plot()``.

    Handles: EpochEnd
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._pending: dict[str, list[float]] = {name: [] for name in names}
        self._waiting = 0
        self._first = 0  # the number of the step of the first pending values

    def setup(self, learner: LearnerView) -> None:
        """Make the series that values are kept in, unless there is one."""
        if not hasattr(learner.shared, "hyper_step"):
            learner.shared.hyper_step = Series()

    def _keep(self, learner: LearnerView, phase: Phase, values: Mapping[str, float]) -> None:
        if not self._waiting:
            self._first = learner.step_number
        self._waiting += 1
        for name, value in values.items():
            self._pending[name].append(value)
        if self._waiting == _FLUSH:
            self._hand_on(learner, phase)

    def _hand_on(self, learner: LearnerView, phase: Phase) -> None:
        for name, values in self._pending.items():
            numbers = self._first + np.arange(len(values))
            learner.shared.hyper_step.of(phase.name, name, Ring).extend(np.array(values), numbers)
            values.clear()
        self._waiting = 0
        self._series = learner.shared.hyper_step

    def values(self, name: Key, phase: str = "training") -> list[float]:
        """Return the latest values of a hyperparameter by completed step, the newest last."""
        name = _name_of(name)
        by_name = getattr(self, "_series", {}).get(phase, {})
        return [*(by_name[name].latest().tolist() if name in by_name else ()), *self._pending[name]]


class Scheduler(_ByStep):
    """Set hyperparameters as schedules say, before every step or epoch of training phases.

    What was completed counts: a cancelled step or epoch has its number again. The count goes on through several fits
    and is part of a checkpoint. Values are inputs of a compiled step, so nothing is compiled again; in validation the
    last ones hold. They are kept by step, for ``learner.history.plot()`` and `LogHyperParams`.

    Several go together if each sets other hyperparameters. ``lc.LearningRate``, which is that of all optimizers, and
    ``lc.LearningRate("critic")`` go into one Scheduler: it sets the more general one first, in any order.

    Below, ``hyper.learning_rate`` stands for whatever hyperparameters it sets; what it reads depends on the unit.

    Reads: step.window, step.updated
    Writes: hyper.learning_rate, shared.hyper_step
    Handles: EpochBegin, StepBegin, StepEnd, EpochEnd

    Args:
        schedules: a schedule for each name or `HyperParameter`: functions from a count, from 0, to a number. Those in
            `loopcore.schedules`, of optax and of Keras are. One that gives an array, as those of optax and Keras do,
            costs a transfer whenever it is asked, each step or epoch; those of `loopcore.schedules` cost none.
            ``lc.Momentum``, the optimizer, stands for ``"momentum"``.
        unit: what is counted: ``"step"``, where with `GradientAccumulation` a window is one; ``"epoch"``; or
            ``"update"``, steps in which the optimizer moved something, whoever withheld the others. Where the device
            decides on that, it costs a transfer each step.

    Raises:
        CallbackError: no schedules, one that cannot be called, a key that names nothing or what another one names, or
            an unknown unit.
        AttributeError: the learner has no hyperparameter of that name.

    Example:
        >>> import loopcore as lc
        >>> rates = lc.Scheduler({lc.LearningRate: lc.schedules.linear(1.0, 0.0, 4)})
        >>> learner = lc.testing.toy_learner(callbacks=[rates], steps=3)
        >>> result = learner.fit(1)
        >>> learner.hyper.learning_rate, rates.values("learning_rate")
        (0.5, [1.0, 0.75, 0.5])
    """

    def __init__(self, schedules: Mapping[Key, Callable[[float], Array | float]], unit: Unit = "step") -> None:
        if not isinstance(schedules, Mapping) or not schedules:
            raise CallbackError(
                f"Scheduler takes a dict from hyperparameters to schedules, not {schedules!r}: write "
                "Scheduler({lc.LearningRate: lc.one_cycle(0.1, 1000)}); torch's own go to TorchScheduler"
            )
        if unit not in _UNITS:
            raise CallbackError(f'unit={unit!r}: what is counted is "step", "epoch" or "update"')
        self._schedules: dict[str, Callable[[float], Array | float]] = {}
        for key, schedule in schedules.items():
            name = _name_of(key)
            if name in self._schedules:
                raise CallbackError(f"Scheduler has {name!r} twice, by other keys: keep one of its schedules")
            if not callable(schedule):
                torch_own = callable(getattr(schedule, "get_last_lr", None))
                write = 'lc.TorchScheduler(scheduler, "step")' if torch_own else f"lc.schedules.constant({schedule!r})"
                raise CallbackError(f"the schedule of {name!r} is {schedule!r}: write {write}")
            self._schedules[name] = schedule
        # names that stand for all optimizers come first, so that the schedule of a single one has the last word
        self._schedules = dict(sorted(self._schedules.items(), key=lambda item: item[0].count(".")))
        self.writes = (*(f"hyper.{name}" for name in self._schedules), "shared.hyper_step")
        self.reads = {"step": (_WINDOW,), "epoch": (), "update": (_WINDOW, "step.updated")}[unit]
        self.unit = unit
        self.count = 0
        self._last: dict[str, float] = {}
        super().__init__(self._schedules)

    def setup(self, learner: LearnerView) -> None:
        """Set the first values, so that what cannot be set says so at once."""
        self._last = {}
        self._set(learner)
        super().setup(learner)

    def resolve_conflict(self, other: Callback) -> Resolution | None:
        """Go together with another one that sets none of the same hyperparameters."""
        if isinstance(other, TorchScheduler):
            return other.resolve_conflict(self)
        if not isinstance(other, Scheduler):
            return None
        clash = any(_overlap(name, other_name) for name in self._schedules for other_name in other._schedules)
        return None if clash else NO_CONFLICT

    @on(EpochBegin, AbstractTrainingPhase)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Set the values of an epoch, if epochs are counted."""
        if self.unit == "epoch":
            self._set(learner)

    @on(StepBegin, AbstractTrainingPhase)
    def begin_step(self, learner: LearnerView, phase: Phase) -> None:
        """Set the values of a step, unless epochs are counted."""
        if self.unit != "epoch":
            self._set(learner)

    @on(StepEnd, AbstractTrainingPhase)
    def end_step(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Count the step if it was completed, and keep its values."""
        if event.outcome != "completed":
            return
        self._keep(learner, phase, self._last)
        if self.unit == "step":
            self.count += _is_whole_step(learner)
        self._count_update(learner)

    @on(StepEnd, AccumulatedUpdate)
    def end_window(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Count the update with what an epoch left over."""
        if event.outcome == "completed":
            self.count += self.unit == "step"
            self._count_update(learner)

    def _count_update(self, learner: LearnerView) -> None:
        if self.unit == "update":
            updated = learner.step.updated
            # True where the host knows; an array has to be fetched, and the step to end before that.
            self.count += updated is True or (updated is not None and bool(learner.to_host(updated)))

    @on(EpochEnd, AbstractTrainingPhase)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Count the epoch, and hand on the values of its steps."""
        self.count += self.unit == "epoch" and event.outcome == "completed"
        self._hand_on(learner, phase)

    def _set(self, learner: LearnerView) -> None:
        for name, schedule in self._schedules.items():
            value = float(schedule(self.count))
            # Only what is another one is set: a rate that stays is kept on the device. Somebody else may have set it
            # meanwhile.
            if self._last.get(name) != value or learner.hyper[name] != value:
                learner.hyper[name] = self._last[name] = value

    def state_dict(self) -> StateDict:
        """Return the count of steps, epochs or updates."""
        return {"count": self.count}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from the count that a checkpoint has."""
        self.count = int(state["count"])


def _name_of(key: Key) -> str:
    """Return the name of a hyperparameter; the class of the optimizer stands for "momentum", which has its name."""
    name: object = key.name if isinstance(key, HyperParameter) else "momentum" if key is Momentum else key
    if not isinstance(name, str):
        raise CallbackError(
            f'Scheduler has the key {key!r}, which names no hyperparameter: write lc.LearningRate, "momentum", '
            '"critic.momentum" for that of one optimizer, or the name of one of Learner(hyper={...})'
        )
    return name


def _is_whole_step(learner: LearnerView) -> bool:
    """Whether a completed step is one of the optimizer: of those that accumulate only the last is."""
    window = getattr(learner.step, "window", None)
    return window is None or window[1]


def _overlap(name: str, other_name: str) -> bool:
    """Whether two names stand for a value of one optimizer: "learning_rate" is that of all."""
    return name == other_name or name.endswith(f".{other_name}") or other_name.endswith(f".{name}")


class TorchScheduler(_ByStep):
    """Step a scheduler of torch, which sets the learning rate of its own optimizer.

    Several go together if each has another optimizer; those of one optimizer are chained by torch's own
    ``ChainedScheduler`` or ``SequentialLR``. A `Scheduler` of other hyperparameters goes with it too. The rates that
    steps ran with are kept, for ``learner.history.plot()``. With ``monitor`` it reads the metrics.

    Reads: optimizer, shared.metrics_epoch, step.window
    Writes: hyper, shared.hyper_step
    Handles: StepEnd, EpochEnd

    Args:
        scheduler: an ``LRScheduler`` for the optimizer that the Learner has.
        unit: whether it counts steps or epochs of training phases; its type does not tell. With
            `GradientAccumulation` a window is one step.
        monitor: key of the history that a ``ReduceLROnPlateau`` follows, such as ``"val_loss"``; it then steps when
            the phase of that metric ends.

    Raises:
        CallbackError: it has no ``step``, ``unit`` is unknown, or ``monitor`` is missing or one too many; in a Learner,
            it is for an optimizer that the Learner does not have.

    Example:
        >>> import loopcore as lc
        >>> class Halves:  # as torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) does
        ...     def step(self):
        ...         learner.hyper.learning_rate *= 0.5
        >>> learner = lc.testing.toy_learner(callbacks=[lc.TorchScheduler(Halves(), unit="epoch")])
        >>> result = learner.fit(2)
        >>> learner.hyper.learning_rate
        0.025
    """

    reads: tuple[str, ...] = ("optimizer", _WINDOW)
    writes = ("hyper", "shared.hyper_step")

    def __init__(self, scheduler: Any, unit: Literal["step", "epoch"], monitor: str | None = None) -> None:
        if not callable(getattr(scheduler, "step", None)):
            raise CallbackError(f"TorchScheduler takes an LRScheduler of torch, not {scheduler!r}")
        if unit not in ("step", "epoch"):
            raise CallbackError(f'unit={unit!r}: say whether the scheduler counts every "step" or every "epoch"')
        # By its name: torch may not be installed, and is not imported to ask.
        plateau = type(scheduler).__name__ == "ReduceLROnPlateau"
        if plateau != (monitor is not None) or (plateau and unit != "epoch"):
            raise CallbackError(
                'a ReduceLROnPlateau, and only that, follows a metric by epochs: TorchScheduler(scheduler, "epoch", '
                'monitor="val_loss")'
            )
        super().__init__(())
        self.scheduler = scheduler
        self.unit = unit
        self.monitor = monitor
        self._name = "learning_rate"
        if monitor is not None:
            self.reads = ("optimizer", "shared.metrics_epoch", _WINDOW)

    def setup(self, learner: LearnerView) -> None:
        """Check that the Learner trains with the optimizer of the scheduler."""
        its_optimizer, kind = getattr(self.scheduler, "optimizer", None), type(self.scheduler).__name__
        if its_optimizer is not None and all(
            its_optimizer is not optimizer for optimizer in learner.optimizer.values()
        ):
            class_names = ", ".join(type(optimizer).__name__ for optimizer in learner.optimizer.values()) or "none"
            raise CallbackError(
                f"the {kind} of TorchScheduler sets the learning rate of an optimizer that this Learner does not have, "
                f"it has {class_names}: pass the same object to both, Learner(..., optimizer=scheduler.optimizer), or "
                "use lc.Scheduler, which sets that of any optimizer"
            )
        prefix = next((name for name, optimizer in learner.optimizer.items() if optimizer is its_optimizer), "")
        self._name = f"{prefix}.learning_rate" if prefix else "learning_rate"
        self._pending.setdefault(self._name, [])
        super().setup(learner)

    def resolve_conflict(self, other: Callback) -> Resolution | None:
        """Go together with one of another optimizer, and with schedules of what it does not set."""
        if isinstance(other, TorchScheduler):
            optimizer_ids = {id(getattr(callback.scheduler, "optimizer", None)) for callback in (self, other)}
            return NO_CONFLICT if len(optimizer_ids) == 2 else None
        if isinstance(other, Scheduler):
            names = {name.rpartition(".")[2] for name in other._schedules}  # pyright: ignore[reportPrivateUsage]  # of this file
            return NO_CONFLICT if names.isdisjoint(("learning_rate", "momentum")) else None
        return None

    @on(StepEnd, AbstractTrainingPhase)
    def end_step(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Keep the rate that the step ran with, and step a scheduler that counts steps."""
        # Before the scheduler moves it: this is the rate that the step ran with.
        if event.outcome == "completed" and self._name in learner.hyper:
            self._keep(learner, phase, {self._name: learner.hyper[self._name]})
        if self.unit == "step" and event.outcome == "completed" and _is_whole_step(learner):
            self.scheduler.step()

    @on(StepEnd, AccumulatedUpdate)
    def end_window(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Step the scheduler for the window that an epoch left over."""
        if self.unit == "step" and event.outcome == "completed":
            self.scheduler.step()

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Step a scheduler that counts epochs or follows a metric; hand on the rates of the steps."""
        if isinstance(phase, AbstractTrainingPhase):
            self._hand_on(learner, phase)
        if self.monitor is not None:
            value = monitored(learner, phase, event, self.monitor)
            if value is not None:
                self.scheduler.step(value)
        elif self.unit == "epoch" and event.outcome == "completed" and isinstance(phase, AbstractTrainingPhase):
            self.scheduler.step()

    def state_dict(self) -> StateDict:
        """Return the state of the scheduler, as far as it is made of JSON values."""
        state: StateDict = getattr(self.scheduler, "state_dict", dict)()
        # `LambdaLR` and its like keep functions in there, which one that is made alike has itself.
        return {name: value for name, value in state.items() if isinstance(value, (int, float, str, list, type(None)))}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back the state of the scheduler."""
        if hasattr(self.scheduler, "load_state_dict"):
            self.scheduler.load_state_dict(state)
