"""Trackio."""

from __future__ import annotations

from typing import Any

from loopcore.loggers.base import Figure, Histogram, Image, Logger, Text, Value
from loopcore.loggers.conversions import as_bytes, drawn, encodable, finite, library
from loopcore.loggers.names import run_name

_RESERVED = frozenset({"metrics", "project", "run", "step", "time", "timestamp"})


class TrackioLogger(Logger):
    """Writes a new run of a Trackio project, into its local database; ``trackio show`` shows it.

    Trackio has one open run in a process: a new one closes the one before. Runs of one name are kept apart by their
    ids. Names that Trackio keeps for itself, such as ``time``, get ``metric/`` in front.

    Args:
        project: name of the project.
        run: name of this run. Default: Trackio makes one up.
        strict: let what cannot be sent end the training.
        **options: whatever else ``trackio.init`` takes, such as ``config``, ``group`` and ``space_id``.

    Attributes:
        run: the run, for what else Trackio can do with it.

    Raises:
        MissingFrameworkError: trackio is not installed.

    Example:
        >>> import loopcore as lc
        >>> def learner():
        ...     logger = lc.loggers.TrackioLogger("digits", "baseline")
        ...     return lc.testing.toy_learner(callbacks=[lc.LogMetrics(logger)])
        >>> lc.loggers.Text in lc.loggers.TrackioLogger.kinds
        True
    """

    kinds = (Value, Text, Image, Histogram, Figure)

    def __init__(
        self, project: str = "loopcore", run: str | None = None, *, strict: bool = False, **options: Any
    ) -> None:
        super().__init__(strict=strict)
        self._trackio = library("trackio", "TrackioLogger", "trackio")
        # A run of the same name must not be gone on with, and nothing is to open in a notebook.
        settings = {"resume": "never", "embed": False, **options}
        self.run = self._trackio.init(project=project, name=None if run is None else run_name(run), **settings)

    def safe_name(self, name: str) -> str:
        """Return a name that is none of those that Trackio keeps for itself."""
        safe = super().safe_name(name)
        return f"metric/{safe}" if safe.startswith("__") or safe in _RESERVED else safe

    def write(self, name: str, value: Value | Text | Histogram | Figure | Image, step: int) -> None:
        """Hand a value over; a thread of Trackio writes it within a second."""
        self.run.log({name: self._native(value)}, step=step)

    def _native(self, value: Value | Text | Histogram | Figure | Image) -> object:
        if isinstance(value, Value):
            return value.value
        if isinstance(value, Text):
            return self._trackio.Markdown(encodable(value.text))
        if isinstance(value, Histogram):
            return self._trackio.Histogram(finite(value))
        return self._trackio.Image(drawn(value.figure) if isinstance(value, Figure) else as_bytes(value))

    def close(self) -> None:
        """End the run."""
        self.run.finish()
