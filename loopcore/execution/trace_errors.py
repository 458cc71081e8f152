"""What to say of an error inside a compiled step."""

from __future__ import annotations

from typing import Any

from loopcore._utils.user_lines import HINT, of_lines, where
from loopcore.errors import TraceError


def explained(error: Exception, backend: Any, phase: Any) -> Exception:
    """Return the error to raise: one that teaches where a value was read that a compiled step does not have."""
    if isinstance(error, backend.tracing_errors):
        # What an adapter said about the place goes along: the new error replaces the one that has it.
        notes: list[str] = getattr(error, "__notes__", [])
        hints = "".join(f". {note}" for note in notes if note.startswith(HINT))
        return TraceError(
            f"{where(error)}a step of phase {phase.name!r} reads the concrete value of an array. While a step is "
            "compiled, arrays have no values yet: move it to a callback, which sees them, or set compile = False on "
            f"the phase. For a choice between arrays write learner.xp.where(condition, a, b){hints}"
        )
    if isinstance(error, backend.leak_errors):
        place = where(error) or of_lines(getattr(error, "lines", ()))
        return TraceError(
            f"{place}a step of phase {phase.name!r} uses an array that an earlier compiled step left behind "
            "in a Python object: keep it in learner.shared, or in the state, where it is handed on"
        )
    return error
