"""Neutral optimizer specs: what to use, not how it is computed. The adapter builds its framework's own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerSpec:
    """Base of the specs. ``learning_rate`` is per update and must not be negative."""

    learning_rate: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(
                    f"{type(self).__name__}({name}={value!r}): a number is needed. To change it while training, "
                    f"assign learner.hyper.{name}"
                )
            if not value >= 0:
                raise ValueError(f"{type(self).__name__}({name}={value!r}): it must not be negative")


@dataclass(frozen=True)
class SGD(OptimizerSpec):
    """Plain gradient descent, ``w -= learning_rate * grad``.

    Args:
        learning_rate: factor of the gradient, at least 0.

    Raises:
        TypeError: a value is not a number.
        ValueError: a value is negative.

    Example:
        >>> import loopcore as lc
        >>> lc.SGD(0.1)
        SGD(learning_rate=0.1)
    """


@dataclass(frozen=True)
class Momentum(OptimizerSpec):
    """Gradient descent with heavy-ball momentum, ``v = momentum * v + grad; w -= learning_rate * v``.

    Args:
        learning_rate: factor of the velocity, at least 0.
        momentum: share of the velocity kept each update, usually below 1.

    Raises:
        TypeError: a value is not a number.
        ValueError: a value is negative.

    Example:
        >>> import loopcore as lc
        >>> lc.Momentum(0.1).momentum
        0.9
    """

    momentum: float = 0.9


@dataclass(frozen=True)
class Adam(OptimizerSpec):
    """Adam (Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980) with bias correction.

    Args:
        learning_rate: step size, at least 0.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        epsilon: added to the root in the denominator.

    Raises:
        TypeError: a value is not a number.
        ValueError: a value is negative.

    Example:
        >>> import loopcore as lc
        >>> lc.Adam(1e-3).beta2
        0.999
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101).

    Args:
        learning_rate: step size, at least 0.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        epsilon: added to the root in the denominator.
        weight_decay: each update also subtracts ``learning_rate * weight_decay * w``.

    Raises:
        TypeError: a value is not a number.
        ValueError: a value is negative.

    Example:
        >>> import loopcore as lc
        >>> lc.AdamW(1e-3).weight_decay
        0.01
    """

    weight_decay: float = 0.01
