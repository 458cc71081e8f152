"""The update rules of the neutral specs, as TensorFlow's own kernels; all hyperparameters are inputs.

Kernels and not optimizers of Keras, which bake every hyperparameter but the learning rate into a program, and whose
momentum and epsilon mean something else than those of torch and optax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from loopcore.backend import Array
from loopcore.errors import OptimizerError
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec

Hyper = Mapping[str, Array]


class Rule(NamedTuple):
    """How a spec updates one variable.

    Attributes:
        hyper: hyperparameters and their first values.
        slots: names of what is kept for each variable, zeros at first.
        apply: ``apply(variable, slots, grad, hyper, count)``, with the number of this update, from 1.
    """

    hyper: dict[str, float]
    slots: tuple[str, ...]
    apply: Callable[[Any, tuple[Any, ...], Array, Hyper, Array], None]


def rule_of(spec: OptimizerSpec) -> Rule:
    """Find how TensorFlow's kernels update a variable as a neutral spec says.

    Raises:
        OptimizerError: there is no kernel for it.
    """
    # AdamW is a subclass of Adam and comes first.
    match spec:
        case AdamW():
            hyper = {"momentum": spec.beta1, "weight_decay": spec.weight_decay}
            return Rule({"learning_rate": spec.learning_rate, **hyper}, ("mean", "square"), _adam(spec))
        case Adam():
            hyper = {"learning_rate": spec.learning_rate, "momentum": spec.beta1}
            return Rule(hyper, ("mean", "square"), _adam(spec))
        case Momentum():
            return Rule({"learning_rate": spec.learning_rate, "momentum": spec.momentum}, ("velocity",), _momentum)
        case SGD():
            return Rule({"learning_rate": spec.learning_rate}, (), _sgd)
        case _:
            raise OptimizerError(
                f"TensorFlow has nothing for {spec!r}: use SGD, Momentum, Adam or AdamW, or pass an optimizer of Keras"
            )


# The kernels write into the memory of the variable and its slots, in one pass each.


def _sgd(variable: Any, slots: tuple[Any, ...], grad: Array, hyper: Hyper, count: Array) -> None:
    """Update a variable by stochastic gradient descent."""
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=hyper["learning_rate"], delta=grad)


def _momentum(variable: Any, slots: tuple[Any, ...], grad: Array, hyper: Hyper, count: Array) -> None:
    """Update a variable by gradient descent with momentum, as torch and optax have it."""
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=slots[0].handle, lr=hyper["learning_rate"], grad=grad, momentum=hyper["momentum"]
    )


def _adam(spec: Adam) -> Callable[[Any, tuple[Any, ...], Array, Hyper, Array], None]:
    """Make the function that updates a variable by Adam, or with a weight decay by AdamW."""

    def apply(variable: Any, slots: tuple[Any, ...], grad: Array, hyper: Hyper, count: Array) -> None:
        dtype, rate, beta1 = variable.dtype, hyper["learning_rate"], hyper["momentum"]
        beta2 = tf.constant(spec.beta2, dtype)
        powers = beta1**count, beta2**count
        # Decoupled: the weights decay by themselves before the step, and the moments see nothing of it.
        if "weight_decay" in hyper:
            variable.assign_sub(rate * hyper["weight_decay"] * variable)
        mean, square = slots
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=mean.handle,
            v=square.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=spec.epsilon * tf.sqrt(1 - powers[1]),  # the kernel adds it to the root before the correction
            grad=grad,
        )

    return apply
