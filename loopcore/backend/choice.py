"""The one switch: which backend runs what belongs to no framework."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from loopcore.backend.registry import BUILT_IN, absent, check_name, is_installed
from loopcore.errors import MissingFrameworkError

AUTO = ("jax", "torch", "tensorflow", "numpy")
"""What ``lc.use("auto")`` takes: the first that is installed. NumPy always is."""

_log = logging.getLogger("loopcore")
_VARIABLE = "LOOPCORE_BACKEND"
_KERAS_VARIABLE = "KERAS_BACKEND"
_KERAS = frozenset({"jax", "torch", "tensorflow"})  # on NumPy Keras cannot train


class Choice(NamedTuple):
    """A backend that somebody chose.

    Attributes:
        name: of the backend.
        device: where its learners and ``lc.xp`` make arrays; None for the framework's own choice.
    """

    name: str
    device: object = None


_process: Choice | None = None
_block: ContextVar[Choice | None] = ContextVar("loopcore_choice", default=None)


def use(backend: str | None, device: object = None) -> None:
    """Choose the backend of everything that belongs to no framework.

    That is a model whose type does not tell, ``(apply_fn, params[, state])`` or a tree with NumPy arrays; arrays that
    ``lc.xp`` and ``lc.random`` make outside a running learner; and Keras, if it is not imported yet. A model of a
    framework keeps its own. The environment variable ``LOOPCORE_BACKEND`` does the same when loopcore is imported.
    Where Keras was imported before, also by TensorFlow, and runs on another framework, the log says so.

    Args:
        backend: ``"numpy"``, ``"torch"``, ``"jax"``, ``"tensorflow"``, a plugin's name; ``"auto"`` for the first of
            JAX, PyTorch, TensorFlow and NumPy that is installed; None to forget what was chosen.
        device: where its learners compute that name no device themselves: ``"cpu"``, ``"gpu"``, or as the framework
            calls it.

    Raises:
        UnknownModelError: no adapter has that name.
        MissingFrameworkError: its framework is not installed; says what to install.

    Example:
        >>> import loopcore as lc
        >>> lc.use("numpy")
        >>> lc.xp.zeros((2,))
        array([0., 0.], dtype=float32)
        >>> lc.use(None)
    """
    global _process
    choice = None if backend is None else Choice(resolve(backend), device)
    _process = choice
    if choice is not None and not choose_for_keras(choice.name):
        _log.warning(keras_differs(choice.name))


@contextmanager
def using(backend: str, device: object = None) -> Iterator[None]:
    """Choose a backend as `use` does, for what runs in a ``with`` block, in this thread.

    Args:
        backend: as in `use`.
        device: as in `use`.

    Example:
        >>> import loopcore as lc
        >>> with lc.using("numpy"):
        ...     lc.xp.arange(3)
        array([0, 1, 2])
    """
    choice = Choice(resolve(backend), device)
    token, keras = _block.set(choice), os.environ.get(_KERAS_VARIABLE)
    choose_for_keras(choice.name)
    try:
        yield
    finally:
        _block.reset(token)
        if keras is not None:
            os.environ[_KERAS_VARIABLE] = keras
        else:
            os.environ.pop(_KERAS_VARIABLE, None)


def chosen() -> Choice | None:
    """What was chosen: by `using`, else by `use`, else by the environment; None where nobody did.

    Raises:
        UnknownModelError, MissingFrameworkError: as `use`, of what the environment says.
    """
    choice = _block.get() or _process
    if choice is not None:
        return choice
    value = os.environ.get(_VARIABLE)
    return Choice(resolve(value, f"{_VARIABLE}={value}: ")) if value else None


def name() -> str:
    """The backend of what belongs to no framework: the chosen one, else NumPy."""
    choice = chosen()
    return "numpy" if choice is None else choice.name


def device_of(backend: str) -> object:
    """The device that was chosen with a backend, None without."""
    choice = chosen()
    return choice.device if choice is not None and choice.name == backend else None


def resolve(backend: str, where: str = "") -> str:
    """The name of a backend that can be used; of ``"auto"`` the first that is installed.

    Raises:
        UnknownModelError: no adapter has that name.
        MissingFrameworkError: its framework is not installed.
    """
    if backend == "auto":
        return _first_installed()
    check_name(backend, where)
    missing = absent(backend)
    if missing:
        raise MissingFrameworkError(
            f"{where}the {backend} backend needs {', '.join(missing)}, which is not installed: "
            f"pip install {BUILT_IN[backend].install}"
        )
    return backend


def _first_installed() -> str:
    return next(backend for backend in AUTO if not absent(backend))


def choose_for_keras(backend: str) -> bool:
    """Let Keras run on a framework, if it is not imported yet; whether it does."""
    if backend not in _KERAS:
        return True
    keras: Any = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        return bool(keras.config.backend() == backend)
    if is_installed("keras"):
        os.environ[_KERAS_VARIABLE] = backend
    return True


def keras_differs(backend: str) -> str:
    """What to say where Keras was imported too early."""
    framework = sys.modules["keras"].config.backend()
    return (
        f"Keras is imported already and runs on {framework}, and so do its models, although {backend} was chosen: "
        f"choose before it is imported (TensorFlow imports it too), or set {_KERAS_VARIABLE}={backend}"
    )


def follow_environment() -> None:
    """Let Keras follow ``LOOPCORE_BACKEND``; called when loopcore is imported."""
    value = os.environ.get(_VARIABLE)
    backend = _first_installed() if value == "auto" else value
    if backend and not choose_for_keras(backend):
        _log.warning(keras_differs(backend))
