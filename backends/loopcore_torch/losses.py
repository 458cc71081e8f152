"""The neutral losses, as torch's own: ``f(y_pred, ys, reduction="mean")``, class axis last."""

from __future__ import annotations

from torch import Tensor, int64
from torch.nn import functional

from loopcore.errors import LossError

_REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(y_pred: Tensor, ys: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy of logits ``(..., classes)`` with integer labels ``(...)`` or probabilities ``(..., classes)``.

    Raises:
        LossError: ``ys`` has neither of these shapes.
        ValueError: unknown reduction.
    """
    if reduction not in _REDUCTIONS:
        raise _unknown(reduction)
    if ys.shape == y_pred.shape[:-1] and not ys.is_floating_point():
        # torch takes class indices in int64, and probabilities in the dtype of the logits.
        if ys.dtype is not int64:
            ys = ys.to(int64)
    elif ys.shape == y_pred.shape:
        ys = ys.to(y_pred.dtype)
    else:
        raise LossError(
            f"cross_entropy got y_pred of shape {tuple(y_pred.shape)} and {ys.dtype} ys of shape {tuple(ys.shape)}: "
            f"write integer labels of shape {tuple(y_pred.shape[:-1])}, or probabilities of the shape of y_pred"
        )
    if y_pred.ndim == 2:
        return functional.cross_entropy(y_pred, ys, reduction=reduction)
    shape = y_pred.shape[:-1]  # torch wants the classes on axis 1
    rows = ys.reshape(-1, y_pred.shape[-1]) if ys.shape == y_pred.shape else ys.reshape(-1)
    loss = functional.cross_entropy(y_pred.reshape(-1, y_pred.shape[-1]), rows, reduction=reduction)
    return loss.reshape(shape) if reduction == "none" else loss


def binary_cross_entropy(y_pred: Tensor, ys: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross entropy of logits with targets in [0, 1] of the same shape.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in _REDUCTIONS:
        raise _unknown(reduction)
    return functional.binary_cross_entropy_with_logits(y_pred, ys.to(y_pred.dtype), reduction=reduction)


def mse(y_pred: Tensor, ys: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in _REDUCTIONS:
        raise _unknown(reduction)
    return functional.mse_loss(y_pred, ys.to(y_pred.dtype), reduction=reduction)


def mae(y_pred: Tensor, ys: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute error of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in _REDUCTIONS:
        raise _unknown(reduction)
    return functional.l1_loss(y_pred, ys.to(y_pred.dtype), reduction=reduction)


def huber(y_pred: Tensor, ys: Tensor, reduction: str = "mean") -> Tensor:
    """Huber loss with threshold 1, of arrays of one shape.

    Raises:
        ValueError: unknown reduction.
    """
    if reduction not in _REDUCTIONS:
        raise _unknown(reduction)
    return functional.huber_loss(y_pred, ys.to(y_pred.dtype), reduction=reduction)


def _unknown(reduction: str) -> ValueError:
    return ValueError(f'reduction={reduction!r} is unknown: write "mean", "sum" or "none"')
