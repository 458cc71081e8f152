"""How metrics are called in a history."""

from __future__ import annotations

PREFIXES = {"training": "", "validation": "val_"}


def prefix_of(phase: str) -> str:
    """Return what the names of a phase's metrics begin with."""
    return PREFIXES.get(phase, f"{phase}_")
