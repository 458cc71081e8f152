"""Which line of the user's an error comes from."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from loopcore._utils.packages import CALLBACKS, CONFORMANCE, PACKAGES, is_ours

HINT = "Here it is "  # how a note begins that says what to write instead at this place


# fmt: off
_FRAMEWORKS = (
    "jax", "jaxlib", "flax", "optax", "equinox", "haiku", "tensorflow", "keras", "torch", "autograd", "numpy", "optree",
    "contextlib", "threading",
)


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
    if is_ours(module):
        return not is_ours(module, CONFORMANCE, CALLBACKS)  # a user reads these as they read code of their own
    return module.partition(".")[0] in _FRAMEWORKS


def of_lines(lines: Sequence[tuple[str, int]]) -> str:
    """Describe, as `where` does, the user's innermost of the lines that a framework recorded: file and number."""
    frameworks = [place for name in (*PACKAGES, *_FRAMEWORKS) for place in _places(name)]
    for name, line in reversed(lines):
        is_user_line = not _is_within(name, frameworks) or _is_within(name, _places(CONFORMANCE))
        if is_user_line:
            return f"{name}:{line}: {linecache.getline(name, line).strip()}: "
    return ""


def _places(name: str) -> list[str]:
    """The folders of a package, or the file of a module, that has been imported.

    A folder of the user's may have the name of a framework, so that names of folders alone tell nothing.
    """
    module = sys.modules.get(name)
    return [*getattr(module, "__path__", filter(None, [getattr(module, "__file__", None)]))]


def _is_within(file: str, places: Sequence[str]) -> bool:
    return any(Path(file).is_relative_to(place) for place in places)
