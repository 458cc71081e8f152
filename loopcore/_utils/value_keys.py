"""Keys for Python values: scalars and containers by content, anything else by identity."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass

SCALARS = (bool, int, float, complex, str, bytes, type(None))


class IdentityKey:
    """An object in a key, by identity. The key keeps it alive, so that no other one can get its id."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityKey) and other._value is self._value


def frozen(value: object) -> Hashable:
    """A key for a Python value: scalars, containers and dataclasses by content, anything else by identity."""
    if isinstance(value, SCALARS):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple((frozen(key), frozen(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(frozen, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(frozen(getattr(value, field.name)) for field in fields(value))
    return IdentityKey(value)


def same(value: object) -> Hashable:
    """A key for a Python value: scalars by content, anything else by identity."""
    return (type(value), value) if isinstance(value, SCALARS) else IdentityKey(value)
