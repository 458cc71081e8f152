"""What a compiled step depends on besides its arrays: Python values, as keys of the cache of programs."""

from __future__ import annotations

import dis
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from itertools import islice
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, cast

from loopcore._utils.packages import CALLBACKS, is_ours
from loopcore._utils.value_keys import SCALARS, IdentityKey, frozen, same
from loopcore.errors import TraceError
from loopcore.handles.trees import is_container

if TYPE_CHECKING:
    from loopcore.backend.protocol import Backend

# The look is taken at every step, and a body may close over a list of a million samples.
_LOOK = 16  # parts of a container that are looked at for arrays


def body_key(body: Callable[..., Any], phase: Any, backend: Backend) -> Hashable:
    """A key for a step body: its code, and the Python values it uses from outside.

    Args:
        body: a method of the phase, whose attributes are no part of this key; or any function, method or object.
        phase: whose step it is.
        backend: tells arrays and trees of them from other values.

    Raises:
        TraceError: it uses an array from outside, which the program would keep as it is now.
    """
    if isinstance(body, FunctionType):
        # Not by identity: a body is often a closure that is made anew for each step, and has the same code.
        key = _function_key(body, backend, (body,))
        wrapped = getattr(body, "__wrapped__", None)
        return key if wrapped is None else (key, body_key(wrapped, phase, backend))
    owner, method = (body.__self__, body.__name__) if isinstance(body, MethodType) else (body, "__call__")
    if owner is phase:  # its attributes have a field of their own in the key; an equal phase has this key too
        return getattr(body, "__func__", None), type(owner)
    read = attributes_read(owner, (method,))
    return (
        getattr(body, "__func__", None),
        IdentityKey(owner),
        tuple((name, same(getattr(owner, name))) for name in read),
    )


def _function_key(function: FunctionType, backend: Backend, enclosing: tuple[Any, ...]) -> Hashable:
    parts: list[Hashable] = [function.__code__]
    for name, value in _from_outside(function, backend):
        if _holds_array(value, backend):
            code = function.__code__
            raise TraceError(
                f"the body {function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) uses the array {name!r} "
                "from outside, which a compiled step would keep as it is now: pass it as a value of the state, "
                f"lc.run_step(body, learner, phase, {name}={name})"
            )
        # A function that names itself, or two that name each other, would go on for ever.
        if isinstance(value, FunctionType) and value not in enclosing:
            parts.append((name, _function_key(value, backend, (*enclosing, value))))
        elif isinstance(value, MethodType):  # made anew at each access
            parts.append((name, value.__func__, IdentityKey(value.__self__)))
        else:
            parts.append((name, frozen(value)))
    return tuple(parts)


def _from_outside(function: FunctionType, backend: Backend) -> Iterator[tuple[str, Any]]:
    """Yield variables of the functions around it, defaults, and arrays and scalars among the globals it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    defaults = function.__defaults__ or ()
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    for name in global_names(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            # Functions, classes and modules of a file are taken to stay what they are: to look into all of them at
            # every step would cost more than the step.
            if isinstance(value, SCALARS) or _holds_array(value, backend):
                yield name, value


def _holds_array(value: Any, backend: Backend) -> bool:
    if isinstance(value, (dict, list, tuple)):
        parts = value.values() if isinstance(value, dict) else value
        return any(_holds_array(part, backend) for part in islice(parts, _LOOK))
    if is_container(backend, value):
        return any(map(backend.is_array, islice(backend.tree_leaves(value), _LOOK)))
    return backend.is_array(value)


@lru_cache(maxsize=1024)
def global_names(code: CodeType) -> tuple[str, ...]:
    """List the globals that a function, or one within it, names."""
    # By the bytecode: nothing else tells whether a name is a global or an attribute. `co_names` has both.
    names = [instruction.argval for instruction in dis.get_instructions(code) if instruction.opname == "LOAD_GLOBAL"]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names += global_names(inner)
    return tuple(dict.fromkeys(names))


def attributes_read(owner: Any, methods: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes of an object that some of its methods name, or methods of it that they name.

    Of loopcore's own callbacks only the public ones: what they keep for themselves, no program depends on.
    """
    cls = type(owner)
    names, attributes = names_read(cast(Any, cls), methods), getattr(owner, "__dict__", {})
    of_loopcore = is_ours(cls.__module__, CALLBACKS)
    return tuple(name for name in names if name in attributes and not (of_loopcore and name.startswith("_")))


@lru_cache(maxsize=1024)
def names_read(cls: type, methods: tuple[str, ...]) -> tuple[str, ...]:
    """List the attributes, of whatever object, that methods of a class name, or methods of it that they name."""
    # Of any object, not only of ``self``: the code does not tell them apart. A name too many does no harm, since only
    # attributes that are there are looked at.
    todo, names_found = list(methods), dict[str, None]()
    while todo:
        member: Any = getattr(cls, todo.pop(), None)
        # The getter of a property is code that runs where its name is read.
        member = member.fget if isinstance(member, property) else member
        if isinstance(member, FunctionType):
            new = [name for name in _all_names(member.__code__) if name not in names_found]
            names_found |= dict.fromkeys(new)
            todo += new
    return tuple(names_found)


def _all_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _all_names(inner)
