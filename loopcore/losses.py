"""Neutral losses: names that every backend maps to its framework's own.

Each takes ``y_pred`` and ``ys`` and a ``reduction``: ``"mean"`` and ``"sum"`` give a 0-d array, ``"none"`` one value
per row (cross entropy) or per element. They work on the arrays of any backend, and as ``loss_fn`` of a Learner.
"""

from __future__ import annotations

from functools import partial
from inspect import isfunction, ismethod
from typing import Any, Literal

from loopcore.errors import LossError
from loopcore.registry import namespace_of

__all__ = ["binary_cross_entropy", "cross_entropy", "huber", "mae", "mse"]

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(y_pred: Any, ys: Any, reduction: Reduction = "mean") -> Any:
    """Cross entropy of logits.

    Args:
        y_pred: logits, ``(..., classes)``, floating.
        ys: labels ``(...)`` of any integer dtype, or probabilities of the shape of ``y_pred``.
        reduction: over all rows.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))).__round__(4)
        1.3863
    """
    return namespace_of(y_pred).losses.cross_entropy(y_pred, ys, reduction)


def binary_cross_entropy(y_pred: Any, ys: Any, reduction: Reduction = "mean") -> Any:
    """Binary cross entropy of logits.

    Args:
        y_pred: logits, any shape, floating.
        ys: targets in [0, 1] of the same shape; integers and bools are allowed.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.binary_cross_entropy(np.zeros(3), np.array([0.0, 1.0, 1.0]))).__round__(4)
        0.6931
    """
    _same_shape("binary_cross_entropy", y_pred, ys)
    return namespace_of(y_pred).losses.binary_cross_entropy(y_pred, ys, reduction)


def mse(y_pred: Any, ys: Any, reduction: Reduction = "mean") -> Any:
    """Squared error.

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.mse(np.array([1.0, 3.0]), np.array([0.0, 0.0])))
        5.0
    """
    _same_shape("mse", y_pred, ys)
    return namespace_of(y_pred).losses.mse(y_pred, ys, reduction)


def mae(y_pred: Any, ys: Any, reduction: Reduction = "mean") -> Any:
    """Absolute error.

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.mae(np.array([1.0, -3.0]), np.array([0.0, 0.0])))
        2.0
    """
    _same_shape("mae", y_pred, ys)
    return namespace_of(y_pred).losses.mae(y_pred, ys, reduction)


def huber(y_pred: Any, ys: Any, reduction: Reduction = "mean") -> Any:
    """Huber loss with threshold 1: quadratic near zero, linear beyond (Huber, 1964).

    Args:
        y_pred: predictions, any shape, floating.
        ys: targets of the same shape.
        reduction: over all elements.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> float(lc.losses.huber(np.array([3.0]), np.array([0.0])))
        2.5
    """
    _same_shape("huber", y_pred, ys)
    return namespace_of(y_pred).losses.huber(y_pred, ys, reduction)


def _same_shape(name: str, y_pred: Any, ys: Any) -> None:
    if tuple(y_pred.shape) != tuple(ys.shape):  # (n, 1) against (n,) would broadcast to (n, n) without a word
        raise LossError(
            f"{name} got y_pred of shape {tuple(y_pred.shape)} and ys of shape {tuple(ys.shape)}: make them equal, "
            "for instance with learner.xp.expand_dims(ys, axis=-1)"
        )


def predictions_first(fn: Any) -> Any:
    """A function in the order ``(y_pred, ys)``.

    Keras losses and scikit-learn metrics take the labels first, and so does what names them ``(y_true, y_pred)``.
    """
    if roots(fn) & {"keras", "sklearn"} or _parameters(fn)[:2] == ("y_true", "y_pred"):
        return lambda y_pred, ys, *args, **kwargs: fn(ys, y_pred, *args, **kwargs)
    return fn


def roots(fn: Any) -> set[str]:
    """The packages that a function, what a partial stands for, or the classes of an object come from."""
    fn = _within(fn)
    function = fn.__func__ if ismethod(fn) else fn
    if isfunction(function):  # not what functools.wraps says of it
        modules = [str(function.__globals__.get("__name__", ""))]
    else:
        modules = [str(getattr(function, "__module__", ""))]
    holder = fn.__self__ if ismethod(fn) else fn  # a class of the user's own may extend one of Keras
    return {name.split(".")[0] for name in (*modules, *(cls.__module__ for cls in type(holder).__mro__))}


def _parameters(fn: Any) -> tuple[str, ...]:
    """Names of the parameters of a Python function or method, without ``self``."""
    fn = _within(fn)
    code = getattr(fn, "__code__", None)
    names: tuple[str, ...] = () if code is None else code.co_varnames[: code.co_argcount]
    return names[1:] if ismethod(fn) else names


def _within(fn: Any) -> Any:
    """What a ``functools.partial`` stands for."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn
