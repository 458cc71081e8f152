"""Names that file systems, spreadsheets and tracking libraries take."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from loopcore._utils.text import clean

_NAME_BYTES = 200  # MLflow takes 250 characters, file systems 255 bytes
_FOLDER_BYTES = 100


def sanitised(name: str) -> str:
    """A name of letters, digits and ``_ - . /``, of at most 200 bytes, whose parts do not begin with ``.`` or ``-``.

    Example:
        >>> from loopcore.loggers.names import sanitised
        >>> sanitised("val loss (1)/../-a")
        'val_loss__1_/_/_a'
    """
    parts = [re.sub(r"[^\w.\-]", "_", part) for part in str(name).split("/")]
    safe = "/".join(re.sub(r"^[.\-]+", "_", part) for part in parts if part)
    return _cut(safe, _NAME_BYTES).rstrip("/") or "_"


class Names:
    """Safe names, each for one name: a second one that becomes the same gets a number, which is said once.

    Args:
        safe: makes a name safe.

    Example:
        >>> from loopcore.loggers.names import Names
        >>> names = Names()
        >>> names("a b"), names("a b")
        ('a_b', 'a_b')
    """

    def __init__(self, safe: Callable[[str], str] = sanitised) -> None:
        self._safe = safe
        self._safe_names: dict[str, str] = {}
        self._name_by_safe: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the safe name of a name."""
        safe = self._safe_names.get(name)
        if safe is None:
            safe = self._safe_names[name] = self._new(name)
            self._name_by_safe[safe] = name
        return safe

    def _new(self, name: str) -> str:
        base = safe = self._safe(name)
        number = 1
        while safe in self._name_by_safe:
            number += 1
            safe = f"{base}-{number}"
        if number > 1:
            warnings.warn(
                f"the name {clean(name)} is written as {safe}, since {base} is what "
                f"{clean(self._name_by_safe[base])} is written as: give one of them a name of other letters and digits",
                stacklevel=4,
            )
        return safe


def run_name(name: str) -> str:
    """Make a name that is one part of a path.

    Example:
        >>> from loopcore.loggers.names import run_name
        >>> run_name("../up")
        '__up'
    """
    return _cut(sanitised(name).replace("/", "_"), _FOLDER_BYTES)


def run_folder(folder: str | Path, name: str | None = None) -> Path:
    """A new folder for a run: of its name or the time, numbered if there is one already.

    Example:
        >>> import tempfile
        >>> from loopcore.loggers.names import run_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [run_folder(folder, "run").name for _ in range(2)]
        ['run', 'run-2']
    """
    base = run_name(name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    number = 1
    while True:
        path = Path(folder) / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # also where another process was faster
            number += 1
        else:
            return path


def _cut(text: str, size: int) -> str:
    """Return the first characters, in UTF-8 no more than some bytes."""
    # By bytes, as file systems count; a character that is cut in the middle goes as a whole.
    return text.encode("utf-8")[:size].decode("utf-8", "ignore")
