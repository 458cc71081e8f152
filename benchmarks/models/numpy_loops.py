"""NumPy with autograd: the loops an expert writes by hand, and loopcore."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive

import loopcore as lc
from benchmarks.models import loopcore_loops
from benchmarks.models.bench import Bench, Size, Variant

LEARNING_RATE = 1e-5  # so small that the work of a step stays the same however many steps have been run
Params = dict[str, Any]


def bench(size: Size, threads: int, only: str) -> Bench:
    rng = np.random.default_rng(0)
    batches = [
        (
            rng.standard_normal((size.batch, size.widths[0]), dtype=np.float32),
            rng.integers(size.widths[-1], size=size.batch),
        )
        for _ in range(8)
    ]
    layers = len(size.widths) - 1

    def params() -> Params:
        draw = np.random.default_rng(1)
        found: Params = {}
        for index, (inputs, outputs) in enumerate(pairwise(size.widths)):
            found[f"w{index}"] = draw.standard_normal((inputs, outputs), dtype=np.float32) / np.float32(inputs**0.5)
            found[f"b{index}"] = np.zeros(outputs, np.float32)
        return found

    def forward(params: Params, xs: Any) -> Any:
        for index in range(layers - 1):
            xs = relu(xs @ params[f"w{index}"] + params[f"b{index}"])
        return xs @ params[f"w{layers - 1}"] + params[f"b{layers - 1}"]

    def model() -> tuple[Any, Params]:
        return forward, params()

    found = [
        Variant("raw", RawLoop(forward, params())),
        Variant("raw again", RawLoop(forward, params())),
        Variant("raw + metrics", RawLoopWithMetrics(forward, params())),
        *loopcore_loops.variants(model, cross_entropy, lambda _: lc.Adam(LEARNING_RATE)),
    ]
    return Bench(batches, [variant for variant in found if variant.name == "raw" or only in variant.name])


relu: Any = primitive(lambda x: np.maximum(x, 0))
defvjp(relu, lambda ans, x: lambda g: g * (ans > 0))


def cross_entropy(logits: Any, labels: Any) -> Any:
    shifted = logits - anp.max(logits, axis=-1, keepdims=True)
    rows = anp.log(anp.sum(anp.exp(shifted), axis=-1)) - shifted[np.arange(len(labels)), labels]
    return anp.sum(rows) / np.float32(len(labels))


class RawLoop:
    """What an expert writes: ``autograd.value_and_grad``, and Adam in place."""

    def __init__(self, forward: Any, params: Params) -> None:
        self.params = params
        self.first = {name: np.zeros_like(value) for name, value in params.items()}
        self.second = {name: np.zeros_like(value) for name, value in params.items()}
        self.count = 0

        def objective(params: Params, xs: Any, ys: Any) -> Any:
            return cross_entropy(forward(params, xs), ys)

        self.step = value_and_grad(objective)

    def __call__(self, batches: Sequence[Any]) -> Any:
        for xs, ys in batches:
            _, grads = self.step(self.params, xs, ys)
            self.update(grads)

    def update(self, grads: Params) -> None:
        self.count += 1
        rate = LEARNING_RATE / (1 - 0.9**self.count)
        root = (1 - 0.999**self.count) ** 0.5
        for name, grad in grads.items():
            first, second = self.first[name], self.second[name]
            first *= 0.9
            first += 0.1 * grad
            second *= 0.999
            second += 0.001 * grad * grad
            self.params[name] -= rate * first / (np.sqrt(second) / root + 1e-8)


class RawLoopWithMetrics(RawLoop):
    """The same with mean loss and accuracy."""

    def __init__(self, forward: Any, params: Params) -> None:
        super().__init__(forward, params)
        self.y_pred: Any = None

        def objective(params: Params, xs: Any, ys: Any) -> Any:
            self.y_pred = forward(params, xs)
            return cross_entropy(self.y_pred, ys)

        self.step = value_and_grad(objective)

    def __call__(self, batches: Sequence[Any]) -> tuple[float, float]:
        loss_sum, hits, samples = 0.0, 0, 0
        for xs, ys in batches:
            loss, grads = self.step(self.params, xs, ys)
            self.update(grads)
            loss_sum += float(loss) * len(ys)
            hits += int((self.y_pred._value.argmax(-1) == ys).sum())
            samples += len(ys)
        return loss_sum / samples, hits / samples
