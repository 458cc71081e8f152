"""What the core asks of a framework, and which adapter answers."""

from loopcore.backend.protocol import (
    Array,
    Backend,
    CompilingBackend,
    CutError,
    DrawKey,
    Extras,
    Kind,
    Leaves,
    RandomBackend,
    Scopes,
    Tree,
)

__all__ = [
    "Array",
    "Backend",
    "CompilingBackend",
    "CutError",
    "DrawKey",
    "Extras",
    "Kind",
    "Leaves",
    "RandomBackend",
    "Scopes",
    "Tree",
]
