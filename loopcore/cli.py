"""The command ``loopcore``: ``loopcore demo`` trains a small classifier on real data, and is an example to read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

import loopcore as lc
from loopcore.backend.protocol import Array, HostArray
from loopcore.backend.registry import BUILT_IN

Params = dict[str, HostArray]


def apply_fn(params: dict[str, Array], x: Array) -> Array:
    """An MLP with one hidden layer, on every backend: pixels ``(batch, 64)`` -> logits ``(batch, 10)``."""
    hidden = lc.xp.relu(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def initial_params(seed: int, pixels: int = 64, hidden: int = 64, classes: int = 10) -> Params:
    """Random weights (He et al., 2015, https://arxiv.org/abs/1502.01852) and zero biases, float32."""
    rng = np.random.default_rng(seed)

    def weights(fan_in: int, fan_out: int) -> HostArray:
        normal: HostArray = rng.normal(size=(fan_in, fan_out)) * np.sqrt(2 / fan_in)
        return normal.astype(np.float32)

    return {
        "w1": weights(pixels, hidden),
        "b1": np.zeros(hidden, np.float32),
        "w2": weights(hidden, classes),
        "b2": np.zeros(classes, np.float32),
    }


def load_digits() -> tuple[Array, Array]:
    """1,797 handwritten digits that come with scikit-learn: pixels ``(1797, 64)`` in [0, 1] and labels ``(1797,)``."""
    from sklearn.datasets import load_digits as load

    x, y = load(return_X_y=True)
    return (x / 16).astype(np.float32), y


def demo(epochs: int, backend: str | None = None, seed: int = 0) -> float:
    """Train the classifier and return its accuracy on the fifth of the digits that it has not seen.

    Args:
        epochs: passes over the other digits.
        backend: what trains it; default the chosen one, else NumPy.
        seed: of first weights, order and split.
    """
    train, valid = lc.data.split(load_digits(), 0.8, seed=seed)
    learner = lc.Learner(
        (apply_fn, initial_params(seed)),
        lc.losses.cross_entropy,
        optimizer=lc.Adam(3e-3),
        data=(lc.data.batches(train, 32, shuffle=True, seed=seed), lc.data.batches(valid, 256)),
        callbacks=[lc.Metrics(lc.accuracy)],
        backend=backend,
        seed=seed,
    )
    learner.fit(epochs)
    return float(learner.history["val_accuracy"][-1] or 0.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loopcore", description="A framework-neutral training loop.")
    parser.add_argument("--version", action="version", version=f"loopcore {lc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="train a small classifier on handwritten digits")
    command.add_argument("--epochs", type=_positive, default=10, help="passes over the training data (default: 10)")
    command.add_argument(
        "--backend",
        metavar="|".join(BUILT_IN),
        help="what trains it (default: what LOOPCORE_BACKEND says, else numpy)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: without the program's name. Default: those of the process.
    """
    options = _parser().parse_args(arguments)
    try:
        accuracy = demo(options.epochs, options.backend)
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        print("the demo needs scikit-learn for its data: pip install 'loopcore[demo]'", file=sys.stderr)
        return 1
    except lc.errors.BackendError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"validation accuracy {accuracy:.4f}")
    return 0
