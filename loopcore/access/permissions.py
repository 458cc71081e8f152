"""What one callback declared, and the error for what it did not."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache

from loopcore.callback import Callback, name_of
from loopcore.errors import AccessError


@dataclass(frozen=True)
class Access:
    """The paths that one callback may read and write, and the checks of an access against them."""

    callback: Callback
    reads: frozenset[str]
    writes: frozenset[str]

    @classmethod
    def of(cls, callback: Callback) -> Access:
        """Read the declarations once; a write implies a read."""
        writes = frozenset(callback.writes)
        # Its own traced handler writes them.
        writes |= frozenset(callback.leaves)
        reads = (*callback.reads, *callback.traced_reads, *callback.carries)
        return cls(callback, frozenset(reads) | writes, writes)

    def may(self, path: str, declared: frozenset[str]) -> bool:
        """Whether a declared path covers ``path`` (or lies below it, which opens the way down)."""
        return any(path == d or path.startswith(f"{d}.") for d in declared)

    def require_read(self, path: str) -> None:
        """Refuse a read of a path that is not declared; `may` is spelled out, since handlers get here at every step.

        Raises:
            AccessError: says which line to add.
        """
        if not any(path == d or path.startswith(f"{d}.") for d in self.reads):
            raise self.error(path, write=False)

    def require_write(self, path: str) -> None:
        """Refuse a write to a path that is not declared.

        Raises:
            AccessError: says which line to add.
        """
        if not any(path == d or path.startswith(f"{d}.") for d in self.writes):
            raise self.error(path, write=True)

    def names(self, path: str, declared: frozenset[str]) -> frozenset[str]:
        """Names directly below a path that are declared; ``"*"`` when the path itself is."""
        # A path opens the way down to it: who reads ``params.encoder.weight`` may ask ``params`` for ``encoder``.
        below = (d.removeprefix(f"{path}.").partition(".")[0] for d in declared if d.startswith(f"{path}."))
        return frozenset(below) | ({"*"} if self.may(path, declared) else frozenset())

    def error(self, path: str, *, write: bool, action: str = "") -> AccessError:
        """The error for an undeclared access; ``action`` says in words what it was."""
        attribute = "writes" if write else "reads"
        # The error is about what the user wrote, not about a wrapper around it.
        inner = self.callback.identity()
        paths = ", ".join(repr(p) for p in (*getattr(inner, attribute), path))
        cls: type = type(inner)
        add = f"Add to class {cls.__name__}{_where(cls)}: {attribute} = ({paths},)"
        if attribute in getattr(inner, "__dict__", ()):  # an argument, as FunctionCallback has
            add = f"Pass {cls.__name__}(..., {attribute}=({paths},))"
        return AccessError(f"{name_of(inner)} {action or f'{attribute} {path}'}, which it does not declare. {add}")


@lru_cache(maxsize=64)
def _where(cls: type) -> str:
    try:
        return f" ({inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]})"
    except (OSError, TypeError):
        return ""
