"""The learner behind the guarded view of a callback, for the callbacks that come with the package."""

from __future__ import annotations

from typing import Protocol, cast

from loopcore.protocols import LearnerParts, LearnerView


class _Guarded(Protocol):
    """A guarded view, with the learner behind it."""

    _learner: LearnerParts


def unguarded(view: LearnerView) -> LearnerParts:
    """Return the learner itself, to look at what no callback can declare to read, such as how many steps began.

    Args:
        view: what a handler or ``setup`` got.
    """
    return cast(_Guarded, view)._learner  # pyright: ignore[reportPrivateUsage]  # past the guard
