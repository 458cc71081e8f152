"""Which functions take the labels first: the wrong way round a loss or a metric is silently another one."""

from __future__ import annotations

from functools import partial
from inspect import isfunction, ismethod
from typing import Any


def predictions_first(fn: Any) -> Any:
    """A function in the order ``(y_pred, ys)``; what is none, such as the name of one, as it is.

    Keras losses and scikit-learn metrics take the labels first, and so does what names them ``(y_true, y_pred)``.
    """
    if takes_labels_first(fn):
        return lambda y_pred, ys, *args, **kwargs: fn(ys, y_pred, *args, **kwargs)
    return fn


def takes_labels_first(fn: object) -> bool:
    """Whether a function is called as ``fn(ys, y_pred)``."""
    return bool(roots(fn) & {"keras", "sklearn"}) or _parameters(fn)[:2] == ("y_true", "y_pred")


def roots(fn: object) -> set[str]:
    """The packages that a function, what a partial stands for, or the classes of an object come from."""
    fn = _unwrapped(fn)
    function = fn.__func__ if ismethod(fn) else fn
    if isfunction(function):  # its __module__ may be that of a function which functools.wraps copied it from
        modules = [str(function.__globals__.get("__name__", ""))]
    else:
        modules = [str(getattr(function, "__module__", ""))]
    holder = fn.__self__ if ismethod(fn) else fn  # a class of the user's own may extend one of Keras
    return {name.split(".")[0] for name in (*modules, *(cls.__module__ for cls in type(holder).__mro__))}


def _parameters(fn: object) -> tuple[str, ...]:
    """Names of the parameters of a Python function or method, without ``self``."""
    fn = _unwrapped(fn)
    code = getattr(fn, "__code__", None)
    names: tuple[str, ...] = () if code is None else code.co_varnames[: code.co_argcount]
    return names[1:] if ismethod(fn) else names


def _unwrapped(fn: object) -> object:
    """The function inside a ``functools.partial``, however deep; anything else as it is."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn
