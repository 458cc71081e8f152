"""One JSON object a line."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

from loopcore.loggers.base import Logger, Text, Value
from loopcore.loggers.conversions import encodable
from loopcore.loggers.names import run_folder


class JSONLinesLogger(Logger):
    """Writes ``{"step": 1, "name": "loss", "value": 0.5}`` lines to ``values.jsonl`` in a new folder.

    Numbers that JSON does not have are the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``; a lone surrogate, which
    many readers refuse, is written as the six characters of its escape.

    Args:
        folder: holds one folder for each run.
        run: name of this run. Default: the time.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lc.loggers.JSONLinesLogger(folder)
        ...     logger.log("loss", 0.5, 1)
        ...     logger.close()
        ...     print(logger.path.read_text().strip())
        {"step": 1, "name": "loss", "value": 0.5}
    """

    kinds = (Value, Text)

    def __init__(self, folder: str | Path = "runs", run: str | None = None) -> None:
        self.path = run_folder(folder, run) / "values.jsonl"
        self._lines: list[str] = []

    def write(self, name: str, value: Value | Text, step: int) -> None:
        """Keep a line until it is flushed."""
        plain = value.value if isinstance(value, Value) else encodable(value.text)
        if isinstance(plain, float) and not isfinite(plain):
            plain = "NaN" if plain != plain else "Infinity" if plain > 0 else "-Infinity"
        self._lines.append(json.dumps({"step": step, "name": name, "value": plain}) + "\n")

    def flush(self) -> None:
        """Everything is in the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(self._lines)
        self._lines.clear()

    close = flush
