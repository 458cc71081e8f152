"""What to say where arrays of two frameworks meet."""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TypeVar

from loopcore._utils.user_lines import is_of_a_framework
from loopcore.backend.registry import BUILT_IN
from loopcore.errors import BackendError, LoopcoreError

Result = TypeVar("Result")
_ROOTS = frozenset[str]().union(*(adapter.roots for adapter in BUILT_IN.values()))


def foreign(leaf: object, backend: str) -> str:
    """What to say of a part of a model that is no array of its backend."""
    kind = type(leaf)
    description = f"it is a {kind.__module__}.{kind.__qualname__}"
    if hasattr(leaf, "__array__") and hasattr(leaf, "shape"):
        return (
            f"{description}, and the backend is {backend}: make it with NumPy, which every backend takes, "
            "np.asarray(...), or choose the backend before arrays are made, lc.use(...), and leave backend= out"
        )
    return f"{description}, an array of floats is needed"


def called(fn: Callable[..., Result], title: str, backend: str, *args: object, **kwargs: object) -> Result:
    """``fn(*args, **kwargs)`` for a model's function of the user.

    Raises:
        BackendError: it failed in a line that uses another framework than the one whose arrays it got.
    """
    try:
        return fn(*args, **kwargs)
    except LoopcoreError:
        raise
    except Exception as error:
        mixed = _mixed(error, title, backend)
        if mixed is None:
            raise
        raise mixed from error


def _mixed(error: Exception, title: str, backend: str) -> BackendError | None:
    own_roots = BUILT_IN[backend].roots if backend in BUILT_IN else frozenset({backend})
    frames = list(traceback.walk_tb(error.__traceback__))
    users = [(frame, line) for frame, line in frames if not is_of_a_framework(frame)]
    if not users:
        return None
    frame, line = users[-1]
    foreign_names = {name: root for name, root in _names_on(frame, line).items() if root not in own_roots}
    fetched = any(inner.f_code.co_name == "__array__" for inner, _ in frames)
    if not fetched:  # a line may well name NumPy: it is to blame only if it fetched the values of an array
        foreign_names = {
            name: root for name, root in foreign_names.items() if root != "numpy" or not _is_module(frame, name)
        }
    if not foreign_names:
        return None
    names = ", ".join(f"{name} ({root})" for name, root in foreign_names.items())
    place = f"{frame.f_code.co_filename}:{line}: {linecache.getline(frame.f_code.co_filename, line).strip()}"
    return BackendError(
        f"{place}: {title} runs on {backend}, and this line uses {names}. A function for every backend computes with "
        "operators and lc.xp, and makes constants by lc.xp.asarray inside; arrays that were made before the backend "
        f"was chosen belong to another one: call lc.use({backend!r}) first"
    )


def _names_on(frame: FrameType, line: int) -> dict[str, str]:
    """Names on a line that stand for a framework: its modules, functions and arrays, each with its root."""
    code, source = frame.f_code, linecache.getline(frame.f_code.co_filename, line)
    names = (*code.co_names, *code.co_varnames, *code.co_freevars)
    on_line = [name for name in dict.fromkeys(names) if not source or re.search(rf"\b{re.escape(name)}\b", source)]
    roots = {name: _root_of(frame.f_locals.get(name, frame.f_globals.get(name))) for name in on_line}
    return {name: root for name, root in roots.items() if root in _ROOTS}


def _is_module(frame: FrameType, name: str) -> bool:
    value = frame.f_locals.get(name, frame.f_globals.get(name))
    return not hasattr(value, "dtype")


def _root_of(value: object) -> str:
    if isinstance(value, ModuleType):
        name = value.__name__
    elif inspect.isroutine(value) or isinstance(value, type):
        name = str(getattr(value, "__module__", None) or "")
    else:
        name = type(value).__module__
    return name.partition(".")[0]
