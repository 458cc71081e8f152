"""Making names safe to print."""

from __future__ import annotations

import sys
import unicodedata
from typing import IO

_BREAKS = frozenset("\u2028\u2029")


def clean(text: str, limit: int | None = 80) -> str:
    r"""A name with control, bidirectional and line-breaking characters shown as escapes, and cut at ``limit``.

    Example:
        >>> from loopcore._utils.text import clean
        >>> clean("loss" + chr(27) + "[2J")
        'loss\\x1b[2J'
    """
    printable = "".join(
        c if c not in _BREAKS and unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escape(c) for c in text
    )
    return printable if limit is None or len(printable) <= limit else printable[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(line: str, file: IO[str] | None = None) -> None:
    r"""Print a line at once; what the encoding of the file does not have is shown as escapes.

    Args:
        line: without control characters.
        file: where to. Default: standard output at the time of printing.

    Example:
        >>> import io
        >>> from loopcore._utils.text import say
        >>> file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        >>> say("l\u00f6ss", file)
        >>> file.buffer.getvalue().strip()
        b'l\\xf6ss'
    """
    out = file or sys.stdout
    encoding = getattr(out, "encoding", None)
    if encoding:
        line = line.encode(encoding, "backslashreplace").decode(encoding)
    print(line, file=out, flush=True)
