"""Whole trainings as users of torch write them: the weights are those of the loop by hand, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import loopcore as lc


def quiet(*callbacks: Any) -> list[Any]:
    return [lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True), *callbacks]


def equal(model: nn.Module, by_hand: nn.Module) -> None:
    expected = by_hand.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


# -- a convolutional network, trained as in most papers ----------------------------------------------------------------


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def with_decay(model: nn.Module) -> torch.optim.Optimizer:
    """Biases and the parameters of BatchNorm do not decay."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def images() -> tuple[DataLoader[Any], DataLoader[Any]]:
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(100, 1, 8, 8, generator=draw), torch.randint(0, 10, (100,), generator=draw)
    data = TensorDataset(x, y)
    shuffled = torch.Generator().manual_seed(3)
    train = DataLoader(data, 16, shuffle=True, num_workers=2, generator=shuffled, persistent_workers=True)
    return train, DataLoader(data, 32)


@pytest.mark.parametrize("clipped", [False, True])
def test_a_convolutional_network(clipped: bool) -> None:
    epochs, steps = 2, 7
    model, (train, valid) = cnn(), images()
    optimizer = with_decay(model)
    one_cycle = OneCycleLR(optimizer, [0.1, 0.05], total_steps=epochs * steps)
    callbacks = [lc.Metrics(lc.accuracy), lc.TorchScheduler(one_cycle, "step")]
    learner = lc.Learner(
        model, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, (train, valid),
        callbacks=quiet(*callbacks, *([lc.GradientClipping(norm=1.0)] if clipped else [])),
    )  # fmt: skip
    learner.fit(epochs)

    by_hand, (train, valid) = cnn(), images()
    optimizer = with_decay(by_hand)
    one_cycle = OneCycleLR(optimizer, [0.1, 0.05], total_steps=epochs * steps)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    outputs: list[tuple[Tensor, Tensor]] = []
    for _ in range(epochs):
        by_hand.train()
        for x, y in train:
            optimizer.zero_grad()
            torch.autograd.backward(loss_fn(by_hand(x), y))
            if clipped:
                torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
            optimizer.step()
            one_cycle.step()
        by_hand.eval()
        with torch.no_grad():
            outputs = [(by_hand(x), y) for x, y in valid]
    found: Any = [learner.history[name][-1] for name in ("val_loss", "val_accuracy")]
    losses = sum(loss_fn(out, y).item() * len(y) for out, y in outputs) / 100
    np.testing.assert_allclose(
        found, [losses, sum((out.argmax(1) == y).sum().item() for out, y in outputs) / 100], 1e-5
    )
    own, its = (one.param_groups for one in (learner.optimizer[""], optimizer))
    assert [group["lr"] for group in own] == [group["lr"] for group in its]
    if clipped:  # torch adds 1e-6 to the norm
        for name, value in by_hand.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    else:
        equal(model, by_hand)


# -- a pretrained encoder, fine-tuned ----------------------------------------------------------------------------------


class Classifier(nn.Module):
    """As those of transformers: takes a mapping, returns an object, and is in eval mode when it comes from a file."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(hidden[:, 0])}


def classifier() -> Classifier:
    """The embedding and the first layer are frozen."""
    torch.manual_seed(0)
    model = Classifier()
    model.embedding.requires_grad_(False)
    model.encoder.layers[0].requires_grad_(False)
    return model


def sentences() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    found: list[dict[str, Tensor]] = []
    for size in (8, 8, 5):
        mask = torch.ones(size, 6, dtype=torch.int64)
        mask[::2, 4:] = 0
        ids = torch.randint(0, 30, (size, 6), generator=draw)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 3})
    return found


class FineTuning(lc.AbstractTrainingPhase):
    data_key = "training"

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(input_ids=state.input_ids, attention_mask=state.attention_mask)["logits"]
            state.loss = learner.loss_fn(state.y_pred, state.labels)
            return state.loss

        learner.minimize(objective)


def rates(model: Classifier) -> dict[str, float]:
    """The nearer to the input, the smaller."""
    return {"encoder.layers.0": 1e-3, "encoder.layers.1": 2e-3, "encoder.layers.2": 4e-3, "": 8e-3}


def warm_up(step: int) -> float:
    return min(1.0, (step + 1) / 4)


def scaled(rate: float) -> Callable[[float], float]:
    return lambda step: rate * warm_up(int(step))


@pytest.mark.parametrize("kind", ["groups", "by prefix", "specs"])
def test_fine_tuning_with_a_rate_for_each_layer(kind: str) -> None:
    model, by_hand = classifier(), classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def groups(of: Classifier) -> list[dict[str, Any]]:
        by_prefix: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in rates(of)}
        for name, parameter in of.named_parameters():
            by_prefix[max((p for p in by_prefix if name.startswith(p)), key=len)].append(parameter)
        return [{"params": params, "lr": rates(of)[prefix]} for prefix, params in by_prefix.items()]

    optimizer: Any
    schedulers: list[lc.Callback]
    if kind == "groups":
        optimizer = torch.optim.AdamW(groups(model), weight_decay=0.01)
        schedulers = [lc.TorchScheduler(LambdaLR(optimizer, warm_up), "step")]
    elif kind == "by prefix":
        parts = dict(zip(rates(model), groups(model), strict=True))
        del parts["encoder.layers.0"]  # one that never steps makes its scheduler warn, as in torch
        optimizer = {prefix: torch.optim.AdamW([group], weight_decay=0.01) for prefix, group in parts.items()}
        schedulers = [lc.TorchScheduler(LambdaLR(one, warm_up), "step") for one in optimizer.values()]
    else:
        optimizer = {prefix: lc.AdamW(rate, weight_decay=0.01) for prefix, rate in rates(model).items()}
        names = {
            f"{prefix}.learning_rate" if prefix else "learning_rate": rate for prefix, rate in rates(model).items()
        }
        schedulers = [lc.Scheduler({name: scaled(rate) for name, rate in names.items()})]
    learner = lc.Learner(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        (sentences(), None),
        phases=[FineTuning()],
        callbacks=quiet(*schedulers),
    )
    assert {path.split(".")[0] for path in learner.frozen} == {"embedding", "encoder"}
    learner.fit(3)

    reference = torch.optim.AdamW(groups(by_hand), weight_decay=0.01)
    schedule = LambdaLR(reference, warm_up)
    by_hand.train()
    for _ in range(3):
        for batch in sentences():
            reference.zero_grad()
            logits = by_hand(batch["input_ids"], batch["attention_mask"])["logits"]
            torch.autograd.backward(nn.functional.cross_entropy(logits, batch["labels"]))
            reference.step()
            schedule.step()
    for name, value in by_hand.state_dict().items():
        if kind != "specs":
            assert torch.equal(model.state_dict()[name], value), name
        elif "in_proj_bias" not in name:  # a bias of keys has no gradient but rounding, which Adam takes for one
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
        assert torch.equal(value, before[name]) is (name in learner.frozen)
    found = learner.predict(sentences())["logits"]
    by_hand.eval()
    with torch.no_grad():
        expected = [by_hand(b["input_ids"], b["attention_mask"])["logits"] for b in sentences()]
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), rtol=1e-4, atol=1e-5)
