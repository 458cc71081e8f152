"""Parameters that no objective reaches: named once, and left alone by torch's own optimizers as in torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import loopcore as lc
from loopcore.errors import GradientError

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor, head: str) -> Tensor:
        result: Tensor = self.get_submodule(head)(torch.relu(self.body(x)))
        return result


class ByHead(lc.AbstractTrainingPhase):
    data_key = "training"

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = learner.losses.mse(learner.model(state.xs, state.head), state.ys)
            return state.loss

        learner.minimize(objective)


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def batches_of(heads: str) -> list[dict[str, Any]]:
    return [{"xs": X, "ys": Y, "head": head} for head in heads]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, 0.01, weight_decay=0.1),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, 0.01, weight_decay=0.1, fused=True),
    "SGD": lambda params: torch.optim.SGD(params, 0.01, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("heads", ["aaabbb", "abab", "baaab"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("callbacks", [(), (lc.GradientClipping(norm=1e9),)], ids=["", "clipped"])
def test_torchs_own_leave_them_alone(
    make: Callable[[Any], torch.optim.Optimizer], heads: str, callbacks: tuple[lc.Callback, ...]
) -> None:
    model, by_hand = seeded(Heads), seeded(Heads)
    data = batches_of(heads)
    learner = lc.Learner(
        model, None, make(model.parameters()), (data, None), phases=[ByHead()], callbacks=callbacks,
        default_callbacks=False,
    )  # fmt: skip
    learner.fit(2)  # no warning: each head was reached
    optimizer = make(by_hand.parameters())
    for batch in data * 2:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(by_hand(batch["xs"], batch["head"]), batch["ys"]))
        optimizer.step()
    for ours, its in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, its)


def test_accumulated_ones_count_if_one_of_the_window_reached_them() -> None:
    model, by_hand = seeded(Heads), seeded(Heads)
    data = batches_of("abaa")
    learner = lc.Learner(
        model, None, OPTIMIZERS["AdamW"](model.parameters()), (data, None), phases=[ByHead()],
        callbacks=[lc.GradientAccumulation(2)], default_callbacks=False,
    )  # fmt: skip
    learner.fit(1)
    optimizer = OPTIMIZERS["AdamW"](by_hand.parameters())
    for start in (0, 2):
        optimizer.zero_grad()
        for batch in data[start : start + 2]:
            torch.autograd.backward(nn.functional.mse_loss(by_hand(batch["xs"], batch["head"]), batch["ys"]) / 2)
        optimizer.step()
    for ours, its in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda m: lc.SGD(0.1), lambda m: torch.optim.SGD(m.parameters(), 0.1)])
def test_what_is_never_reached_is_named_once(make: Callable[[nn.Module], Any]) -> None:
    model = Heads()
    learner = lc.Learner(model, None, make(model), (batches_of("aa"), None), phases=[ByHead()], default_callbacks=False)
    with pytest.warns(UserWarning, match=r"no objective has reached b.weight, b.bias so far"):
        learner.fit(1)
    learner.fit(1)


def test_the_frozen_are_not_named() -> None:
    model = Heads()
    model.b.requires_grad_(False)
    lc.Learner(model, None, lc.SGD(0.1), (batches_of("aa"), None), phases=[ByHead()], default_callbacks=False).fit(1)


class Checkpointed(nn.Module):
    """As with adapters behind frozen embeddings: nothing before the checkpoint needs a gradient."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.middle, self.out, self.reentrant = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        h = h if h.requires_grad else h.requires_grad_()
        found = checkpoint(lambda h: torch.relu(self.middle(h)), h, use_reentrant=self.reentrant)
        result: Tensor = self.out(found)
        return result


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_trained(reentrant: bool, frozen: bool) -> None:
    model, by_hand = (seeded(lambda: Checkpointed(reentrant)) for _ in range(2))
    for one in (model, by_hand):
        one.inner.requires_grad_(not frozen)
    learner = lc.Learner(
        model, nn.MSELoss(), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01),
        ([(X, Y)] * 5, None), callbacks=[lc.SanityCheck()], default_callbacks=False,
    )  # fmt: skip
    learner.fit(2)
    optimizer = torch.optim.SGD([p for p in by_hand.parameters() if p.requires_grad], 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(by_hand(X), Y))
        optimizer.step()
    for ours, its in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, its) and ours.grad is None


def test_a_checkpoint_where_no_backward_can_enter_says_what_to_write() -> None:
    model = Checkpointed(True)
    model.reentrant = False
    learner = lc.Learner(model, nn.MSELoss(), lc.SGD(0.1), ([(X, Y)], None), default_callbacks=False)
    learner.fit(1)
    model.reentrant = True  # turned on after the first gradient
    with pytest.raises(GradientError, match="use_reentrant=False"), warnings.catch_warnings():
        learner.fit(1)
