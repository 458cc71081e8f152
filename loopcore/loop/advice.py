"""What to write instead, as a note to an error of a framework that left a step body."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loopcore.errors import LoopcoreError
from loopcore.protocols import LearnerParts

if TYPE_CHECKING:
    from loopcore.phases.base import Phase


def advise(error: BaseException, learner: LearnerParts, phase: Phase) -> None:
    """Add a note where NumPy arrays of the phase or of ``shared``, or dtypes, may be to blame.

    Args:
        error: what the body raised.
        learner: whose step it was.
        phase: of the step.
    """
    # Those say themselves what to write, and an interrupt is no error of the body.
    if isinstance(error, LoopcoreError) or not isinstance(error, Exception):
        return
    advice = getattr(learner.backend, "advice", None)
    note = None if advice is None else advice(error)
    if note is not None:
        error.add_note(note)
    elif learner.backend.name != "numpy" and "numpy" in str(error).lower():
        holders = ((f"self.{name}", value) for name, value in vars(phase).items())
        shared = ((f"learner.shared.{name}", value) for name, value in vars(learner.shared).items())
        # Without one the error is about something else, and a note would mislead.
        names = [name for name, value in (*holders, *shared) if isinstance(value, np.ndarray)]
        if names:
            error.add_note(
                f"{', '.join(names)}: NumPy arrays. Functions of learner.xp take them on every backend, operators do "
                f"not: write learner.xp.asarray({names[0]})"
            )
