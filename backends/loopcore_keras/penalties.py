"""What Keras's own fit adds to the loss: regularizers and the terms of ``add_loss``. loopcore's loss lacks them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from loopcore_keras.names import within


def regularizers(layer: Any, params: Mapping[str, Any]) -> list[str]:
    """Those of a model in words; ``params`` are its trainable variables by path."""
    found = [f"regularizer of {path!r}" for path, variable in params.items() if getattr(variable, "regularizer", None)]
    active = [one.name for one in within(layer) if getattr(one, "activity_regularizer", None) is not None]
    return found + [f"activity_regularizer of {name!r}" for name in active]


def warn_of(title: str, what: str) -> None:
    """Say that a penalty is left out, and what to write instead."""
    warnings.warn(
        f"{title} has {what}, which fit of Keras adds to the loss and loopcore does not: add the penalty to the loss "
        "in the objective of the phase, from learner.params.value or from what the model returns",
        stacklevel=2,
    )
