"""Comma-separated values."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from loopcore.loggers.base import Value
from loopcore.loggers.files import FileLogger
from loopcore.loggers.names import run_folder


class CSVLogger(FileLogger):
    """Writes ``step,name,value`` rows to ``values.csv`` in a new folder.

    Args:
        folder: holds one folder for each run.
        run: name of this run. Default: the time.
        strict: let what cannot be written end the training.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lc.loggers.CSVLogger(folder)
        ...     logger.log("loss", 0.5, 1)
        ...     logger.close()
        ...     logger.path.read_text().split()
        ['step,name,value', '1,loss,0.5']
    """

    def __init__(self, folder: str | Path = "runs", run: str | None = None, *, strict: bool = False) -> None:
        super().__init__(run_folder(folder, run) / "values.csv", _row("step", "name", "value"), strict=strict)

    def write(self, name: str, value: Value, step: int) -> None:
        """Keep a row until it is flushed."""
        self._lines.append(_row(step, name, repr(value.value)))


def _row(*cells: object) -> str:
    """Format a line of the file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()
