"""What `learner.losses` is on NumPy: ``f(y_pred, ys, reduction="mean")``, the class axis last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval, isbox

from loopcore.backend import Array
from loopcore.errors import LossError
from loopcore_numpy import derivatives as d
from loopcore_numpy import functions as f


def _pick_classes(logits: Any, labels: Any) -> Any:
    return -np.take_along_axis(d.log_softmax(logits, -1), labels[..., None], -1)[..., 0]


def _pick_vjp(ans: Any, logits: Any, labels: Any) -> Callable[[Any], Any]:
    def vjp(g: Any) -> Any:
        # The derivative of the loss by the logits is softmax minus one-hot.
        classes = np.arange(logits.shape[-1]) == labels[..., None]
        return f.expand_dims(g, -1) * (d.softmax(logits, -1) - classes.astype(logits.dtype))

    return vjp


_class_loss: Any = primitive(_pick_classes)
defvjp(_class_loss, _pick_vjp)


def cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Cross entropy of logits; ``"none"`` gives one loss per row.

    Args:
        y_pred: logits, ``(..., classes)``.
        ys: integer classes, ``(...)``, or probabilities, ``(..., classes)``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        LossError: the shapes do not fit, or a class is out of range.
        ValueError: an unknown reduction.
    """
    ys = ys if isbox(ys) else np.asarray(ys)
    if ys.dtype.kind in "iub":
        return _reduce(_class_loss(y_pred, _classes(getval(ys), y_pred.shape)), reduction)
    if ys.shape != y_pred.shape:
        raise LossError(
            f"cross_entropy of logits {y_pred.shape} takes probabilities of that shape, not {ys.shape}; or integer "
            f"classes of shape {y_pred.shape[:-1]}"
        )
    return _reduce(-f.sum(_like(ys, y_pred) * d.log_softmax(y_pred, -1), axis=-1), reduction)


def _classes(labels: Any, shape: tuple[int, ...]) -> Any:
    if labels.shape != shape[:-1]:
        raise LossError(
            f"cross_entropy of logits {shape} takes integer classes of shape {shape[:-1]}, not {labels.shape}: the "
            "class axis is the last one of the logits"
        )
    # NumPy would count a negative class from the end, as an index.
    if labels.size and not (labels.min() >= 0 and labels.max() < shape[-1]):
        raise LossError(
            f"cross_entropy of logits {shape} takes the classes 0 to {shape[-1] - 1}, "
            f"not {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.intp)


def binary_cross_entropy(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Cross entropy of logits of one class each against labels or probabilities in ``[0, 1]`` of their shape."""
    return _reduce(d.softplus(y_pred) - y_pred * _like(ys, y_pred), reduction)


def mse(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Squared difference."""
    return _reduce(f.square(y_pred - _like(ys, y_pred)), reduction)


def mae(y_pred: Array, ys: Array, reduction: str = "mean") -> Array:
    """Absolute difference."""
    return _reduce(f.abs(y_pred - _like(ys, y_pred)), reduction)


def huber(y_pred: Array, ys: Array, reduction: str = "mean", delta: float = 1.0) -> Array:
    """Half the squared difference up to ``delta``, from there on linear."""
    # Both branches are computed; each is finite where the other one is taken.
    distance = f.abs(y_pred - _like(ys, y_pred))
    near, far = 0.5 * f.square(distance), delta * (distance - 0.5 * delta)
    return _reduce(f.where(getval(distance) <= delta, near, far), reduction)


def _reduce(values: Array, reduction: str) -> Array:
    if reduction == "mean":
        return f.mean(values)
    if reduction == "sum":
        return f.sum(values)
    if reduction == "none":
        return values
    raise ValueError(f'reduction={reduction!r}: use "mean", "sum" or "none"')


def _like(ys: Any, y_pred: Array) -> Array:
    """Targets in the dtype of the prediction, so that integers or float64 do not widen the loss."""
    return ys if getattr(ys, "dtype", None) == y_pred.dtype else f.astype(ys, y_pred.dtype)


class Losses:
    """The loss functions by name."""

    cross_entropy = staticmethod(cross_entropy)
    binary_cross_entropy = staticmethod(binary_cross_entropy)
    mse = staticmethod(mse)
    mae = staticmethod(mae)
    huber = staticmethod(huber)
