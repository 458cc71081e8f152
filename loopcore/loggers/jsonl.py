"""One JSON object a line."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

from loopcore.loggers.base import Array, Text, Value
from loopcore.loggers.conversions import encodable
from loopcore.loggers.files import FileLogger
from loopcore.loggers.names import run_folder


class JSONLinesLogger(FileLogger):
    """Writes ``{"step": 1, "name": "loss", "value": 0.5}`` lines to ``values.jsonl`` in a new folder.

    Numbers that JSON does not have are the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``; a lone surrogate, which
    many readers refuse, is written as the six characters of its escape.

    Args:
        folder: holds one folder for each run.
        run: name of this run. Default: the time.
        strict: let what cannot be written end the training.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lc.loggers.JSONLinesLogger(folder)
        ...     logger.log("loss", 0.5, 1)
        ...     logger.close()
        ...     print(logger.path.read_text().strip())
        {"step": 1, "name": "loss", "value": 0.5}
    """

    kinds = (Value, Text, Array)

    def __init__(self, folder: str | Path = "runs", run: str | None = None, *, strict: bool = False) -> None:
        super().__init__(run_folder(folder, run) / "values.jsonl", strict=strict)

    def write(self, name: str, value: Value | Text | Array, step: int) -> None:
        """Keep a line until it is flushed."""
        if isinstance(value, Text):
            plain: object = encodable(value.text)
        else:
            plain = _plain(value.value if isinstance(value, Value) else value.values.tolist())
        self._lines.append(json.dumps({"step": step, "name": name, "value": plain}) + "\n")


def _plain(value: object) -> object:
    """Convert a number, or lists of numbers, to what JSON has."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value
