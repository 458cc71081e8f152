"""The PyTorch adapter: native optimizers, their hyperparameters and states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import loopcore as lc
from loopcore.errors import (
    CheckpointError,
    OptimizerError,
)
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from tests.torch_adapter.calls import (
    Tied,
    assert_close,
    bound,
    compiled_of,
    mlp,
    seeded,  # noqa: F401, used by all tests here
    w,
    weights,
)

# -- native optimizers -------------------------------------------------------------------------------------------------


def test_native_paths() -> None:
    model = mlp()
    backend = bound(model)
    assert backend.native_paths(Adam(0.1)) is None
    assert backend.native_paths(torch.optim.Adam([model.get_parameter("2.bias"), model.get_parameter("0.weight")])) == (
        "0.weight",
        "2.bias",
    )
    tied = Tied()
    assert bound(tied).native_paths(torch.optim.SGD(tied.parameters(), 0.1)) == ("first.weight",)
    compiled = compiled_of(model)
    assert bound(compiled).native_paths(torch.optim.SGD(compiled.parameters(), 0.1)) == backend.paths("params")[""]


def test_native_optimizers_that_do_not_fit() -> None:
    model, other = mlp(), mlp()
    backend = bound(model)
    paths = backend.paths("params")[""]
    for optimizer, words in [
        (torch.optim.SGD(other.parameters(), 0.1), r"does not hold 0\.weight.*build it from model.parameters\(\)"),
        (torch.optim.SGD([model.get_parameter("0.weight")], 0.1), r"does not hold 0\.bias, 2\.weight, 2\.bias"),
        (
            torch.optim.SGD([*model.parameters(), other.get_parameter("2.bias")], 0.1),
            r"no parameters of the models, of shapes \[3\]",
        ),
        (torch.optim.LBFGS(model.parameters()), "needs a closure"),
        (object(), "builtins.object, but the model is a torch one"),
        (OptimizerSpec(0.1), "torch has nothing for"),
    ]:
        with pytest.raises(OptimizerError, match=words):
            backend.attach([(optimizer, paths)])
    big = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(OptimizerError, match="and 3 more"):
        bound(big, torch.optim.SGD(other.parameters(), 0.1))


def test_a_failed_attach_changes_nothing() -> None:
    model = mlp()
    backend = bound(model, SGD(0.5))
    with pytest.raises(OptimizerError):
        backend.attach([(object(), backend.paths("params")[""])])
    assert backend.get_hyper(0, "learning_rate") == 0.5


def test_schedulers_of_torch_see_the_steps() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    backend = bound(model, optimizer)
    for expected in (0.5, 0.25):
        backend.update(backend.snapshot(["weight", "bias"]), True)
        scheduler.step()  # would warn, had the optimizer not stepped
        assert backend.get_hyper(0, "learning_rate") == expected


def test_step_hooks_of_torch_run() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    seen: list[bool] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad is not None))
    backend = bound(model, optimizer)
    backend.update(backend.snapshot(["weight", "bias"]), True)
    assert seen == [True]


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda params: SGD(0.1), ("learning_rate",)),
        (lambda params: Momentum(0.1), ("learning_rate", "momentum")),
        (lambda params: Adam(0.1), ("learning_rate", "momentum")),
        (lambda params: AdamW(0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.SGD(params, 0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.Adam(params, 0.1), ("learning_rate", "momentum", "weight_decay")),
        (lambda params: torch.optim.Adagrad(params, 0.1), ("learning_rate", "weight_decay")),
        (lambda params: torch.optim.Rprop(params, 0.1), ("learning_rate",)),
    ],
)
def test_hyper(make: Callable[[Any], Any], names: tuple[str, ...]) -> None:
    model = mlp()
    backend = bound(model, make([{"params": model[0].parameters()}, {"params": model[2].parameters()}]))
    assert backend.hyper_names(0) == names
    assert backend.get_hyper(0, "learning_rate") == 0.1
    for number, name in enumerate(names):
        backend.set_hyper(0, name, 0.25 + number / 100)
    assert [backend.get_hyper(0, name) for name in names] == [0.25 + number / 100 for number in range(len(names))]


def test_hyper_reaches_every_group_and_keeps_tensors() -> None:
    model = mlp()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=rate)
    backend = bound(model, optimizer)
    backend.set_hyper(0, "learning_rate", 0.5)
    backend.set_hyper(0, "momentum", 0.7)
    backend.set_hyper(0, "weight_decay", 0.25)
    for group in optimizer.param_groups:
        assert isinstance(group["lr"], Tensor) and group["lr"] == 0.5
        assert group["betas"] == (0.7, 0.999) and group["weight_decay"] == 0.25
    assert backend.get_hyper(0, "learning_rate") == 0.5


def test_a_new_rate_counts_in_the_next_update() -> None:
    backend = weights((1.0, 2.0), SGD(0.1))
    backend.update({"w": torch.ones(2)}, True)
    backend.set_hyper(0, "learning_rate", 0.5)
    backend.update({"w": torch.ones(2)}, True)
    assert_close(w(backend), [0.4, 1.4])


# -- checkpoints -------------------------------------------------------------------------------------------------------


def grouped(*rates: float, kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> lc.Learner:
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(2, 2) for _ in rates])
    groups = [{"params": list(one.parameters()), "lr": rate} for one, rate in zip(layers, rates, strict=True)]
    data = [(torch.ones(3, 2), torch.zeros(3, 2))] * 2, None
    return lc.Learner(layers, lc.losses.mse, optimizer=kind(groups), data=data, default_callbacks=False)


def rates_of(learner: lc.Learner) -> list[float]:
    return [group["lr"] for group in learner.optimizer[""].param_groups]


def test_every_parameter_group_keeps_its_own_rate(tmp_path: Path) -> None:
    whole, first, second = grouped(0.1, 0.001), grouped(0.1, 0.001), grouped(0.5, 0.5)
    whole.fit(2)
    first.fit(1)
    path = first.save(tmp_path / "x")
    assert rates_of(first) == [0.1, 0.001]
    second.load(path)
    assert rates_of(second) == [0.1, 0.001]
    second.fit(1)
    np.testing.assert_equal(second.export_weights(), whole.export_weights())


def test_a_rate_is_set_in_all_groups_of_an_optimizer_and_in_one_of_several_optimizers() -> None:
    learner = grouped(0.1, 0.001)
    assert learner.hyper.learning_rate == 0.1
    with pytest.warns(UserWarning, match=r"had a learning_rate of 0\.1, 0\.001, and all have 0\.5 now"):
        learner.hyper.learning_rate = 0.5
    assert rates_of(learner) == [0.5, 0.5]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    optimizers = {name: torch.optim.SGD(model[name].parameters(), 0.1) for name in model}
    learner = lc.Learner(model, lc.losses.mse, optimizer=optimizers)
    learner.hyper["body.learning_rate"] = 0.001
    assert [one.param_groups[0]["lr"] for one in optimizers.values()] == [0.001, 0.1]


def test_other_groups_and_kinds_are_refused(tmp_path: Path) -> None:
    first = grouped(0.1, 0.001)
    first.fit(1)
    path = first.save(tmp_path / "x")
    other = grouped(0.3, 0.4, kind=torch.optim.AdamW)
    with pytest.raises(CheckpointError, match="AdamW here, Adam in the checkpoint"):
        other.load(path)
    single = grouped(0.1, 0.001)
    single.optimizer[""].add_param_group({"params": [], "lr": 0.7})
    with pytest.raises(CheckpointError, match=r"param_groups\[2\]\.learning_rate: not there"):
        single.load(path)
    assert rates_of(other) == [0.3, 0.4] and rates_of(single) == [0.1, 0.001, 0.7]
    assert not single.optimizer[""].state and not other.optimizer[""].state


def test_every_misfit_of_a_state_is_named() -> None:
    backend = weights(optimizer=lc.Adam(0.1))
    backend.update({"w": torch.ones(2)}, True)
    before = backend.export_optimizers()
    wrong = {**before, "0.w.exp_avg": np.zeros((3,), "f4"), "0.w.exp_avg_sq": np.zeros((2,), "f2"), "1.w.x": np.ones(1)}
    with pytest.raises(ValueError, match=r"(?s)exp_avg: shape \[3\].*exp_avg_sq: dtype float16.*1\.w\.x: no optimizer"):
        backend.import_optimizers(wrong)
    np.testing.assert_equal(backend.export_optimizers(), before)
