"""Arrays that a compiled step keeps as they are now, found by looking at the code and the objects it can reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from loopcore._utils.packages import CALLBACKS, is_ours
from loopcore.callback import Callback, name_of
from loopcore.execution.program_keys import global_names
from loopcore.handles.trees import is_container
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerParts

if TYPE_CHECKING:
    from loopcore.backend.protocol import Backend

_DEPTH = 4  # of containers in containers


def baked_in(learner: LearnerParts, phase: Phase, callbacks: Iterable[Callback]) -> list[str]:
    """Each array that is no input of the steps of a phase, with where it is and what it is.

    Looked at are the methods of the phase, the loss and the functions of callbacks, with the globals and variables
    from outside that they name, and functions of the same module that they name; and what the phase, traced callbacks
    and their metrics hold. An array that the phase holds itself is an input, and not listed.
    """
    arrays: dict[int, str] = {}
    visited: set[int] = set()

    def note(where: str, value: Any, depth: int = 0) -> None:
        if learner.backend.is_array(value):
            shape, dtype = learner.backend.signature(value)
            arrays.setdefault(id(value), f"{where} ({dtype}{list(shape)})")
        elif isinstance(value, (FunctionType, MethodType)):
            if id(value) not in visited:
                visited.add(id(value))
                for name, reached_value in _reached(value):
                    if not callable(reached_value) or getattr(reached_value, "__module__", None) == value.__module__:
                        note(f"{name} in {value.__qualname__}", reached_value, _DEPTH)
        elif depth < _DEPTH:
            for key, part in _parts(learner.backend, value):
                note(f"{where}{key}", part, depth + 1)

    for method in _methods(phase):
        note("", method)
    for name, value in vars(phase).items():
        if not learner.backend.is_array(value):
            note(f"{type(phase).__name__}.{name}", value)
    note("", learner.loss_fn)
    for callback in callbacks:
        if any(listener.traced for listener in callback.listeners):
            owner = callback.identity()
            of_loopcore = is_ours(type(owner).__module__, CALLBACKS)
            for name, value in vars(owner).items():
                if not (of_loopcore and name.startswith("_")):  # what they keep for themselves no program depends on
                    note(f"{name_of(callback)}.{name}", value)
    return list(arrays.values())


def _methods(phase: Phase) -> Iterator[FunctionType]:
    """Functions that the classes of the user define."""
    for cls in type(phase).__mro__:
        of_loopcore = is_ours(cls.__module__, "loopcore") and not is_ours(cls.__module__, "loopcore.testing")
        if not of_loopcore and cls is not object:
            yield from (value for value in vars(cls).values() if isinstance(value, FunctionType))


def _parts(backend: Backend, value: Any) -> Iterator[tuple[str, Any]]:
    """What a container, a dataclass, a tree of the framework or a metric holds."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif hasattr(type(value), "__dataclass_fields__") or hasattr(value, "fn"):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    elif is_container(backend, value):
        yield from ((f" leaf {number}", part) for number, part in enumerate(backend.tree_leaves(value)))


def _reached(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Globals and variables from outside that a function, or one within it, names."""
    code: CodeType = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in global_names(code):
        if name in function.__globals__:
            yield name, function.__globals__[name]
