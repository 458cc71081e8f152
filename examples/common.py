"""What every example shares: its command line, its models by the name of a backend, its data and its pictures."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np

BACKENDS = ("torch", "jax", "tensorflow", "numpy")
Array = np.ndarray[Any, Any]


def arguments(description: str | None, epochs: int) -> argparse.Namespace:
    """The options of an example: ``--backend``, ``--epochs``, ``--seed``, ``--pictures``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="whose models to train (default: torch)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"passes over the data (default: {epochs})")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise (default: 0)")
    parser.add_argument("--pictures", type=Path, default=Path("pictures"), help="where pictures go (./pictures)")
    return parser.parse_args()


def models(backend: str) -> Any:
    """The module with the native models of a framework."""
    return importlib.import_module(f"examples.models.{backend}")


def diabetes() -> dict[str, Array]:
    """442 patients: ``x (442, 10)`` and the progression of their illness after a year ``y (442, 1)``, standardised."""
    from sklearn.datasets import load_diabetes

    x, y = map(np.asarray, load_diabetes(return_X_y=True))
    x, y = ((part - part.mean(axis=0)) / part.std(axis=0) for part in (x, y.reshape(-1, 1)))
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}
