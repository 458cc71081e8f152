"""What users of torch freeze by ``requires_grad=False``: it stays frozen, and what changes later is heeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import GradientError, OptimizerError

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.body(x)))
        return result


def net(frozen: str = "body") -> Net:
    torch.manual_seed(0)
    model = Net()
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    return model


def learner_of(model: Any, optimizer: Any, *callbacks: lc.Callback, steps: int = 2) -> lc.Learner:
    return lc.Learner(
        model, lc.losses.mse, optimizer, ([(X, Y)] * steps, None), callbacks=callbacks, default_callbacks=False
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def groups(model: Net) -> list[dict[str, Any]]:
    return [{"params": model.body.parameters(), "lr": 1e-3}, {"params": model.head.parameters()}]


HEAD = {"head.weight", "head.bias"}
BODY = {"body.weight", "body.bias"}

OPTIMIZERS: dict[str, Callable[[Net], Any]] = {
    "a spec": lambda m: lc.AdamW(1e-2),
    "a spec with velocity": lambda m: lc.Momentum(1e-2),
    "specs by prefix": lambda m: {"body": lc.AdamW(1e-2), "head": lc.Adam(1e-2)},
    "torch's own": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, weight_decay=0.1),
    "torch's own with groups": lambda m: torch.optim.SGD(groups(m), 1e-2, momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_frozen_stays_frozen(make: Callable[[Net], Any]) -> None:
    model = net()
    before = weights(model)
    learner = learner_of(model, make(model))
    assert set(learner.frozen) == BODY and set(learner.params.value) == HEAD
    learner.fit(2)
    assert moved(before, model) == HEAD
    assert not model.body.weight.requires_grad
    assert "frozen: body.weight, body.bias" in learner.explain()


def test_an_optimizer_under_its_own_path_wakes_a_parameter() -> None:
    model = net()
    before = weights(model)
    learner = learner_of(model, {"": lc.SGD(1e-2), "body.bias": lc.SGD(1e-2)})
    assert learner.frozen == ("body.weight",) and model.body.bias.requires_grad
    learner.fit(1)
    assert moved(before, model) == {*HEAD, "body.bias"}


def test_the_name_of_a_model_wakes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(2), requires_grad=False)
    learner = lc.Learner({"net": net(""), "w": weight}, None, {"net": lc.SGD(0.1), "w": lc.SGD(0.1)})
    assert learner.frozen == ("w",) and not weight.requires_grad


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_let_go_between_fits_is_trained_as_by_hand(make: Callable[[Net], Any]) -> None:
    """The optimizer keeps what it knew of the others."""
    model, by_hand = net(), net()
    learner = learner_of(model, make(model))
    learner.fit(2)
    model.body.requires_grad_(True)
    learner.fit(2)
    assert learner.frozen == () and set(learner.params.value) == HEAD | BODY
    model.head.requires_grad_(False)
    learner.fit(1)
    assert set(learner.frozen) == HEAD
    optimizers = [torch_optimizer(by_hand, given, prefix) for prefix, given in prefixed(make(by_hand))]
    for step in range(10):
        by_hand.body.requires_grad_(step >= 4)
        by_hand.head.requires_grad_(step < 8)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(by_hand(X), Y))
        for optimizer in optimizers:
            optimizer.step()
    for name, value in weights(by_hand).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def prefixed(given: Any) -> list[tuple[str, Any]]:
    return list(given.items()) if isinstance(given, dict) else [("", given)]


def torch_optimizer(model: nn.Module, given: Any, prefix: str) -> torch.optim.Optimizer:
    params = list((model.get_submodule(prefix) if prefix else model).parameters())
    match given:
        case torch.optim.Optimizer():
            return given
        case lc.AdamW():
            return torch.optim.AdamW(params, given.learning_rate, weight_decay=given.weight_decay)
        case lc.Adam():
            return torch.optim.Adam(params, given.learning_rate)
        case _:
            return torch.optim.SGD(params, given.learning_rate, momentum=given.momentum)


@pytest.mark.parametrize("hook", [lc.FitBegin, lc.EpochBegin])
@pytest.mark.parametrize("free", [True, False])
def test_a_callback_freezes_and_lets_go(hook: type[lc.Event], free: bool) -> None:
    model = net("" if not free else "body")

    class Change(lc.Callback):
        reads = ("model",)

        @lc.on(hook)
        def change(self, learner: Any, phase: Any) -> None:
            learner.model.native.body.requires_grad_(free)

    before = weights(model)
    learner = learner_of(model, lc.Adam(1e-2), Change())
    learner.fit(1)
    assert moved(before, model) == (HEAD | BODY if free else HEAD)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_is_frozen_within_an_epoch_moves_no_more(make: Callable[[Net], Any]) -> None:
    model = net("")
    kept: list[dict[str, Tensor]] = []

    class Stop(lc.Callback):
        reads = ("model",)

        @lc.on(lc.StepEnd)
        def end(self, learner: Any, phase: Any) -> None:
            learner.model.native.body.requires_grad_(False)
            kept.append(weights(model))

    learner_of(model, make(model), Stop(), steps=3).fit(1)
    assert moved(kept[0], model) == HEAD


def test_hyperparameters_outlive_what_is_let_go() -> None:
    model = net()
    learner = learner_of(model, {"body": lc.SGD(0.1), "": lc.Adam(0.1)})
    learner.hyper["body.learning_rate"], learner.hyper.momentum = 0.03, 0.8
    learner.fit(1)
    model.body.requires_grad_(True)
    learner.fit(1)
    assert (learner.hyper["body.learning_rate"], learner.hyper.momentum) == (0.03, 0.8)


def test_what_is_held_stays_held() -> None:
    model = net()
    learner = learner_of(model, lc.SGD(1e-2))
    learner.hold("head.bias")
    model.body.requires_grad_(True)
    before = weights(model)
    learner.fit(1)
    assert moved(before, model) == BODY | {"head.weight"}


def test_a_checkpoint_of_a_frozen_body_goes_on(tmp_path: Any) -> None:
    model = net()
    learner = learner_of(model, lc.Adam(1e-2))
    learner.fit(1)
    path = learner.save(tmp_path / "c.safetensors")
    learner.fit(1)
    other = net()
    resumed = learner_of(other, lc.Adam(1e-2))
    resumed.load(path)
    resumed.fit(1)
    assert not moved(weights(model), other)


def test_nothing_is_left_to_train() -> None:
    model = net("").requires_grad_(False)
    learner = learner_of(model, lc.SGD(0.1))
    with pytest.raises(OptimizerError, match="frozen by the framework's own flag"):
        learner.fit(1)
    model.head.requires_grad_(True)
    assert learner.fit(1).status == "completed"


def test_a_body_that_toggles_the_flag() -> None:
    """As loops of GANs do; what is off when an epoch begins is found by its name."""
    generator, critic = nn.Linear(8, 8), nn.Linear(8, 1)

    class Gan(lc.AbstractTrainingPhase):
        data_key = "training"

        def unpack(self, batch: Any) -> dict[str, Any]:
            return {"xs": batch[0]}

        def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
            critic.requires_grad_(True)
            learner.minimize(lambda: learner.model.critic(state.xs).mean(), learner.params.critic)
            critic.requires_grad_(False)
            objective = lambda: -learner.model.critic(learner.model.generator(state.xs)).mean()  # noqa: E731
            learner.minimize(objective, learner.params.generator)

    models = {"generator": generator, "critic": critic}
    learner = lc.Learner(models, None, lc.SGD(0.1), ([(X, Y)] * 2, None), phases=[Gan()], default_callbacks=False)
    for _ in range(3):
        before = weights(critic), weights(generator)
        learner.fit(1)
        assert moved(before[0], critic) == {"weight", "bias"} and moved(before[1], generator) == {"weight", "bias"}


def test_a_gradient_by_what_is_frozen() -> None:
    learner = learner_of(net(), lc.SGD(0.1))
    with pytest.raises(GradientError, match="all parameters in wrt have requires_grad=False"):
        learner.gradient(lambda: lc.losses.mse(learner.model(X), Y), learner.params.body)
