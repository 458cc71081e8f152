"""Sparse gradients, of ``nn.Embedding(sparse=True)``: they work as dense ones do, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import OptimizerError

I = torch.randint(0, 50, (32, 5), generator=torch.Generator().manual_seed(1))  # noqa: E741
Y = I.float().mean(1, keepdim=True) / 50
DATA = [(I[start : start + 8], Y[start : start + 8]) for start in range(0, 32, 8)]


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(50, 8, sparse=sparse), nn.Linear(8, 1)

    def forward(self, i: Tensor) -> Tensor:
        found: Tensor = self.out(self.words(i).mean(1))
        return found


def seeded(sparse: bool) -> Words:
    torch.manual_seed(0)
    return Words(sparse)


def fitted(model: Words, optimizer: Any, *callbacks: lc.Callback) -> lc.Learner:
    quiet = lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)
    learner = lc.Learner(model, nn.MSELoss(), optimizer, (DATA, None), callbacks=[*quiet, *callbacks])
    learner.fit(2)
    return learner


def with_sparse_adam(model: Words) -> dict[str, Any]:
    return {
        "words": torch.optim.SparseAdam([model.words.weight], 1e-2),
        "out": torch.optim.Adam(model.out.parameters()),
    }


CALLBACKS: dict[str, Callable[[], list[lc.Callback]]] = {
    "alone": lambda: [],
    "accumulation": lambda: [lc.GradientAccumulation(2)],
    "value": lambda: [lc.GradientClipping(value=1e-3)],
    "norm": lambda: [lc.GradientClipping(norm=1e-3)],
    "histograms": lambda: [lc.LogHistograms(lc.loggers.MemoryLogger(), gradients=True)],
    "guard": lambda: [lc.StopOnNaNLoss()],
    "all": lambda: [lc.GradientAccumulation(2), lc.GradientClipping(norm=1e-3, value=1e-3), lc.StopOnNaNLoss()],
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's Adagrad
@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize(
    "make",
    [
        lambda m: lc.SGD(0.1),
        lambda m: lc.Momentum(0.1),
        lambda m: lc.AdamW(0.1),
        lambda m: torch.optim.SGD(m.parameters(), 0.1),
        lambda m: torch.optim.Adagrad(m.parameters(), 0.1),
    ],
    ids=["SGD", "Momentum", "AdamW", "torch SGD", "torch Adagrad"],
)
def test_they_train_as_dense_ones_do(make: Callable[[Words], Any], callbacks: Callable[[], list[lc.Callback]]) -> None:
    sparse, dense = seeded(True), seeded(False)
    for model in (sparse, dense):
        fitted(model, make(model), *callbacks())
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_sparse_adam(callbacks: Callable[[], list[lc.Callback]]) -> None:
    model = seeded(True)
    learner = fitted(model, with_sparse_adam(model), *callbacks())
    assert learner.history["loss"][1] < learner.history["loss"][0]  # type: ignore[operator]
    unseen = torch.tensor(sorted(set(range(50)) - set(I.flatten().tolist())))
    assert unseen.numel() and torch.equal(model.words.weight[unseen], seeded(True).words.weight[unseen])


def test_sparse_adam_as_by_hand() -> None:
    model, by_hand = seeded(True), seeded(True)
    fitted(model, with_sparse_adam(model))
    optimizers = with_sparse_adam(by_hand)
    for i, y in DATA * 2:
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(by_hand(i), y))
        for optimizer in optimizers.values():
            optimizer.step()
    for ours, its in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, its)


def test_an_optimizer_that_takes_none_is_refused_at_once() -> None:
    model = seeded(True)
    with pytest.raises(OptimizerError, match=r"Adam takes no sparse gradients, .* of words.weight has"):
        lc.Learner(model, nn.MSELoss(), torch.optim.Adam(model.parameters()))
    model.words.weight.requires_grad_(False)
    lc.Learner(model, nn.MSELoss(), torch.optim.Adam(model.parameters()))
