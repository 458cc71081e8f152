"""Which line of the user's an error inside a compiled step comes from."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from loopcore.errors import TraceError

HINT = "Here it is "  # how a note begins that says what to write instead at this place
_OURS = ("loopcore", "loopcore_jax", "loopcore_tensorflow", "loopcore_torch", "loopcore_numpy", "loopcore_keras")
# fmt: off
_OTHERS = (
    "jax", "jaxlib", "flax", "optax", "equinox", "haiku", "tensorflow", "keras", "torch", "autograd", "numpy", "optree",
    "contextlib", "threading",
)
# fmt: on


def explained(error: Exception, backend: Any, phase: Any) -> Exception:
    """The error to raise: one that teaches where a value was read that a compiled step does not have."""
    if isinstance(error, backend.tracing_errors):
        notes: list[str] = getattr(error, "__notes__", [])
        hints = "".join(f". {note}" for note in notes if note.startswith(HINT))
        return TraceError(
            f"{where(error)}a step of phase {phase.name!r} reads the concrete value of an array. While a step is "
            "compiled, arrays have no values yet: move it to a callback, which sees them, or set compile = False on "
            f"the phase. For a choice between arrays write learner.xp.where(condition, a, b){hints}"
        )
    if isinstance(error, backend.leak_errors):
        place = where(error) or _of_lines(getattr(error, "lines", ()))
        return TraceError(
            f"{place}a step of phase {phase.name!r} uses an array that an earlier compiled step left behind "
            "in a Python object: keep it in learner.shared, or in the state, where it is handed on"
        )
    return error


def where(error: BaseException) -> str:
    """``file:line: source: `` of the innermost frame that is the user's own; empty where there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not is_of_a_framework(frame):
            name = frame.f_code.co_filename
            return f"{name}:{line}: {linecache.getline(name, line).strip()}: "
    return ""


def is_of_a_framework(frame: FrameType) -> bool:
    """Whether a frame belongs to loopcore or to a framework, and not to the user."""
    module = str(frame.f_globals.get("__name__", ""))
    root = module.partition(".")[0]
    ours = root in _OURS and not module.startswith(("loopcore.testing.conformance", "loopcore.callbacks"))
    return ours or root in _OTHERS


def _of_lines(lines: Sequence[tuple[str, int]]) -> str:
    """The same for lines that a framework recorded: file and number of each."""
    for name, line in reversed(lines):
        parts = set(Path(name).parts)
        if "conformance" in parts or parts.isdisjoint((*_OURS, *_OTHERS, "contextlib.py")):
            return f"{name}:{line}: {linecache.getline(name, line).strip()}: "
    return ""
