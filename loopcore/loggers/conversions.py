"""What loggers hand to libraries."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from loopcore.loggers.base import Histogram, Image
from loopcore.optional_imports import optional


def library(module: str, class_name: str, extra: str) -> ModuleType:
    """Import the library that a logger writes by.

    Raises:
        MissingFrameworkError: it is not installed; says how to install it.
    """
    imported: ModuleType = optional(module, class_name, module, f"'loopcore[{extra}]'")
    return imported


def finite(histogram: Histogram) -> NDArray[np.float64]:
    """Select the numbers of a histogram that have a place on its axis, float64 ``(n,)``; there may be none."""
    values = np.asarray(histogram.values, dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def as_bytes(image: Image) -> NDArray[np.uint8]:
    """Convert the pixels of an image to uint8."""
    pixels = np.asarray(image.pixels)
    if pixels.dtype.kind == "f":
        # NaN has no value in uint8, and NumPy would warn and write whatever the machine makes of it.
        pixels = np.rint(np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255)
    return pixels.astype(np.uint8)


def encodable(text: str) -> str:
    """Make a text that UTF-8 can write: what is no character of it becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def drawn(figure: object) -> NDArray[np.uint8]:
    """Draw a figure of matplotlib; return its pixels, uint8 ``(height, width, 4)``."""
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())
