"""What users of torch bring in a module: parts in eval mode, and parts that two models share."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import OptimizerError, UnknownModelError

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) * 3 + 5
Y = X.sum(1, keepdim=True)
DATA = ([(X, Y)] * 2, [(X, Y)])


def net(*parts: Any) -> Any:
    """Typed loosely: a part of a Sequential may be anything for type checkers."""
    return nn.Sequential(*parts, nn.Linear(4, 1))


def learner_of(model: Any, optimizer: Any = None, **more: Any) -> lc.Learner:
    more.setdefault("data", DATA)
    return lc.Learner(model, lc.losses.mse, optimizer or lc.SGD(1e-4), default_callbacks=False, **more)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.drop(self.norm(x))
        return found


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")], ids=["", "compiled"])
def test_a_part_in_eval_mode_stays_in_it(wrap: Any) -> None:
    model = net(Body(), nn.BatchNorm1d(4))
    model[0].eval()
    learner = learner_of(wrap(model))
    learner.fit(2)
    assert not model[0].norm.running_mean.any() and model[1].running_mean.any()
    learner.predict([X])
    learner.fit(1)
    assert not model[0].norm.running_mean.any()
    assert [part.training for part in model[0].modules()] == [False] * 3
    assert "in evaluation mode while others train: 0\n" in learner.explain()


def test_a_part_keeps_parts_of_its_own_in_train_mode() -> None:
    model = net(Body())
    model.eval()
    model[0].norm.train()
    learner = learner_of({"net": model})
    assert "in evaluation mode while others train: net itself, net.0 itself, net.0.drop, net.1\n" in learner.explain()
    learner.fit(1)
    assert model[0].norm.running_mean.any()
    torch.testing.assert_close(learner.model(X, training=True), learner.model(X, training=True))  # no dropout


def test_a_model_in_eval_mode_is_trained_as_any_other() -> None:
    model = net(nn.BatchNorm1d(4)).eval()
    learner = learner_of(model)
    learner.fit(1)
    assert model[0].running_mean.any() and "evaluation mode" not in learner.explain()


def test_a_model_that_keeps_a_part_by_its_train_method() -> None:
    class Keeps(Body):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.norm.eval()
            return self

    model = net(Keeps().train())
    learner_of(model).fit(2)
    assert not model[0].norm.running_mean.any()


def test_modes_are_those_of_the_model_that_is_set() -> None:
    model = net(Body())
    model[0].eval()
    learner = learner_of(model)
    other = net(Body())
    learner.set_model(other)
    learner.fit(1)
    assert other[0].norm.running_mean.any()


# -- shared parts ------------------------------------------------------------------------------------------------------


class OnBody(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.body(x)))
        return found


def two() -> tuple[OnBody, OnBody]:
    torch.manual_seed(0)
    body = nn.Linear(4, 4)
    return OnBody(body), OnBody(body)


class Both(lc.AbstractTrainingPhase):
    data_key = "training"

    def unpack(self, batch: Any) -> dict[str, Any]:
        return dict(zip(("xs", "ys"), batch, strict=True))

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            a, b = learner.model.a(state.xs), learner.model.b(state.xs)
            state.loss = lc.losses.mse(a, state.ys) + lc.losses.mse(b, -state.ys)
            return state.loss

        learner.minimize(objective)


@pytest.mark.parametrize("kind", ["one spec", "specs", "torch's own"])
def test_what_two_models_share_is_updated_once(kind: str) -> None:
    a, b = two()
    everything = nn.ModuleList([a, b]).parameters()
    optimizer: Any = {
        "one spec": lc.Momentum(1e-2),
        "specs": {"a": lc.Momentum(1e-2), "b": lc.Momentum(1e-2)},
        "torch's own": torch.optim.SGD(everything, 1e-2, 0.9),
    }[kind]
    learner = learner_of({"a": a, "b": b}, optimizer, phases=[Both()], data=(DATA[0], None))
    assert [list(part) for part in learner.params.value.values()] == [
        ["body.weight", "body.bias", "head.weight", "head.bias"],
        ["head.weight", "head.bias"],
    ]
    learner.fit(2)
    hand_a, hand_b = two()
    by_hand = torch.optim.SGD(nn.ModuleList([hand_a, hand_b]).parameters(), 1e-2, 0.9)
    for _ in range(4):
        by_hand.zero_grad()
        loss = nn.functional.mse_loss(hand_a(X), Y) + nn.functional.mse_loss(hand_b(X), -Y)
        torch.autograd.backward(loss)
        by_hand.step()
    for ours, its in zip((*a.parameters(), *b.head.parameters()), by_hand.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-5, atol=1e-6)


def test_a_gradient_elsewhere_counts_in_both_models() -> None:
    a, b = two()
    learner = learner_of({"a": a, "b": b})
    zeros = learner.tree.map(torch.zeros_like, learner.params.value)
    grads = learner.gradient(lambda: learner.model.b(X).sum() + learner.model.a(X).sum(), at=zeros)
    assert not grads["b"]["head.weight"].any()  # tanh of zero: the weights of the body stood in, in b too
    copied = learner.model.b.apply(learner.params.b.value, X)
    torch.testing.assert_close(copied, learner.model.b(X))


def test_two_optimizers_that_hold_what_is_shared_are_refused() -> None:
    a, b = two()
    optimizers = {"a": torch.optim.SGD(a.parameters(), 0.1), "b": torch.optim.Adam(b.parameters(), 0.1)}
    with pytest.raises(OptimizerError, match=r"SGD and Adam both hold a.body.weight, which is b.body.weight too"):
        learner_of({"a": a, "b": b}, optimizers)


def test_what_is_shared_with_a_model_that_nobody_trains() -> None:
    a, b = two()
    with pytest.raises(OptimizerError, match=r"'b' is trained and shares a.body.weight with 'a'"):
        learner_of({"a": a, "b": b}, {"b": lc.SGD(0.1)})
    learner = learner_of({"a": a, "b": b}, {"b": lc.SGD(0.1), "a.body": lc.SGD(0.1)})
    assert learner.frozen == ("a.head.weight", "a.head.bias")
    a.body.requires_grad_(False)
    assert "a.body.weight" in learner_of({"a": a, "b": b}, {"b": lc.SGD(0.1)}).frozen


def test_what_a_tree_shares_with_a_module_is_refused() -> None:
    a, _ = two()
    with pytest.raises(UnknownModelError, match=r"share a.body.weight, and 'w' is no module"):
        learner_of({"a": a, "w": {"x": a.body.weight}})
