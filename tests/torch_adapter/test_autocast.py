"""Runs within ``torch.autocast`` are those of a loop that has it in each step."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import GradientError

X = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)
DATA = [(X[start : start + 16], Y[start : start + 16]) for start in range(0, 128, 16)]


class Net(nn.Module):
    """Uses a weight twice, which autocast casts once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.out = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.relu(self.twice(torch.relu(self.twice(x)))))
        return found


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def by_hand(make: Any, epochs: int = 4) -> Net:
    model = net()
    optimizer = make(model.parameters())
    for _ in range(epochs):
        for xs, ys in DATA:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.mse_loss(model(xs), ys)
            torch.autograd.backward(loss)
            optimizer.step()
    return model


OPTIMIZERS: list[Any] = [lambda p: torch.optim.SGD(p, 0.01), lambda p: torch.optim.AdamW(p, 0.01)]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["SGD", "AdamW"])
@pytest.mark.parametrize("valid", [None, DATA], ids=["", "validated"])
def test_fit_within_autocast(make: Any, valid: Any) -> None:
    model = net()
    learner = lc.Learner(model, nn.MSELoss(), make(model.parameters()), (DATA, valid), default_callbacks=False)
    with torch.autocast("cpu", torch.bfloat16):
        learner.fit(4)
    for ours, its in zip(model.parameters(), by_hand(make).parameters(), strict=True):
        assert torch.equal(ours, its)


def test_within_a_hand_written_epoch() -> None:
    model = net()
    learner = lc.Learner(model, nn.MSELoss(), OPTIMIZERS[0](model.parameters()), default_callbacks=False)
    phase = lc.TrainingPhase()
    for _ in range(4):
        with lc.run_epoch(learner, phase), torch.autocast("cpu", torch.bfloat16):
            for batch in DATA:
                learner.run_step(phase, batch)
    for ours, its in zip(model.parameters(), by_hand(OPTIMIZERS[0]).parameters(), strict=True):
        assert torch.equal(ours, its)


def test_a_forward_pass_before_the_objective_and_after_the_update() -> None:
    """What they cast has no graph, or becomes old."""

    class Looks(lc.TrainingPhase):
        def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
            state.before = learner.model(state.xs)
            super().step(learner, handle, state)
            state.after = learner.model(state.xs)

    model = net()
    learner = lc.Learner(
        model, nn.MSELoss(), OPTIMIZERS[0](model.parameters()), (DATA, None), phases=[Looks()], default_callbacks=False
    )
    with torch.autocast("cpu", torch.bfloat16):
        state = learner.run_step(Looks(), DATA[0], reads=("step",))
        assert not torch.equal(state.before, state.after)
        predicted = learner.predict(X)
        learner.params.value = {name: 2 * value for name, value in learner.params.value.items()}
        assert not (predicted == learner.predict(X)).all()
    assert not torch.is_autocast_enabled("cpu")


def test_within_inference_mode() -> None:
    learner = lc.Learner(net(), nn.MSELoss(), lc.SGD(0.1), (DATA, None), default_callbacks=False)
    with torch.inference_mode(), pytest.raises(GradientError, match=r"within torch.inference_mode\(\): leave it out"):
        learner.fit(1)


def test_without_gradients() -> None:
    model = net()
    with torch.no_grad():
        lc.Learner(model, nn.MSELoss(), lc.SGD(0.01), (DATA, None), default_callbacks=False).fit(1)
    assert not torch.equal(model.out.weight, net().out.weight)
