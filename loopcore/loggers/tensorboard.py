"""TensorBoard, by tensorboardX."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loopcore.loggers.base import Figure, Histogram, Image, Logger, Text, Value
from loopcore.loggers.conversions import encodable, finite, library
from loopcore.loggers.names import run_folder


class TensorBoardLogger(Logger):
    """Writes event files into a new folder; ``tensorboard --logdir runs`` shows them.

    Args:
        folder: holds one folder for each run.
        run: name of this run. Default: the time.
        strict: let what cannot be written end the training.

    Raises:
        MissingFrameworkError: tensorboardX is not installed.

    Example:
        >>> import loopcore as lc, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lc.loggers.TensorBoardLogger(folder, "run")
        ...     logger.log("loss", 0.5, 1)
        ...     logger.close()
        ...     logger.path.name, len(list(logger.path.iterdir()))
        ('run', 1)
    """

    kinds = (Value, Text, Image, Histogram, Figure)

    def __init__(self, folder: str | Path = "runs", run: str | None = None, *, strict: bool = False) -> None:
        super().__init__(strict=strict)
        writers = library("tensorboardX", "TensorBoardLogger", "tensorboard")
        self.path = run_folder(folder, run)
        self._writer = writers.SummaryWriter(str(self.path))

    def write(self, name: str, value: Value | Text | Histogram | Figure | Image, step: int) -> None:
        """Write a value of any of the kinds as an event."""
        writer = self._writer
        if isinstance(value, Value):
            writer.add_scalar(name, value.value, step)
        elif isinstance(value, Text):
            writer.add_text(name, encodable(value.text), step)
        elif isinstance(value, Histogram):
            if len(numbers := finite(value)):
                writer.add_histogram(name, numbers, step)
        elif isinstance(value, Figure):
            writer.add_figure(name, value.figure, step)
        else:
            pixels = np.asarray(value.pixels)
            writer.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def flush(self) -> None:
        """Write the events that wait into the file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
