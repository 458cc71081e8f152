"""What seeds what on torch: the seed of the learner its steps, torch's own generator what lies between them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import loopcore as lc

X = torch.arange(8.0)[:, None].repeat(1, 4)


class Spy(lc.Callback):
    """Notes the order of samples, what dropout left, and a draw of the user's after each step."""

    reads = ("step.xs", "step.y_pred")

    def __init__(self, draws: int = 0) -> None:
        self.order: list[int] = []
        self.dropped: list[Tensor] = []
        self.drawn: list[float] = []
        self.draws = draws

    @lc.on(lc.StepEnd, lc.AbstractTrainingPhase)
    def see(self, learner: Any, phase: Any) -> None:
        self.order.append(int(learner.step.xs[0, 0]))
        self.dropped.append(learner.step.y_pred == 0)
        self.drawn += torch.rand(self.draws).tolist()


def run(seed: int, learner_seed: int | None = 0, draws: int = 0, shuffle: bool = True) -> tuple[Spy, lc.Learner]:
    data = DataLoader(TensorDataset(X, X[:, :1]), 1, shuffle=shuffle)
    spy = Spy(draws)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    learner = lc.Learner(
        model, lambda y, ys: y.mean(), lc.SGD(1e-6), (data, None), callbacks=[spy], default_callbacks=False,
        seed=learner_seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    learner.fit(1)
    learner.fit(2)
    return spy, learner


def test_torchs_generator_shuffles_in_each_epoch() -> None:
    orders = [run(seed)[0].order for seed in (1, 2, 2)]
    first, second, again = ([order[start : start + 8] for start in (0, 8, 16)] for order in orders)
    assert len({tuple(order) for order in [*first, *second]}) == 6  # no epoch and no seed like another
    assert second == again


def test_shuffles_are_those_of_a_loop_by_hand() -> None:
    order = run(3)[0].order
    data = DataLoader(TensorDataset(X, X[:, :1]), 1, shuffle=True)
    torch.manual_seed(3)
    assert order == [int(xs[0, 0]) for _ in range(3) for xs, _ in data]


def test_the_seed_of_the_learner_decides_dropout_alone() -> None:
    one, other = run(1, 5, shuffle=False)[0], run(2, 5, draws=3, shuffle=False)[0]
    for a, b in zip(one.dropped, other.dropped, strict=True):
        assert torch.equal(a, b)
    another = run(1, 6)[0]
    assert another.order == run(1, 7)[0].order and not torch.equal(another.dropped[0], one.dropped[0])


def test_draws_between_steps_are_new_ones() -> None:
    spy = run(1, draws=2)[0]
    assert len(set(spy.drawn)) == 48


def test_a_fit_draws_nothing_itself() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    torch.set_rng_state(before)
    lc.Learner(model, nn.MSELoss(), lc.SGD(0.1), ([(X, X[:, :1])], [(X, X[:, :1])]), default_callbacks=False).fit(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_draws_one() -> None:
    seeds = {run(1, None)[1].seed for _ in range(3)}
    assert len(seeds) == 3
    spy, learner = run(1, None)
    again = run(1, learner.seed)[0]
    assert all(torch.equal(a, b) for a, b in zip(spy.dropped, again.dropped, strict=True))


def test_a_generator_of_torch() -> None:
    def numbers(seed: int) -> list[float]:
        learner = lc.Learner(nn.Linear(1, 1), lc.losses.mse, seed=seed)
        return [float(torch.rand((), generator=learner.random.key())) for _ in range(2)]

    assert numbers(0) == numbers(0)
    assert len({*numbers(0), *numbers(1)}) == 4
