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
    backend = learner.backend
    captured = _CapturedArrays(backend)
    for method in _methods(phase):
        captured.note("", method)
    for name, value in vars(phase).items():
        if not backend.is_array(value):
            captured.note(f"{type(phase).__name__}.{name}", value)
    captured.note("", learner.loss_fn)
    for callback in callbacks:
        if any(listener.traced for listener in callback.listeners):
            for name, value in _state_of(callback.identity()):
                captured.note(f"{name_of(callback)}.{name}", value)
    return list(captured.descriptions.values())


class _CapturedArrays:
    """A walk over values and functions that collects arrays.

    Attributes:
        descriptions: by the id of an array, where it was met first, and what it is.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._visited: set[int] = set()  # ids of functions
        # By id, so that one array under two names is listed once; whoever holds it keeps it alive meanwhile.
        self.descriptions: dict[int, str] = {}

    def note(self, where: str, value: Any, depth: int = 0) -> None:
        """Collect the arrays that a value is, holds or (as a function) names."""
        if self._backend.is_array(value):
            shape, dtype = self._backend.signature(value)
            self.descriptions.setdefault(id(value), f"{where} ({dtype}{list(shape)})")
        elif isinstance(value, (FunctionType, MethodType)):
            self._note_function(value)
        elif depth < _DEPTH:
            for key, part in _parts(self._backend, value):
                self.note(f"{where}{key}", part, depth + 1)

    def _note_function(self, function: FunctionType | MethodType) -> None:
        """Collect what a function names, but for functions and objects to call of other modules."""
        if id(function) in self._visited:  # functions may name each other
            return
        self._visited.add(id(function))
        for name, value in _reached(function):
            if not callable(value) or getattr(value, "__module__", None) == function.__module__:
                # At the last depth, so that containers among the globals are not walked through.
                self.note(f"{name} in {function.__qualname__}", value, _DEPTH)


def _state_of(callback: Callback) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a callback; no program depends on what loopcore's own keep for themselves."""
    of_loopcore = is_ours(type(callback).__module__, CALLBACKS)
    for name, value in vars(callback).items():
        if not (of_loopcore and name.startswith("_")):
            yield name, value


def _methods(phase: Phase) -> Iterator[FunctionType]:
    """Yield the functions that the classes of the user define."""
    for cls in type(phase).__mro__:
        of_loopcore = is_ours(cls.__module__, "loopcore") and not is_ours(cls.__module__, "loopcore.testing")
        if not of_loopcore and cls is not object:
            yield from (value for value in vars(cls).values() if isinstance(value, FunctionType))


def _parts(backend: Backend, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a container, a dataclass, a tree of the framework or a metric holds."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif hasattr(type(value), "__dataclass_fields__") or hasattr(value, "fn"):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    elif is_container(backend, value):
        yield from ((f" leaf {number}", part) for number, part in enumerate(backend.tree_leaves(value)))


def _reached(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield the globals and variables from outside that a function, or one within it, names."""
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
