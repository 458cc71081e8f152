"""What the array namespaces of all backends share: what an unknown name answers, and how host values come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from types import MemberDescriptorType
from typing import Any, TypeVar, cast

import numpy as np

from loopcore.backend.protocol import Array, HostArray, HostDtype, Namespace
from loopcore.backend.registry import owner_of, owners_of
from loopcore.errors import BackendError


class ArrayNamespace:
    """Base of the class of ``learner.xp``: names what there is, and says so where there is nothing.

    Example:
        >>> class Small(ArrayNamespace):
        ...     exp, log = np.exp, np.log
        >>> dir(Small())
        ['exp', 'log']
        >>> Small().gamma
        Traceback (most recent call last):
            ...
        AttributeError: xp has no 'gamma'. It holds what works on every backend: exp, log
    """

    __slots__ = ()
    _title = "xp"

    def __dir__(self) -> list[str]:
        names = (name for name in super().__dir__() if not name.startswith("_"))
        return sorted(name for name in names if not isinstance(getattr(type(self), name, None), MemberDescriptorType))

    def __getattr__(self, name: str) -> Array:
        if name.startswith("__"):  # Python itself asks, as dir() does for __dict__
            raise AttributeError(name, name=name, obj=self)
        raise AttributeError(
            f"{self._title} has no {name!r}. It holds what works on every backend: {', '.join(dir(self))}",
            name=name,
            obj=self,
        )


_Class = TypeVar("_Class", bound=type)


def taking_constants(backend: str, *, converts: bool = False) -> Callable[[_Class], _Class]:
    """Let the static functions of a namespace take NumPy arrays as constants, and name arrays of other frameworks.

    They are called as they are. Only what failed is looked at: with NumPy arrays among its arguments it is called once
    more with these made native.

    Args:
        backend: whose namespace it is.
        converts: whether the framework takes arrays of others by itself, and loses their gradient; they are looked
            for before the call then.
    """

    def decorated(cls: _Class) -> _Class:
        for name, member in list(vars(cls).items()):
            if isinstance(member, staticmethod):
                title = f"{cast(Any, cls)._title}.{name.lstrip('_')}"
                taking = _converting if converts else _taking
                setattr(cls, name, taking(title, member.__func__, backend))
        return cls

    return decorated


class LinalgNamespace(ArrayNamespace):
    """Base of the class of ``learner.xp.linalg``.

    Args:
        xp: whose it is.
    """

    __slots__ = ("_xp",)
    _title = "xp.linalg"

    def __init__(self, xp: ArrayNamespace) -> None:
        self._xp = xp


def _taking(title: str, function: Callable[..., Array], backend: str) -> Callable[..., Array]:
    @wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(self: Namespace, *args: object, **kwargs: object) -> Array:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            xp = self._xp if isinstance(self, LinalgNamespace) else self  # pyright: ignore[reportPrivateUsage]  # it is a method
            return function(*_native(xp, title, backend, args, error), **kwargs)

    return call


def _converting(title: str, function: Callable[..., Array], backend: str) -> Callable[..., Array]:
    """The same where the framework converts by itself: floats of NumPy get the parameters' dtype all the same."""
    inner = _taking(title, function, backend)

    @wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(self: Namespace, *args: object, **kwargs: object) -> Array:
        owners = owners_of(args)
        if owners - {backend, "numpy"}:
            raise BackendError(f"{title}: {mixture({backend, *owners})}")
        if "numpy" in owners:
            xp = self._xp if isinstance(self, LinalgNamespace) else self  # pyright: ignore[reportPrivateUsage]  # it is a method
            args = tuple(_native_leaves(args, lambda x: xp.asarray(x) if _is_host_float(x) else x))
        return inner(self, *args, **kwargs)

    return call


def _is_host_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and is_floating(value.dtype)


def _native_leaves(values: Sequence[object], fn: Callable[[object], object]) -> list[object]:
    """A function of arguments, and of what lists and tuples among them hold."""
    return [
        type(value)(_native_leaves(value, fn)) if type(value) is list or type(value) is tuple else fn(value)
        for value in values
    ]


def _native(xp: Namespace, title: str, backend: str, args: tuple[object, ...], error: Exception) -> tuple[object, ...]:
    """The arguments with NumPy's arrays made native, and a number in the place of the array."""
    owners = owners_of(args)
    if owners - {backend, "numpy"}:
        raise BackendError(f"{title}: {mixture({backend, *owners})}") from error
    number = bool(args) and isinstance(args[0], (int, float))  # as the condition of where is on the host
    if number:
        args = (xp.asarray(args[0]), *args[1:])
    if "numpy" not in owners:
        if number:
            return args
        raise error
    return tuple(_native_leaves(args, lambda x: xp.asarray(x) if owner_of(x) == "numpy" else x))


def refusing(title: str, function: Callable[..., Array], backend: str) -> Callable[..., Array]:
    """A function that names arrays of other frameworks, NumPy's apart."""

    @wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(*args: object, **kwargs: object) -> Array:
        owners = owners_of(args)
        if owners - {backend, "numpy"}:
            raise BackendError(f"{title}: {mixture({backend, *owners})}")
        return function(*args, **kwargs)

    return call


def mixture(names: Iterable[str]) -> str:
    """What to say where arrays of several backends come to one function."""
    return (
        f"it got arrays of {' and '.join(sorted(names))}, and computes on one backend: make constants with NumPy, or "
        "by lc.xp.asarray inside the function; arrays that were made before the backend was chosen belong to another "
        "one, call lc.use(...) first"
    )


def host_array(
    value: Array, is_native: Callable[[object], bool], integers: type[np.signedinteger[Any]] | HostDtype = np.int64
) -> HostArray:
    """Numbers, lists of them and arrays of any framework -> a NumPy array, for ``xp.asarray``.

    A NumPy array is returned as it is; of everything else a copy is made.

    Args:
        value: what was given to ``asarray``, and is no native array of the backend.
        is_native: whether a value is such an array; NumPy would fetch it out of a list, and cut its gradient.
        integers: dtype of Python integers.

    Raises:
        TypeError: the value holds no numbers, or a list holds native arrays.
        OverflowError: a Python integer is too large for its dtype.

    Example:
        >>> host_array([1, 2], callable, np.int32).dtype
        dtype('int32')
    """
    if isinstance(value, np.ndarray):
        return _numbers(value, value)
    if hasattr(value, "__array__"):
        return _numbers(np.array(np.asarray(value)), value)
    if hasattr(value, "__dlpack__"):
        return _numbers(np.array(np.from_dlpack(value)), value)
    if _holds(value, is_native):
        raise TypeError("asarray got a list that holds arrays of the backend: xp.stack(list) or xp.concat(list)")
    array = _numbers(np.array(value), value)
    if array.dtype.kind != "i" or array.dtype == integers:
        return array
    return np.array(array.tolist(), integers)  # from Python's integers, which raise where they do not fit


def only_axis(title: str, ndim: int, axis: int | None) -> int:
    """An axis counted from the front; the only one if none is named.

    Raises:
        ValueError: there are several.

    Example:
        >>> only_axis("cumulative_sum", 1, None), only_axis("cumulative_sum", 3, -1)
        (0, 2)
    """
    if axis is None and ndim != 1:
        raise ValueError(f"{title} of an array with {ndim} axes needs axis=")
    return (axis or 0) % ndim


def is_floating(dtype: HostDtype) -> bool:
    """Whether it is a float, bfloat16 and the like included, whose kind NumPy calls void.

    Example:
        >>> is_floating(np.dtype("float16")), is_floating(np.dtype("complex64"))
        (True, False)
    """
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def _numbers(array: HostArray, value: object) -> HostArray:
    if array.dtype.kind in "biufc" or is_floating(array.dtype):
        return array
    raise TypeError(f"asarray takes numbers, lists of numbers and arrays of them, not {type(value).__name__} {value!r}")


def _holds(value: object, is_native: Callable[[object], bool]) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds(item, is_native) for item in cast("list[object]", value))
    return is_native(value)
