"""What a compiled step depends on besides its arrays: Python values, as keys of the cache of programs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType
from typing import Any

from loopcore.errors import TraceError

_SCALARS = (bool, int, float, complex, str, bytes, type(None))


def frozen(value: Any) -> Hashable:
    """A key for a Python value: scalars, containers and dataclasses by content, anything else by identity."""
    if isinstance(value, _SCALARS):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple((frozen(key), frozen(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(frozen, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(frozen(getattr(value, field.name)) for field in fields(value))
    return type(value), id(value)


def body_key(body: Callable[..., Any], is_array: Callable[[Any], bool]) -> Hashable:
    """A key for a step body: its code and what it closes over.

    Raises:
        TraceError: it closes over an array, which the program would keep as it is now.
    """
    if isinstance(body, MethodType):
        return body.__func__, id(body.__self__)
    if not isinstance(body, FunctionType):
        return id(body)
    cells = zip(body.__code__.co_freevars, body.__closure__ or (), strict=True)
    held = [(name, cell.cell_contents) for name, cell in cells]
    names = [name for name in body.__code__.co_names if name in body.__globals__]
    held += [(name, body.__globals__[name]) for name in names if is_array(body.__globals__[name])]
    for name, value in held:
        if is_array(value):
            raise TraceError(
                f"the body {body.__qualname__} ({body.__code__.co_filename}:{body.__code__.co_firstlineno}) uses the "
                f"array {name!r} from outside, which a compiled step would keep as it is now: pass it as a value of "
                f"the state, lc.run_step(body, learner, phase, {name}={name})"
            )
    inner = [(name, body_key(v, is_array) if isinstance(v, FunctionType) else frozen(v)) for name, v in held]
    return body.__code__, tuple(inner)
