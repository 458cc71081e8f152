"""What metric objects of Keras cost: a fit of loopcore and one of Keras with the same metrics, interleaved.

``KERAS_BACKEND=jax python benchmarks/keras_metrics.py [rounds]`` prints the medians in microseconds a step. Both train
the small MLP (64-128-10, batch 64, Adam) on NumPy batches in one order; without metrics for comparison.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras as untyped_keras
import numpy as np

import loopcore as lc

keras: Any = untyped_keras
STEPS, BATCH = 300, 64
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(STEPS * BATCH, 64)).astype("float32")
Y = DRAW.integers(10, size=STEPS * BATCH)


def metrics() -> list[Any]:
    """Three that count."""
    return [
        keras.metrics.SparseCategoricalAccuracy(),
        keras.metrics.SparseTopKCategoricalAccuracy(k=3),
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
    ]


def mlp() -> Any:
    """The small MLP."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)])


def loss() -> Any:
    """On logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def of_loopcore(*counted: Any) -> Callable[[], Any]:
    """A fit of one epoch by loopcore."""
    callbacks = [lc.Recorder(), lc.Metrics(*counted)]
    data = (lc.data.batches((X, Y), BATCH), None)
    learner = lc.Learner(
        mlp(), loss(), keras.optimizers.Adam(1e-3), data=data, callbacks=callbacks, default_callbacks=False
    )
    return lambda: learner.fit(1)


def of_keras(*counted: Any) -> Callable[[], Any]:
    """A fit of one epoch by Keras."""
    model = mlp()
    model.compile(keras.optimizers.Adam(1e-3), loss(), metrics=list(counted))
    return lambda: model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)


def main(rounds: int) -> None:
    """Measure and print."""
    runs = {
        "loopcore": of_loopcore(*metrics()),
        "keras": of_keras(*metrics()),
        "loopcore without": of_loopcore(),
        "keras without": of_keras(),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number:  # the first one compiles
                times[name].append((time.perf_counter() - begin) / STEPS * 1e6)
    found = {name: statistics.median(values) for name, values in times.items()}
    print(f"{keras.backend.backend()}, {rounds} rounds of {STEPS} steps, us a step (median)")
    for name, value in found.items():
        print(f"  {name:18} {value:8.0f}")
    print(f"  with metrics loopcore / keras: {found['loopcore'] / found['keras']:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
