"""Files that grow by whole lines."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from loopcore.loggers.base import Logger

_KEPT = 1_000_000  # lines that wait for a disk that takes nothing


class FileLogger(Logger):
    """Base of the loggers that append lines to one file: all of what is flushed is in it, or nothing of it.

    What the system refuses waits, the last million lines of it, and is written by a later flush.

    Args:
        path: of the file, in a folder of its own.
        header: its first line, if it has one.
        strict: raise what the system refuses, instead of saying it once.
    """

    def __init__(self, path: Path, header: str = "", *, strict: bool = False) -> None:
        super().__init__(strict=strict)
        self.path = path
        self._header = header
        self._lines: list[str] = []

    def flush(self) -> None:
        """Append the lines that wait to the file."""
        with self.trouble("flush"):
            if not self.path.parent.exists():
                warnings.warn(f"{self.path.parent} is gone, with what was logged: it is made anew", stacklevel=2)
                self.path.parent.mkdir(parents=True)
            self._append()
        # Memory must not grow without end while a disk is full. The oldest go.
        del self._lines[:-_KEPT]

    def _append(self) -> None:
        with open_file(self.path) as file:
            start = file.seek(0, os.SEEK_END)
            text = "".join(self._lines if start else (self._header, *self._lines))
            remaining = memoryview(text.encode("utf-8"))
            try:
                # A write may take a part, as when a disk is nearly full. The rest is tried until the system refuses.
                while remaining:
                    remaining = remaining[file.write(remaining) :]
            except OSError:
                file.truncate(start)  # no line is torn, and none is there twice
                raise
        self._lines.clear()

    def close(self) -> None:
        """Append the lines that wait to the file, which is not kept open."""
        self.flush()


def open_file(path: Path) -> io.FileIO:
    """Open a file to append to, whose writes are seen by the system at once."""
    # Without a buffer of Python's: what the system refuses has to be known here, where it is taken back.
    return path.open("ab", buffering=0)
