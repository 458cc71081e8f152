"""Step values that pass from one step to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loopcore.errors import CarryError

if TYPE_CHECKING:
    from loopcore.backend.protocol import Backend
    from loopcore.phases.base import Phase
    from loopcore.state import State


def detach_carry(backend: Backend, state: State, names: Sequence[str]) -> dict[str, Any]:
    """Return the carried values of a step that ended, constant for every later gradient."""
    # Otherwise the gradient of a step would reach into all steps before it, and each would keep the graph of the last.
    values = state.__dict__
    return {name: backend.stop_gradient(values[name]) for name in names if name in values}


def check_started(phase: Phase, state: State) -> None:
    """Look for the first values, before a body that needs them runs.

    Raises:
        CarryError: `Phase.start` did not write one, and it was no part of the batch either.
    """
    for name in phase.carries:
        if name not in state.__dict__:
            raise CarryError(
                f"{type(phase).__name__} carries {name!r}, but no value was there: write state.{name} in "
                "start(self, learner, state)"
            )


def check_carry(backend: Backend, phase: Phase, before: dict[str, Any], state: State) -> None:
    """Compare the carried values at the end of a step with those it began with.

    Raises:
        CarryError: a value is gone, or changed its structure, shape or dtype; names the leaf.
    """
    for name in phase.carries:
        where = f"{type(phase).__name__} carries {name!r}"
        if name not in before or name not in state.__dict__:
            raise CarryError(f"{where}, but its value is gone: the body must not delete it")
        old, new = backend.tree_leaves(before[name]), backend.tree_leaves(state.__dict__[name])
        if len(old) != len(new):
            raise CarryError(f"{where}, but it began the step with {len(old)} arrays and ended it with {len(new)}")
        # A compiled step would be traced anew for another structure, shape or dtype, and an eager one would not notice:
        # so the rule is the same for both.
        if backend.tree_structure(before[name]) != backend.tree_structure(state.__dict__[name]):
            raise CarryError(f"{where}, but its structure changed within the step: a carried value keeps it")
        for index, (before_kind, after_kind) in enumerate(zip(old, new, strict=True)):
            if backend.is_array(before_kind) and backend.signature(before_kind) != backend.signature(after_kind):
                (shape, dtype), (shape_now, dtype_now) = backend.signature(before_kind), backend.signature(after_kind)
                raise CarryError(
                    f"{where}, but its array {index} changed within the step from {dtype}{list(shape)} to "
                    f"{dtype_now}{list(shape_now)}: a carried value keeps its shape and dtype"
                )
