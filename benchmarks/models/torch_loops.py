"""PyTorch: the loops an expert writes by hand, loopcore, and the peers that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import loopcore as lc
from benchmarks.models import loopcore_loops, torch_peers
from benchmarks.models.bench import Bench, Size, Variant

LEARNING_RATE = 1e-5  # so small that the work of a step stays the same however many steps have been run


def bench(size: Size, threads: int, only: str) -> Bench:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(size.batch, size.widths[0], generator=generator),
            torch.randint(size.widths[-1], (size.batch,), generator=generator),
        )
        for _ in range(8)
    ]

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(size.widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    found = [
        Variant("raw", RawLoop(model())),
        Variant("raw again", RawLoop(model())),
        Variant("raw + metrics", RawLoopWithMetrics(model())),
        *loopcore_loops.variants(model, cross_entropy, adam),
        Variant("raw, fused Adam", RawLoop(model(), fused=True)),
        # for loopcore's own the adapter asks PyTorch for the fused kernel
        *loopcore_loops.variants(model, cross_entropy, lambda _: lc.Adam(LEARNING_RATE), ", lc.Adam"),
    ]
    peers, absent = torch_peers.variants(model, cross_entropy, adam, threads)
    chosen = [variant for variant in [*found, *peers] if variant.name == "raw" or only in variant.name]
    return Bench(batches, chosen, absent, model)


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), LEARNING_RATE)


class RawLoop:
    """What an expert writes, and nothing else."""

    def __init__(self, model: nn.Module, *, fused: bool | None = None) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=fused)

    def __call__(self, batches: Sequence[Any]) -> None:
        model, optimizer = self.model, self.optimizer
        model.train()
        for xs, ys in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(xs), ys)
            loss.backward()
            optimizer.step()


class RawLoopWithMetrics(RawLoop):
    """The same with mean loss and accuracy, kept on the device and read when the block ends."""

    def __call__(self, batches: Sequence[Any]) -> tuple[float, float]:
        model, optimizer = self.model, self.optimizer
        model.train()
        loss_sum, hits, samples = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        for xs, ys in batches:
            optimizer.zero_grad()
            y_pred: Tensor = model(xs)
            loss = cross_entropy(y_pred, ys)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                loss_sum += loss * len(ys)
                hits += (y_pred.argmax(-1) == ys).sum()
                samples += len(ys)
        return float(loss_sum) / samples, float(hits) / samples
