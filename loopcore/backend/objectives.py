"""What adapters say of an objective that cannot be differentiated, the same on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from loopcore.backend.protocol import Array, Tree
from loopcore.errors import LossError


def shape_error(shape: Iterable[int | None]) -> LossError:
    """Make the error for a loss that is an array of more than one number."""
    return LossError(
        f"the objective returned a loss of shape {tuple(shape)}, a scalar is needed: use "
        'reduction="mean" in the loss, or learner.xp.mean(loss)'
    )


def kind_error(result: object, number: str) -> LossError:
    """Make the error for what an objective returned that holds no array.

    Args:
        result: what it returned.
        number: goes on where that is a Python number: why it will not do, and what to return.
    """
    if result is None:
        return LossError("the objective returned nothing: end it with return state.loss")
    if isinstance(result, (int, float)):
        return LossError(f"the objective returned the number {result!r}, {number}")
    return LossError(f"the objective returned a {type(result).__name__}: return a scalar, or a tuple of scalars")


def argument_names(args: Sequence[Tree], leaves_of: Callable[[Tree], list[Array]]) -> Iterator[str]:
    """Name each leaf of the arguments of a function, as messages call it."""
    for position, arg in enumerate(args):
        leaves = leaves_of(arg)
        is_leaf = len(leaves) == 1 and leaves[0] is arg
        yield from (
            f"argument {position}" if is_leaf else f"leaf {number} of argument {position}"
            for number in range(len(leaves))
        )


def unreached(losses: int, names: Sequence[str]) -> str:
    """Say that losses, so many, depend on none of the named parameters or arguments."""
    subject = "the loss does" if losses == 1 else "the losses do"
    listing = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"{subject} not depend on {listing}: compute it inside the objective from learner.model(...); what was "
        "computed before it began, values cut by stop_gradient and integers are constants"
    )
