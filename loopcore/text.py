"""Making names safe to print."""

from __future__ import annotations

import unicodedata

_BREAKS = frozenset("\u2028\u2029")


def clean(text: str, limit: int = 80) -> str:
    r"""A name with control, bidirectional and line-breaking characters shown as escapes, and cut at ``limit``.

    Example:
        >>> from loopcore.text import clean
        >>> clean("loss" + chr(27) + "[2J")
        'loss\\x1b[2J'
    """
    shown = "".join(
        c if c not in _BREAKS and unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escape(c) for c in text
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
