"""Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loopcore._utils.text import clean
from loopcore.loggers.base import Figure, Histogram, Image, Logger, Text, Value
from loopcore.loggers.conversions import as_bytes, drawn, encodable, finite, library

_AXIS = "loopcore/step"


class WandbLogger(Logger):
    """Writes a new run of a project of Weights & Biases.

    Its own count of rows only goes up, so that charts would be against that; they are against ``loopcore/step``, which
    is what each metric counts by. Values are handed over when an epoch ends. A name that begins with ``_``, as those of
    W&B do, gets ``metric/`` in front.

    Args:
        project: name of the project.
        run: name of this run. Default: W&B makes one up.
        folder: where its files go. Default: ``wandb`` in the working folder.
        mode: ``"offline"`` sends nothing, ``wandb sync`` does so later. Default: what W&B is set to.
        strict: let what cannot be sent end the training.
        **options: whatever else ``wandb.init`` takes, such as ``entity``, ``tags``, ``config`` and ``settings``.

    Attributes:
        run: the run, for what else W&B can do with it.

    Raises:
        MissingFrameworkError: wandb is not installed.

    Example:
        >>> import loopcore as lc
        >>> def learner():
        ...     logger = lc.loggers.WandbLogger("digits", "baseline", mode="offline", tags=["demo"])
        ...     return lc.testing.toy_learner(callbacks=[lc.LogMetrics(logger)])
        >>> lc.loggers.Histogram in lc.loggers.WandbLogger.kinds
        True
    """

    kinds = (Value, Text, Image, Histogram, Figure)

    def __init__(
        self,
        project: str = "loopcore",
        run: str | None = None,
        *,
        folder: str | Path | None = None,
        mode: str | None = None,
        strict: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(strict=strict)
        self._wandb = library("wandb", "WandbLogger", "wandb")
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)  # W&B takes another one if it is not there
        apart = {"reinit": "create_new", "resume": "never"}  # no other run is ended or gone on with
        settings = {"dir": None if folder is None else str(folder), "mode": mode, **apart, **options}
        self.run = self._wandb.init(project=project, name=None if run is None else clean(run), **settings)
        self.run.define_metric(_AXIS, hidden=True)
        self.run.define_metric("*", step_metric=_AXIS)
        self._rows: dict[int, dict[str, object]] = {}

    def safe_name(self, name: str) -> str:
        """Return a name that is none of those that W&B uses itself."""
        safe = super().safe_name(name)
        return f"metric/{safe}" if safe.startswith("_") or safe == _AXIS else safe

    def write(self, name: str, value: Value | Text | Histogram | Figure | Image, step: int) -> None:
        """Keep a value until it is flushed; those of one step become one row."""
        # A row has one value of a name: a second one for the same step begins a new row.
        if name in self._rows.get(step, ()):
            self.flush()
        self._rows.setdefault(step, {})[name] = self._native(value)

    def _native(self, value: Value | Text | Histogram | Figure | Image) -> object:
        if isinstance(value, Value):
            return value.value
        if isinstance(value, Text):
            return encodable(value.text)
        if isinstance(value, Histogram):
            return self._wandb.Histogram(finite(value))
        return self._wandb.Image(drawn(value.figure) if isinstance(value, Figure) else as_bytes(value))

    def flush(self) -> None:
        """Send the rows that wait to W&B."""
        for step, row in self._rows.items():
            self.run.log({**row, _AXIS: step})
        self._rows.clear()

    def close(self) -> None:
        """End the run."""
        self.flush()
        self.run.finish()
