"""Comma-separated values."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from loopcore.loggers.base import Logger, Value
from loopcore.loggers.names import run_folder


class CSVLogger(Logger):
    """Writes ``step,name,value`` rows to ``values.csv`` in a new folder.

    Args:
        folder: holds one folder for each run.
        run: name of this run. Default: the time.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lc.loggers.CSVLogger(folder)
        ...     logger.log("loss", 0.5, 1)
        ...     logger.close()
        ...     logger.path.read_text().split()
        ['step,name,value', '1,loss,0.5']
    """

    def __init__(self, folder: str | Path = "runs", run: str | None = None) -> None:
        self.path = run_folder(folder, run) / "values.csv"
        self._rows: list[tuple[Any, ...]] = [("step", "name", "value")]

    def write(self, name: str, value: Value, step: int) -> None:
        """Keep a row until it is flushed."""
        self._rows.append((step, name, repr(value.value)))

    def flush(self) -> None:
        """Everything is in the file."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(self._rows)
        self._rows.clear()

    close = flush
