"""What a metric is: a step value by name, a function of step values, or an object that accumulates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loopcore._utils.argument_order import predictions_first, roots, takes_labels_first
from loopcore._utils.validation import is_number, is_whole
from loopcore.backend.array_namespace import ArrayNamespace
from loopcore.backend.protocol import Array, HostArray
from loopcore.backend.registry import namespace_of
from loopcore.errors import LossError

EpochValue: TypeAlias = "float | list[EpochValue] | None"  # a scalar or an array as JSON has it, None without samples


class Variable(Protocol):
    """An array that an object of Keras keeps its numbers in."""

    value: Array

    def assign(self, value: Array) -> object:
        """Put another array into it."""
        ...


class Metric:
    """One number for each epoch of a phase, and for each step where it can be.

    Args:
        fn: a function of native arrays that returns a scalar; or the name of a step value to average; or an object
            with ``update(y_pred, ys)``, ``compute()`` and ``reset()`` (torchmetrics, nnx), or ``update_state``,
            ``result`` and ``reset_state`` (Keras); or an `AbstractMetric`. Functions and objects of scikit-learn and
            Keras, which take the labels first, get them first, and so do those with parameters ``y_true, y_pred``.
        name: key in the history. Default: the name of the function, class or value.
        args: names of the step values that are passed; a dict from keyword to name passes them by keyword. What
            takes ``logits`` and ``labels`` by keyword, as in nnx, gets ``y_pred`` and ``ys``.
        phase: class of the phases it is for. Default: every phase that has the values, but not predictions.
        over: ``"step"`` averages the values of the steps by samples; ``"epoch"`` calls ``fn`` once, on everything
            concatenated as NumPy arrays, for metrics that are no mean (AUROC).
        host: call ``fn`` with NumPy arrays outside the compiled step. It costs a transfer each step. Functions of
            scikit-learn and those over an epoch are called so anyway. Objects are fed outside the compiled step too,
            but with native arrays: what they do with them is their affair. Those of Keras are part of the compiled
            step unless ``host=True`` says otherwise; they hold their numbers again when the epoch ends.

    Raises:
        TypeError: ``fn`` is none of these.
        ValueError: ``over`` is neither of the two words.

    Example:
        >>> import loopcore as lc
        >>> lc.Metric(lc.accuracy).name
        'accuracy'
        >>> lc.Metric("kl").args
        ('kl',)
    """

    def __init__(
        self,
        fn: Callable[..., Any] | str | Any,
        name: str | None = None,
        args: Sequence[str] | Mapping[str, str] = ("y_pred", "ys"),
        phase: type | None = None,
        over: Literal["step", "epoch"] = "step",
        host: bool = False,
    ) -> None:
        _check_kind(fn, over)
        metric: Any = fn  # one of the kinds that the annotation lists
        self.name = name or _name_of(fn)
        self.value = isinstance(fn, str)
        # Before the other kinds of objects: what does everything itself may have an `update` of its own meaning.
        self.custom: AbstractMetric | None = metric if _does_everything(fn) else None
        self.object = None if self.value or self.custom is not None else _accumulator(fn)
        self._keywords, args = (
            (tuple(args), tuple(args.values())) if isinstance(args, Mapping) else (_keywords(fn), args)
        )
        self.args: tuple[str, ...]
        self.phase = phase
        self.over = over
        if self.custom is not None:
            self.args, self.reads, self.phase = (), tuple(self.custom.reads), phase or self.custom.phase
        else:
            self.args = (metric,) if self.value else tuple(args)
            self.reads = tuple(f"step.{arg}" for arg in self.args)
            # Functions alone: the signature of an object's `update` is often ``*args``, or written in C.
            if self.object is None and not self.value:
                _check_function(fn, self.name, self._keywords, self.args)
        self.fn: Callable[..., Any] = _in_order(metric, self.args, self._keywords)
        if self.object is not None and self._keywords:
            self.object.update = by_keyword(getattr(metric, "update", None) or metric.update_state, self._keywords)
        self.in_program = self.object is not None and over == "step" and not host and _keeps_arrays(metric)
        self.host = host or over == "epoch" or bool(self.object or self.custom) or _is_numpy_only(fn)

    @property
    def variables(self) -> list[Variable]:
        """What an object keeps its numbers in, with ``value`` and ``assign``, where a compiled step may have them."""
        return list(self.state.variables) if self.in_program else []

    def updated(self, arrays: Sequence[Array], args: Sequence[Array]) -> list[Array]:
        """Return the numbers of such an object after one more step, of what they were; the object stays as it is."""
        metric = self.state
        if self._keywords:
            return list(metric.stateless_update_state(arrays, **dict(zip(self._keywords, args, strict=True))))
        swapped = [args[1], args[0], *args[2:]] if takes_labels_first(metric.update_state) else args
        return list(metric.stateless_update_state(arrays, *swapped))

    @property
    def state(self) -> Any:
        """The object that accumulates, where it is one."""
        return self.custom if self.object is None else self.object.metric

    def __repr__(self) -> str:
        return f"Metric({self.name!r})"


class Loss(Metric):
    """The mean of ``step.loss``; every `Metrics` has one, in front.

    Example:
        >>> import loopcore as lc
        >>> lc.Loss().name
        'loss'
    """

    def __init__(self, name: str = "loss", phase: type | None = None) -> None:
        super().__init__("loss", name, phase=phase)


class SmoothLoss(Metric):
    """The loss as an exponential mean over the steps of each phase, without the bias towards its first value 0.

    After t steps it is ``(1 - beta) / (1 - beta ** t) * sum(beta ** (t - i) * loss_i)``. It goes on through epochs and
    fits; its epoch value is that of the last step.

    Args:
        beta: share of the mean that is kept at each step, at least 0 and below 1.
        name: key in the history.
        phase: class of the phases it is for.

    Raises:
        ValueError: ``beta`` is out of its range.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(callbacks=[lc.Metrics(lc.SmoothLoss(0.5))], steps=2)
        >>> result = learner.fit(1)  # the losses are 1 and 0.64
        >>> [round(value, 3) for value in learner.history["smooth_loss"]]
        [0.76]
    """

    def __init__(self, beta: float = 0.98, name: str = "smooth_loss", phase: type | None = None) -> None:
        if not (is_number(beta) and 0 <= beta < 1):
            raise ValueError(f"beta={beta!r}: at least 0 and below 1")
        super().__init__("loss", name, phase=phase)
        self.beta = beta
        self.sums: dict[str, tuple[float, float]] = {}

    def smooth(self, phase: str, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the means after each of these losses, which follow those it has seen of the phase."""
        total, weight = self.sums.get(phase, (0.0, 0.0))
        means = np.empty(len(losses))
        for place, loss in enumerate(losses):
            # The weights are summed along with the losses, which takes out the bias towards the 0 at the begin, as in
            # Adam.
            total, weight = self.beta * total + loss, self.beta * weight + 1.0
            means[place] = total / weight
        self.sums[phase] = total, weight
        return means


class AbstractMetric:
    """A metric that does everything itself, on the host. Subclass it, or write a class with the same methods.

    Class attributes:
        reads: what `step` reads on the learner, as `Callback.reads`.
        phase: class of the phases it is for; None for all but predictions.

    Example:
        >>> import loopcore as lc
        >>> class Longest(lc.AbstractMetric):
        ...     "The largest loss of an epoch."
        ...     reads = ("step.loss",)
        ...
        ...     def reset(self):
        ...         self.worst = 0.0
        ...
        ...     def step(self, learner, phase):
        ...         self.worst = max(self.worst, float(learner.step.loss))
        ...
        ...     def epoch_value(self):
        ...         return self.worst
        >>> learner = lc.testing.toy_learner([lc.Metrics(Longest())])
        >>> result = learner.fit(1)
        >>> learner.history["Longest"]
        [1.0]
    """

    reads: tuple[str, ...] = ()
    phase: type | None = None

    def reset(self) -> None:
        """Forget all steps, since an epoch begins."""

    def step(self, learner: Any, phase: Any) -> None:
        """Take in a completed step; ``learner`` is a guarded view as for handlers."""
        raise TypeError(f"{type(self).__name__} does not look at steps: define step(self, learner, phase)")

    def step_value(self) -> float | None:
        """Return its value in the last step, or None."""
        return None

    def epoch_value(self) -> float | None:
        """Return its value in the epoch so far; only asked for after a step. None is no value."""
        raise TypeError(f"{type(self).__name__} has no value: define epoch_value(self)")


class Accumulator:
    """An object that accumulates, whatever its framework calls the three verbs."""

    def __init__(
        self, metric: Any, update: Callable[..., object], compute: Callable[[], Any], reset: Callable[[], object]
    ):
        self.metric = metric
        self.update = predictions_first(update) if hasattr(metric, "update_state") else update
        self.compute = compute
        self.reset = reset


def plain_values(name: str, value: Any, to_host: Callable[[Array], Any] = np.asarray) -> dict[str, EpochValue]:
    """The value of a metric as JSON has it: floats, and lists of them; a dict or a tuple has several.

    Args:
        name: of the metric.
        value: what it returned.
        to_host: makes NumPy arrays of those of the framework.

    Raises:
        LossError: it is no number and has none.

    Example:
        >>> import numpy as np
        >>> from loopcore.metrics import plain_values
        >>> plain_values("recall", np.array([0.5, 1.0]))
        {'recall': [0.5, 1.0]}
        >>> plain_values("curve", (np.array([0.0, 1.0]), np.array([0.5])))
        {'curve_0': [0.0, 1.0], 'curve_1': [0.5]}
    """
    if value is None:
        return {name: None}
    if isinstance(value, Mapping):
        return _merged(plain_values(str(key), part, to_host) for key, part in value.items())
    if isinstance(value, (tuple, list)) and any(len(getattr(part, "shape", ())) for part in value):
        return _merged(plain_values(f"{name}_{number}", part, to_host) for number, part in enumerate(value))
    # NumPy makes an array of a string as well.
    host = value if isinstance(value, str) else np.asarray(to_host(value))
    if isinstance(host, str) or not _has_real_numbers(host):
        raise LossError(
            f"metric {name!r} returned {type(value).__name__} {value!r:.40}: it is a number, an array, or a dict or "
            "tuple of these"
        )
    numbers: EpochValue = host.astype(np.float64).tolist()
    return {name: numbers}


def _merged(parts: Iterable[dict[str, EpochValue]]) -> dict[str, EpochValue]:
    """Merge the values of several dicts into one."""
    return {name: value for part in parts for name, value in part.items()}


def _has_real_numbers(array: HostArray) -> bool:
    """Tell whether an array has real numbers; ``bfloat16`` and its like are of no kind that NumPy knows."""
    return array.dtype.kind != "c" and (array.dtype.kind in "biuf" or "float" in str(array.dtype))


def by_keyword(fn: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Make a function of values in the order of these keywords."""
    return lambda *values: fn(**dict(zip(names, values, strict=True)))


def _in_order(fn: Any, args: Sequence[str], keywords: Sequence[str]) -> Callable[..., Any]:
    """Make what is called with the step values in the order of ``args``: by keyword, or as its library orders them."""
    if keywords:
        return by_keyword(fn, keywords)
    ordered: Callable[..., Any] = fn if args[:1] == ("ys",) else predictions_first(fn)  # who says the order gets it
    return ordered


def _keywords(fn: Any) -> tuple[str, ...]:
    """Return ``("logits", "labels")`` for what takes these by keyword only."""
    try:
        parameters = inspect.signature(getattr(fn, "update", fn)).parameters
    except (TypeError, ValueError):
        return ()
    only = {name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    return ("logits", "labels") if {"logits", "labels"} <= only else ()


def _check_kind(fn: object, over: str) -> None:
    """Refuse a class, and another word for what a metric is over.

    Raises:
        ValueError: ``over`` is neither of the two words.
        TypeError: ``fn`` is a class.
    """
    if over not in ("step", "epoch"):
        raise ValueError(f'over is "step" or "epoch", not {over!r}')
    if isinstance(fn, type):
        raise TypeError(f"a metric is an instance, not the class {fn.__name__}: write {fn.__name__}(...)")


def _check_function(fn: object, name: str, keywords: Sequence[str], args: Sequence[str]) -> None:
    """Refuse what is no function, or one that cannot be called with these step values.

    Raises:
        TypeError: says what to write.
    """
    if not callable(fn):
        raise TypeError(f"a metric is a function, the name of a step value or an object with update, not {fn!r}")
    if fn is top_k_accuracy:
        raise TypeError("top_k_accuracy makes a metric for a number of entries: write lc.top_k_accuracy(5)")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin without one
        return
    try:
        signature.bind(**dict.fromkeys(keywords)) if keywords else signature.bind(*args)
    except TypeError:
        raise TypeError(
            f"metric {name!r} is called with the step values {', '.join(args)}, but takes {signature}: pass a function "
            "of these, or say which it takes, Metric(fn, args=(...))"
        ) from None


def _does_everything(fn: object) -> bool:
    """Tell whether it has the methods of an `AbstractMetric`, whatever its class."""
    return all(callable(getattr(fn, verb, None)) for verb in ("reset", "step", "epoch_value"))


def _accumulator(fn: object) -> Accumulator | None:
    for update, compute, reset in (("update", "compute", "reset"), ("update_state", "result", "reset_state")):
        if all(callable(getattr(fn, verb, None)) for verb in (update, compute, reset)):
            return Accumulator(fn, getattr(fn, update), getattr(fn, compute), getattr(fn, reset))
    return None


def _keeps_arrays(metric: Any) -> bool:
    """Whether its numbers are arrays of a framework that compiles steps, and it can tell new ones from them (Keras)."""
    if not (hasattr(metric, "stateless_update_state") and hasattr(metric, "variables")):
        return False
    values = [variable.value for variable in metric.variables]  # none yet, where the first batch makes them
    return bool(values) and bool(namespace_of(values[0]).compiles)


def _is_numpy_only(fn: object) -> bool:
    return "sklearn" in roots(fn)


def _name_of(fn: Any) -> str:
    if isinstance(fn, str):
        return fn
    fn = fn.func if isinstance(fn, partial) else fn
    name = getattr(fn, "__name__", None) or type(fn).__name__
    if name == "<lambda>":
        raise TypeError("a metric that is a lambda has no name: Metric(fn, name='...')")
    return str(name)


def accuracy(y_pred: Array, ys: Array) -> Array:
    """Compute the share of rows whose largest entry is the label.

    Args:
        y_pred: logits or probabilities, ``(..., classes)``.
        ys: labels ``(...)`` of any integer dtype, or one-hot rows of the shape of ``y_pred``.

    Returns:
        A 0-d array in [0, 1].

    Raises:
        LossError: ``ys`` has neither of these shapes, or there is a single class.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.accuracy(np.eye(3), np.array([0, 1, 1]))).__round__(4)
        0.6667
    """
    xp = namespace_of(y_pred).xp
    labels = _labels("accuracy", y_pred, ys, xp)
    best = xp.argmax(y_pred, axis=-1)
    if best.dtype != labels.dtype:  # TensorFlow compares only equal dtypes
        labels = xp.astype(labels, best.dtype)
    return xp.mean(best == labels)


def top_k_accuracy(k: int = 5) -> Callable[[Array, Array], Array]:
    """A metric: the share of rows whose label is among the ``k`` largest entries; of equal ones the first is larger.

    Args:
        k: at least 1.

    Returns:
        A function as `accuracy`, of the name ``top_5_accuracy``, which takes the same shapes.

    Raises:
        ValueError: ``k`` is no such number.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> y_pred = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
        >>> float(lc.top_k_accuracy(2)(y_pred, np.array([1, 2])))
        0.5
        >>> lc.Metric(lc.top_k_accuracy(2)).name
        'top_2_accuracy'
    """
    if not is_whole(k, least=1):
        raise ValueError(f"top_k_accuracy({k!r}): a whole number, at least 1")

    return _TopK(k)


class _TopK:
    """A metric that `top_k_accuracy` makes; a class, so that it can be pickled."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.__name__ = f"top_{k}_accuracy"

    def __call__(self, y_pred: Array, ys: Array) -> Array:
        xp = namespace_of(y_pred).xp
        labels = _labels(self.__name__, y_pred, ys, xp)
        labels = xp.expand_dims(xp.astype(labels, xp.int32), axis=-1)
        # Counted and not sorted: how many entries are larger than that of the label says all, at the cost of one pass.
        of_label = xp.take_along_axis(y_pred, labels, axis=-1)
        classes = xp.arange(y_pred.shape[-1], dtype=xp.int32)
        behind = (y_pred < of_label) | ((y_pred == of_label) & (classes >= labels))  # a NaN is behind nobody
        return xp.mean(xp.sum(xp.astype(~behind, xp.int32), axis=-1) < self.k)

    def __repr__(self) -> str:
        return f"top_k_accuracy({self.k})"


def _labels(name: str, y_pred: Array, ys: Array, xp: ArrayNamespace) -> Array:
    """Make labels ``(...)`` of labels or one-hot rows.

    Raises:
        LossError: they have another shape, which would broadcast without a word, or there is a single class.
    """
    shape, labels_shape = y_pred.shape, ys.shape
    if len(shape) and shape[-1] != 1:
        if labels_shape == shape[:-1]:
            return ys
        if labels_shape == shape:
            return xp.argmax(ys, axis=-1)
    raise LossError(
        f"{name} got y_pred of shape {tuple(shape)} and {ys.dtype} ys of shape {tuple(labels_shape)}: {_fit(shape)}"
    )


def _fit(shape: Sequence[int]) -> str:
    """Say what to write instead, for predictions of a shape."""
    if not len(shape):
        return "y_pred has the shape (..., classes), and there is one label for each row"
    if shape[-1] == 1:
        return (
            "with a single class it is always right; for one logit of two classes pass a metric that takes y_pred > 0"
        )
    return f"write integer labels of shape {tuple(shape[:-1])}, or one-hot rows of the shape of y_pred"
