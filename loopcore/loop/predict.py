"""``learner.predict``: how a model is called with a batch that is a mapping, and what becomes of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopcore.errors import DataError


def names_taken(native: Any, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of a batch that a model takes by their names; none if it wants others, as one that takes a dict does.

    Args:
        native: the user's model.
        batch: a mapping, the parts of a batch by name.
    """
    pair = isinstance(native, tuple)
    model = native[0] if pair else native
    call = getattr(model, "forward", None) or getattr(model, "call", None) or model
    try:
        parameters = list(inspect.signature(call).parameters.values())
    # Built-in and compiled callables have no signature to ask for.
    except (TypeError, ValueError):
        return ()
    if pair and inspect.isfunction(model):
        parameters = parameters[len(native) - 1 :]  # (apply_fn, params[, state])
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return tuple(batch)
    by_name = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    # A parameter that no part fills: the parts are no arguments, so the model gets the mapping as it is.
    if any(parameter.default is parameter.empty and parameter.name not in batch for parameter in by_name):
        return ()
    return tuple(parameter.name for parameter in by_name if parameter.name in batch)


def joined(outputs: Sequence[Any]) -> Any:
    """Values of one place in the outputs of all batches: concatenated; scalars stacked, None as it is, others listed.

    Raises:
        DataError: arrays of different shapes.
    """
    if all(output is None for output in outputs):
        return None
    if not all(isinstance(output, (np.ndarray, np.generic)) for output in outputs):
        return list(outputs)
    # One number for each batch, such as a loss in the outputs: concatenate refuses them.
    if not all(np.ndim(output) for output in outputs):
        return np.stack(outputs)
    try:
        return np.concatenate(outputs)
    except ValueError as error:
        shapes = ", ".join(dict.fromkeys(str(np.shape(output)) for output in outputs))
        raise DataError(
            f"the outputs of the batches have the shapes {shapes}, which cannot be one array: pad them, or predict "
            "batch by batch, learner.predict([batch])"
        ) from error
