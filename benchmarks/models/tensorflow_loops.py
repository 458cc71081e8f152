"""TensorFlow: the loops an expert writes by hand, and loopcore."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

import loopcore as lc
from benchmarks.models import loopcore_loops
from benchmarks.models.bench import Bench, Size, Variant

LEARNING_RATE = 1e-5  # so small that the work of a step stays the same however many steps have been run


def bench(size: Size, threads: int, only: str) -> Bench:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    draw = np.random.default_rng(0)
    batches = [
        (
            tf.constant(draw.normal(size=(size.batch, size.widths[0])), tf.float32),
            tf.constant(draw.integers(size.widths[-1], size=size.batch), tf.int32),
        )
        for _ in range(8)
    ]

    def model() -> Any:
        keras.utils.set_random_seed(1)
        hidden = [keras.layers.Dense(width, activation="relu") for width in size.widths[1:-1]]
        return keras.Sequential([keras.Input((size.widths[0],)), *hidden, keras.layers.Dense(size.widths[-1])])

    found = [
        Variant("raw", RawLoop(model())),
        Variant("raw again", RawLoop(model())),
        Variant("raw + metrics", RawLoopWithMetrics(model())),
        Variant("raw + average", RawLoop(model(), use_ema=True)),
        *loopcore_loops.variants(model, lc.losses.cross_entropy, lambda _: lc.Adam(LEARNING_RATE)),
        # the same with the optimizer of the hand-written loop; the neutral Adam runs another kernel
        *loopcore_loops.variants(
            model, lc.losses.cross_entropy, lambda _: keras.optimizers.Adam(LEARNING_RATE), ", keras Adam"
        ),
        *loopcore_loops.listeners(model, lc.losses.cross_entropy, lambda _: lc.Adam(LEARNING_RATE)),
    ]
    return Bench(batches, [one for one in found if one.name == "raw" or only in one.name], model=model)


class RawLoop:
    """One ``tf.function`` a step."""

    def __init__(self, model: Any, *, use_ema: bool = False) -> None:
        self.model = model
        self.variables = [variable.value for variable in model.trainable_variables]
        self.optimizer = keras.optimizers.Adam(LEARNING_RATE, use_ema=use_ema)
        self.optimizer.build(model.trainable_variables)
        self.step = tf.function(self._step, autograph=False)

    def _gradients(self, xs: Any, ys: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            y_pred = self.model(xs, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(ys, y_pred))
        self.optimizer.apply(tape.gradient(loss, self.variables), self.model.trainable_variables)
        return loss, y_pred

    def _step(self, xs: Any, ys: Any) -> Any:
        return self._gradients(xs, ys)[0]

    def __call__(self, batches: Sequence[Any]) -> None:
        for xs, ys in batches:
            loss = self.step(xs, ys)
        loss.numpy()


class RawLoopWithMetrics(RawLoop):
    """The same with mean loss and accuracy, kept in one variable and read when the block ends."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.sums = tf.Variable(tf.zeros(3))

    def _step(self, xs: Any, ys: Any) -> Any:
        loss, y_pred = self._gradients(xs, ys)
        hits = tf.reduce_sum(tf.cast(tf.argmax(y_pred, -1, tf.int32) == ys, tf.float32))
        count = tf.constant(float(ys.shape[0]))
        self.sums.assign_add(tf.stack([loss * count, hits, count]))
        return loss

    def __call__(self, batches: Sequence[Any]) -> None:
        self.sums.assign(tf.zeros(3))
        super().__call__(batches)
        self.sums.numpy()
