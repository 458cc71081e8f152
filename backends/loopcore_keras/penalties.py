"""What Keras's own fit adds to the loss, or leaves out of it, and loopcore's loss does not: penalties and masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from loopcore_keras.variable_paths import within


def regularizers(layer: Any, params: Mapping[str, Any]) -> list[str]:
    """Describe the regularizers of a model for a message; ``params`` are its trainable variables by path."""
    # Of a weight, as by kernel_regularizer, and of an output, as by activity_regularizer.
    weights = [
        f"regularizer of {path!r}" for path, variable in params.items() if getattr(variable, "regularizer", None)
    ]
    active = [part.name for part in within(layer) if getattr(part, "activity_regularizer", None) is not None]
    return weights + [f"activity_regularizer of {name!r}" for name in active]


def warn_of(title: str, penalties: str) -> None:
    """Warn that penalties of a model are left out of the loss, and say what to write instead."""
    warnings.warn(
        f"{title} has {penalties}, which fit of Keras adds to the loss and loopcore does not: add the penalty "
        "to the loss in the objective of the phase, from learner.params.value or from what the model returns",
        stacklevel=2,
    )


def warn_of_mask(title: str) -> None:
    """Warn that metrics and losses do not see the mask of a model's output, and say what to write instead."""
    warnings.warn(
        f"{title} masks its output (as Embedding(mask_zero=True) does): a loss of Keras leaves out what is masked, but "
        "lc.losses, losses of your own and metrics do not see the mask: multiply by it in the step of a phase, and "
        "set state.weight to the number of values that count",
        stacklevel=2,
    )
