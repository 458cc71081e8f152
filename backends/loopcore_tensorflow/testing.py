"""Models of this backend for the conformance suite: those of Keras."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from loopcore_keras.testing import batch_norm, batch_norm_correction, dropout, linear, mlp, neutral, structured

__all__ = ["batch_norm", "batch_norm_correction", "dropout", "linear", "mlp", "neutral", "structured"]

dtypes = ("float64", "float32")


def arrays(tree: Any, dtype: str) -> Any:
    """Make a dict of tensors of a dict of numbers."""
    return {name: tf.constant(value, dtype) for name, value in tree.items()}


def is_plain(array: Any) -> bool:
    """Whether it has a value, and stands for none in a trace."""
    return not tf.is_symbolic_tensor(array)
