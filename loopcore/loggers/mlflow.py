"""MLflow."""

from __future__ import annotations

import re
import time
from typing import Any

from loopcore._utils.text import clean
from loopcore.loggers.base import Figure, Image, Logger, Text, Value
from loopcore.loggers.conversions import as_bytes, encodable, library

_BATCH = 1000  # values that MLflow takes at once


class MLflowLogger(Logger):
    """Writes a new run of an MLflow experiment, to a server or into a local database; ``mlflow ui`` shows it.

    Numbers are its metrics, texts and figures its artifacts, images its image charts; histograms MLflow does not have.
    Values are sent when an epoch ends. A database keeps an infinite one as the largest float64.

    Args:
        experiment: name of the experiment; made if there is none.
        run: name of this run. Default: MLflow makes one up.
        uri: where the runs are, such as ``"sqlite:///runs.db"`` or ``"http://localhost:5000"``. Default: what MLflow is
            set to, and else ``mlflow.db`` in the working folder.
        strict: let what cannot be sent end the training.

    Attributes:
        run_id: MLflow's id of the run.

    Raises:
        MissingFrameworkError: MLflow is not installed.

    Example:
        >>> import loopcore as lc
        >>> def learner(uri):
        ...     logger = lc.loggers.MLflowLogger("digits", "baseline", uri)
        ...     return lc.testing.toy_learner(callbacks=[lc.LogMetrics(logger)])
        >>> lc.loggers.Histogram in lc.loggers.MLflowLogger.kinds  # said once, and left out
        False
    """

    kinds = (Value, Text, Image, Figure)

    def __init__(
        self, experiment: str = "loopcore", run: str | None = None, uri: str | None = None, *, strict: bool = False
    ) -> None:
        super().__init__(strict=strict)
        mlflow = library("mlflow", "MLflowLogger", "mlflow")
        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        existing = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if existing is None else existing.experiment_id
        created = self._client.create_run(number, run_name=None if run is None else clean(run))
        self.run_id: str = created.info.run_id
        self._values: list[Any] = []

    def write(self, name: str, value: Value | Text | Figure | Image, step: int) -> None:
        """Keep a number until it is flushed; write anything else."""
        if isinstance(value, Value):
            self._values.append(self._metric(name, value.value, int(time.time() * 1000), step))
        elif isinstance(value, Text):
            self._client.log_text(self.run_id, encodable(value.text), f"text/{name}/{step}.txt")
        elif isinstance(value, Figure):
            self._client.log_figure(self.run_id, value.figure, f"figures/{name}/{step}.png")
        else:
            ascii_name = re.sub(r"[^\x00-\x7f]", lambda match: f"u{ord(match[0]):x}", name)
            self._client.log_image(self.run_id, as_bytes(value), key=ascii_name, step=step)

    def flush(self) -> None:
        """Send the numbers that wait to MLflow."""
        while self._values:
            self._client.log_batch(self.run_id, metrics=self._values[:_BATCH])
            del self._values[:_BATCH]

    def close(self) -> None:
        """End the run."""
        self.flush()
        self._client.set_terminated(self.run_id)
