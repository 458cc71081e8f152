"""Metrics of steps and epochs."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable
from itertools import count, groupby
from typing import Any

import numpy as np

from loopcore._utils.history_names import prefix_of
from loopcore._utils.user_lines import HINT
from loopcore.backend.packing import fetched
from loopcore.backend.protocol import Array, HostArray
from loopcore.backend.registry import namespace_of
from loopcore.callback import Callback, on
from loopcore.errors import CallbackError, LossError
from loopcore.events import EpochBegin, EpochEnd, FitEnd, StepEnd
from loopcore.history import Ring, Series
from loopcore.metrics import EpochValue, Loss, Metric, SmoothLoss, plain_values
from loopcore.phases.base import AbstractTrainingPhase, Phase
from loopcore.phases.supervised import PredictionPhase, ValidationPhase
from loopcore.protocols import EpochView, LearnerView, StateDict
from loopcore.state import State

_FLUSH = 1024  # steps whose values stay on the device at most
_ROW = ("step.metrics_names", "step.metrics_row")
_WEIGHT = None  # the name of the column with weights
_NUMBERS = frozenset({int, float, bool})


class Metrics(Callback):
    """Means of every epoch, weighted by samples, and values of every step. The loss is always the first.

    Values stay on the device and are fetched in bulk, at least every 1,024 steps and when an epoch ends; only
    metrics with ``host=True`` and objects cost a transfer each step. A metric whose step values a phase does not
    have is left out there. An epoch without samples has no value (None), never 0. One that was stopped has the means of
    what it completed. Values of an epoch may be arrays, which are kept as lists, and several in a dict or a tuple.

    Reads: step.loss, step.weight and the step values of its metrics
    Writes: shared.metrics_epoch, shared.metrics_step
    Leaves: step.metrics_names, step.metrics_row
    Handles: EpochBegin, StepEnd (also traced), EpochEnd, FitEnd

    Args:
        *metrics: `Metric` objects, functions ``fn(y_pred, ys)``, names of step values, or objects with
            ``update/compute/reset``.

    Raises:
        CallbackError: two metrics have one name; in a Learner, one has the name that another phase's gets by its
            prefix, such as ``val_loss``.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(callbacks=[lc.Metrics(lc.Metric(lc.losses.mae, "mae"))])
        >>> result = learner.fit(3)
        >>> list(learner.history)
        ['loss', 'mae']
    """

    def __init__(self, *metrics: object) -> None:
        self.metrics = _loss_first([metric if isinstance(metric, Metric) else Metric(metric) for metric in metrics])
        self._smooth = {metric.name: metric for metric in self.metrics if isinstance(metric, SmoothLoss)}
        self._measured = [metric for metric in self.metrics if not metric.host]
        self._hosted = [metric for metric in self.metrics if metric.host]
        self._open: list[_Epoch] = []  # running epochs, the innermost last
        self._without_loss = False  # whether a training phase without a loss was named
        self._names_with_value: set[str] = set()  # metrics that had a value in an epoch so far
        self.reads = _paths(self._hosted)
        self.traced_reads = (*_paths(self._measured), "step.weight")
        self._arrays = _names_in_shared(self._hosted)  # of what objects keep, by name of the metric
        self._programmed: list[Metric] = []  # objects whose numbers are those of the compiled step
        self.carries = tuple(f"shared.{name}" for names in self._arrays.values() for name in names)
        self.traced_reads += tuple(path for metric in self._hosted if metric.variables for path in metric.reads)
        self.writes = ("shared.metrics_epoch", "shared.metrics_step", *self.carries)
        self.leaves = _ROW

    def setup(self, learner: LearnerView) -> None:
        """Start with empty series, unless there are some.

        Raises:
            CallbackError: an object that accumulates belongs to another Metrics already, or two metrics would have
                one key in the history.
        """
        for metric in self.metrics:
            _claim(metric, self)
        phases = {phase.name: phase for phase in (ValidationPhase(), *learner.phases)}
        keys: dict[str, str] = {}
        for phase in phases.values():
            for metric in self.metrics:
                if _is_for(metric, phase):
                    _check_key(keys, phase.name, metric.name)
        if not hasattr(learner.shared, "metrics_epoch"):
            learner.shared.metrics_epoch = Series()
            learner.shared.metrics_step = Series()
        self._programmed = [metric for metric in self._hosted if metric.variables and _is_of(metric, learner)]
        self._hosted = [metric for metric in self._hosted if metric not in self._programmed]
        self.reads = _paths(self._hosted)
        for metric in (*self._programmed, *self._hosted):
            self._put(metric, learner)

    def _put(self, metric: Metric, learner: LearnerView) -> None:
        """Let the next step go on from the numbers that an object has; those of one that is fed apart are not asked."""
        for name, variable in zip(self._arrays.get(metric.name, ()), metric.variables, strict=False):
            programmed = metric in self._programmed
            setattr(learner.shared, name, np.asarray(variable.value).copy() if programmed else 0.0)

    @on(EpochBegin)
    def begin_epoch(self, learner: LearnerView, phase: Phase) -> None:
        """Start new sums; those of an epoch around this one are left alone.

        Raises:
            CallbackError: that epoch uses an object that this one would reset.
        """
        for metric in self.metrics:
            if (
                metric.state is not None
                and _is_for(metric, phase)
                and any(metric in epoch.metrics for epoch in self._open)
            ):
                raise CallbackError(
                    f"metric {metric.name!r} is an object that another epoch is using, within which phase "
                    f"{phase.name!r} begins one of its own: give each its object, Metric(..., phase=...)"
                )
        self._open.append(_Epoch(phase, [metric for metric in self.metrics if _is_for(metric, phase)]))
        for metric in self._programmed:
            if _is_for(metric, phase):
                self._put(metric, learner)

    @on(StepEnd, traced=True)
    def compute(self, learner: LearnerView, phase: Phase) -> None:
        """Evaluate the metrics that are no host's, on the device, and put them in a row."""
        step, number = learner.step, learner.number
        names: list[str | None] = []
        row: list[Array | float] = []
        for metric in self._measured:
            if _is_for(metric, phase) and (args := _args(step, metric)) is not None:
                names.append(metric.name)
                row.append(_scalar(number(_value(metric, args)), metric.name))
        for metric in self._programmed:
            if _is_for(metric, phase) and (args := _args(step, metric)) is not None:
                self._advance(metric, args, learner.shared)
        weight = learner.sample_weight
        if type(weight) is not int:
            names.append(_WEIGHT)
            row.append(_scalar(number(weight), "step.weight"))
        step.metrics_names = tuple(names)
        step.metrics_row = (
            tuple(row) if _NUMBERS.issuperset(map(type, row)) else learner.xp.stack(_floats(learner, row))
        )

    def _advance(self, metric: Metric, args: list[Array], shared: State) -> None:
        """Count a step in the numbers of an object."""
        names = self._arrays[metric.name]
        try:
            arrays = metric.updated([getattr(shared, name) for name in names], args)
        except Exception as error:
            error.add_note(f"{HINT}the metric {metric.name!r}: Metric(..., host=True) feeds it outside compiled steps")
            raise
        for name, array in zip(names, arrays, strict=True):
            setattr(shared, name, array)

    @on(StepEnd)
    def record(self, learner: LearnerView, phase: Phase, event: StepEnd) -> None:
        """Keep the row of a completed step, still on the device."""
        epoch = self._open[-1] if self._open else None
        if event.outcome != "completed" or epoch is None or epoch.phase is not phase:
            return
        number = learner.step_number
        epoch.rows.append((*learner.collect("metrics_names", "metrics_row"), learner.sample_weight, number))
        for metric in self._hosted:
            if _is_for(metric, phase) and (args := _args(learner.step, metric)) is not None:
                try:
                    if metric.custom is not None:
                        self._ask(metric, learner, phase, number)
                    epoch.observe(metric, args, learner)
                except Exception as error:
                    _name(error, metric)
                    raise
        for metric in self._programmed:
            if _is_for(metric, phase) and _args(learner.step, metric) is not None:
                epoch.note_observed(metric)
        if len(epoch.rows) >= _FLUSH:
            self._flush(learner, epoch)

    @on(EpochEnd)
    def end_epoch(self, learner: LearnerView, phase: Phase, event: EpochEnd) -> None:
        """Keep the means of a completed epoch, and of what one that was stopped completed."""
        if not self._open or self._open[-1].phase is not phase:  # it did not hear EpochBegin, as under throttle
            return
        epoch = self._open.pop()
        has_steps = bool(epoch.rows or epoch.flushed)
        self._flush(learner, epoch)
        if event.outcome == "failed":
            return
        self._give_back(learner, phase)
        values = epoch.means(learner)
        self._names_with_value |= epoch.measured
        if event.outcome == "completed" or (event.outcome == "cancelled" and has_steps):
            self._keep(learner, phase, values)
        trains = isinstance(phase, AbstractTrainingPhase)
        if trains and has_steps and not self._without_loss and all(value is None for value in values.values()):
            self._without_loss = True
            warnings.warn(
                f"{type(phase).__name__}.step sets no state.loss, so that nothing is measured in phase {phase.name!r}, "
                "and nobody sees a loss that is NaN: write state.loss = ... where the objective computes it",
                stacklevel=2,
            )

    def _give_back(self, learner: LearnerView, phase: Phase) -> None:
        """Put the numbers of the compiled steps back into the objects that they belong to."""
        for metric in self._programmed:
            if _is_for(metric, phase):
                values = learner.to_host([getattr(learner.shared, name) for name in self._arrays[metric.name]])
                for variable, value in zip(metric.variables, values, strict=True):
                    variable.assign(value)

    def _keep(self, learner: LearnerView, phase: Phase, values: dict[str, EpochValue]) -> None:
        """Put the values of an epoch into the history, at the round they belong to."""
        series: Series = learner.shared.metrics_epoch
        epoch, measured = learner.epoch, series.get(phase.name, {})
        for name in _in_order([metric.name for metric in self.metrics], values):
            value, empty = values[name], name == self.metrics[0].name and not epoch.completed
            if value is None and name not in measured and not empty:
                continue
            if name not in measured:
                phases = {prefix_of(other) + key: other for other, by_key in series.items() for key in by_key}
                _check_key(phases, phase.name, name)
            epoch.metrics[prefix_of(phase.name) + name] = value
            _put_at_round(series, epoch, name, value)

    @on(FitEnd)
    def end_fit(self, learner: LearnerView, phase: None, event: FitEnd) -> None:
        """Warn of metrics whose step values no phase wrote."""
        for metric in self.metrics[1:]:
            if event.outcome == "completed" and metric.state is None and metric.name not in self._names_with_value:
                values = ", ".join(f"state.{arg}" for arg in metric.args)
                warnings.warn(f"metric {metric.name!r} had no value in this fit: no phase wrote {values}", stacklevel=2)

    def _flush(self, learner: LearnerView, epoch: _Epoch) -> None:
        """Fetch the pending rows in one go, add them up in float64, and put them into the series of steps."""
        rows, epoch.rows = epoch.rows, []
        epoch.flushed |= bool(rows)
        series, phase = learner.shared.metrics_step, epoch.phase.name
        for names, group in groupby(rows, lambda row: row[0]):
            table = list(group)
            values = fetched([row for _, row, *_ in table]).reshape(len(table), len(names))
            weighted = _WEIGHT in names
            weights = values[:, -1] if weighted else np.array([weight for *_, weight, _ in table], np.float64)
            numbers = np.array([number for *_, number in table], np.int64)
            for name, column in zip(names, values.T, strict=True):
                if name is not None:  # the column without a name has the weights
                    metric = self._smooth.get(name)
                    if metric is not None:
                        column = metric.smooth(phase, column)
                        epoch.last[name] = float(column[-1])
                    epoch.add(name, column, weights)
                    series.of(phase, name, Ring).extend(column, numbers)

    def _ask(self, metric: Metric, learner: LearnerView, phase: Phase, number: int) -> None:
        """Let a metric that does everything itself look at the step."""
        assert metric.custom is not None
        metric.custom.step(learner, phase)
        value = getattr(metric.custom, "step_value", lambda: None)()
        if value is not None:
            ring: Ring = learner.shared.metrics_step.of(phase.name, metric.name, Ring)
            ring.extend(np.array([float(value)]), np.array([number]))

    def state_dict(self) -> StateDict:
        """The sums of the exponential means, by metric and phase."""
        return {"smooth": {name: metric.sums for name, metric in self._smooth.items()}}

    def load_state_dict(self, state: StateDict) -> None:
        """Put back the sums of the exponential means."""
        for name, metric in self._smooth.items():
            metric.sums = {phase: (sums[0], sums[1]) for phase, sums in state["smooth"].get(name, {}).items()}


class _Epoch:
    """Sums of one running epoch."""

    def __init__(self, phase: Phase, metrics: list[Metric]) -> None:
        self.phase = phase
        # of steps whose values are still on the device: names, values, weight, number of the step
        self.rows: list[tuple[tuple[str | None, ...], Array, Array | float, int]] = []
        self.flushed = False  # whether there were rows before
        self.measured: set[str] = set()  # metrics that had a value
        self.metrics = metrics
        self._observed: set[str] = set()
        self.last: dict[str, float] = {}  # of metrics whose epoch value is that of the last step
        self._sums: dict[str, tuple[float, float]] = {}
        self._batches: dict[str, list[tuple[HostArray, ...]]] = {}
        self._accumulators = {metric.name: metric.object for metric in metrics if metric.object is not None}
        for accumulator in (*self._accumulators.values(), *(metric.custom for metric in metrics)):
            if accumulator is not None:
                accumulator.reset()

    def add(self, name: str, values: HostArray, weights: HostArray) -> None:
        total, weight = self._sums.get(name, (0.0, 0.0))
        counted = weights != 0  # a batch without samples has a loss that is NaN
        self._sums[name] = (total + float(values[counted] @ weights[counted]), weight + float(weights.sum()))

    def note_observed(self, metric: Metric) -> None:
        """Note that a compiled step fed an object."""
        self._observed.add(metric.name)

    def observe(self, metric: Metric, args: list[Array], learner: LearnerView) -> None:
        """Feed a metric that lives on the host."""
        self._observed.add(metric.name)
        if metric.custom is not None:
            return
        if metric.object is not None:
            metric.object.update(*args)
            return
        arrays = tuple(learner.to_host(arg) for arg in args)
        if metric.over == "epoch":
            self._batches.setdefault(metric.name, []).append(arrays)
        else:
            weights = _numbers(learner, [learner.sample_weight], "step.weight")
            value = _scalar(metric.fn(*arrays), metric.name)
            self.add(metric.name, np.array([float(value)]), weights)

    def means(self, learner: LearnerView) -> dict[str, EpochValue]:
        means: dict[str, EpochValue] = {}
        for metric in self.metrics:
            try:
                values = plain_values(metric.name, self._mean(metric), learner.to_host)
            except Exception as error:
                _name(error, metric)
                raise
            means.update(values)
            if any(value is not None for value in values.values()):
                self.measured.add(metric.name)
        return means

    def _mean(self, metric: Metric) -> Any:
        if metric.state is not None and metric.name not in self._observed:
            return None  # an object that was told nothing has a value all the same
        if metric.custom is not None:
            return metric.custom.epoch_value()
        if metric.object is not None:
            return metric.object.compute()
        if metric.over == "epoch":
            parts = self._batches.get(metric.name)
            return metric.fn(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else None
        if metric.name in self.last:
            return self.last[metric.name]
        total, weight = self._sums.get(metric.name, (0.0, 0.0))
        return total / weight if weight else None


def _loss_first(metrics: list[Metric]) -> tuple[Metric, ...]:
    """The metrics with the loss in front, which is added where there is none.

    Raises:
        CallbackError: two have one name.
    """
    losses = [metric for metric in metrics if isinstance(metric, Loss)] or [Loss()]
    ordered = (*losses, *(metric for metric in metrics if not isinstance(metric, Loss)))
    names = [metric.name for metric in ordered]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CallbackError(f"two metrics are named {repeated[0]!r}: give one of them Metric(fn, name=...)")
    return ordered


def _paths(metrics: Iterable[Metric]) -> tuple[str, ...]:
    """What these metrics read, each path once."""
    return tuple(sorted({path for metric in metrics for path in metric.reads}))


def _names_in_shared(metrics: Iterable[Metric]) -> dict[str, list[str]]:
    """A name in ``shared`` for each array that an object keeps its numbers in, by the name of the metric."""
    names = (f"metrics_array_{number}" for number in count())
    return {metric.name: [next(names) for _ in metric.variables] for metric in metrics if metric.variables}


def _put_at_round(series: Series, epoch: EpochView, name: str, value: EpochValue) -> None:
    """Put the value of an epoch at its round; one that was measured by hand at the round before it."""
    phase = epoch.phase.name
    if epoch.round is not None:
        if epoch.within is not None and value is not None:  # of an epoch within another one
            series.within.setdefault(phase, {}).setdefault(name, []).append((epoch.round, epoch.within, value))
        series.put(phase, name, epoch.round, value)
    elif value is not None:
        series.put_by_hand(phase, name, epoch.after, value)


def try_metric(metric: Metric, phase: Phase, state: State, learner: LearnerView) -> None:
    """Let a metric look at a step that no epoch counts; what it accumulates begins anew.

    Args:
        metric: is left out where it is not for the phase, or the step lacks its values.
        phase: of the step.
        state: of the step, with all its values.
        learner: the view of a callback.

    Raises:
        Exception: whatever is wrong with it.
    """
    args = _args(state, metric) if _is_for(metric, phase) else None
    if args is None:
        return
    arrays = [learner.to_host(arg) for arg in args] if metric.host else args
    if metric.custom is not None:
        metric.custom.reset()
        metric.custom.step(_ViewOfStep(learner, state), phase)
        value = metric.custom.epoch_value()
        metric.custom.reset()
    elif metric.object is not None:
        metric.object.reset()
        metric.object.update(*args)
        value = metric.object.compute()
        metric.object.reset()
    else:
        value = metric.fn(*arrays) if metric.host else learner.number(_value(metric, args))
        value = value if metric.over == "epoch" else _scalar(value, metric.name)
    plain_values(metric.name, value, learner.to_host)


class _ViewOfStep:
    """A view of a learner that shows another step."""

    def __init__(self, learner: LearnerView, step: State) -> None:
        self.step = step
        self._learner = learner

    def __getattr__(self, name: str) -> object:
        return getattr(self._learner, name)


_owners: weakref.WeakValueDictionary[int, Metrics] = weakref.WeakValueDictionary()  # by id of the object


def _claim(metric: Metric, owner: Metrics) -> None:
    keeper = metric if isinstance(metric, SmoothLoss) else metric.state
    if keeper is None:
        return
    if _owners.get(id(keeper), owner) is not owner:
        gc.collect()  # a learner that is gone may still wait for the collector
    if _owners.setdefault(id(keeper), owner) is not owner:
        raise CallbackError(
            f"metric {metric.name!r} keeps numbers for another Metrics, and two would mix them: make a new one"
        )


def _args(step: State, metric: Metric) -> list[Array] | None:
    """What a metric is called with; None where the step lacks a value."""
    try:
        return [getattr(step, name) for name in metric.args]
    except AttributeError:
        return None


def _is_for(metric: Metric, phase: Phase) -> bool:
    if metric.phase is None:
        return not isinstance(phase, PredictionPhase)  # labels that come with the data are no reason to measure
    return isinstance(phase, metric.phase)


def _check_key(keys: dict[str, str], phase: str, name: str) -> None:
    """Refuse a second metric of one key; ``keys`` has the phase of each that is there."""
    key = prefix_of(phase) + name
    other = keys.setdefault(key, phase)
    if other != phase:
        raise CallbackError(
            f"metric {name!r} of phase {phase!r} and metric {key.removeprefix(prefix_of(other))!r} of phase {other!r} "
            f"would both be {key!r} in the history: give one another name, Metric(fn, name=...)"
        )


def _name(error: Exception, metric: Metric) -> None:
    """Let an error say which metric it is about."""
    if f"metric {metric.name!r}" not in str(error):
        error.add_note(f"raised by the metric {metric.name!r}")


def _is_of(metric: Metric, learner: LearnerView) -> bool:
    """Whether an object computes with the arrays of the learner."""
    return isinstance(learner.xp, type(namespace_of(metric.variables[0].value).xp))


def _in_order(names: list[str], values: Iterable[str]) -> list[str]:
    return [name for name in names if name in values] + [name for name in values if name not in names]


def _numbers(learner: LearnerView, values: list[Array | float], name: str) -> HostArray:
    if set(map(type, values)) <= {int, float, bool}:
        return np.array(values, dtype=np.float64)
    fetched = learner.to_host(values)
    wrong = next((value for value in fetched if getattr(value, "shape", ())), None)
    if wrong is not None:
        raise LossError(f"metric {name!r} is a scalar for each step, but has the shape {wrong.shape}: take its mean")
    return np.array([float(value) for value in fetched])


def _value(metric: Metric, args: list[Array]) -> Array:
    if metric.value:
        return args[0]
    try:
        return metric.fn(*args)
    except Exception as error:
        error.add_note(
            f"{HINT}the metric {metric.name!r}: one that is no array code gets NumPy arrays on the host as "
            "Metric(fn, host=True)"
        )
        raise


def _scalar(value: Array, name: str) -> Array:
    shape = getattr(value, "shape", ())
    if len(shape):  # a shape of TensorFlow is true even if empty
        raise LossError(
            f"metric {name!r} is a scalar for each step, but has the shape {tuple(shape)}: take its mean, or let it be "
            'of a whole epoch, Metric(fn, over="epoch") or an object, which keep arrays as they are'
        )
    return value


def _floats(learner: LearnerView, row: list[Array | float]) -> list[Array]:
    """All as arrays of one dtype: float32, or float64 where one of them is."""
    xp = learner.xp
    arrays: list[Array] = [xp.full((), value) if type(value) in _NUMBERS else value for value in row]
    wide = next((array.dtype for array in arrays if "float64" in str(array.dtype)), xp.float32)
    return [xp.astype(array, wide) for array in arrays]
