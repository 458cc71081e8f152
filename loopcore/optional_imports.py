"""Libraries that only some need, imported when they are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from loopcore.errors import MissingFrameworkError


def optional(module: str, what: str, package: str, install: str = "") -> Any:
    """Import a library that only some need.

    Args:
        module: to import.
        what: needs it.
        package: how the library is called.
        install: what pip installs it by, where that is not its own name.

    Raises:
        MissingFrameworkError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            f"{what} needs {package}, which is not installed: pip install {install or package}"
        ) from error
