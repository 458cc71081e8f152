"""The PyTorch adapter: random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loopcore import backend as protocol
from loopcore.backend import DrawKey
from loopcore_torch import Backend
from loopcore_torch.random import GlobalGenerators, mix
from tests.torch_adapter.calls import (
    KEY,
    bound,
    call,
    seeded,  # noqa: F401, used by all tests here
)


def dropped(backend: Backend, key: DrawKey) -> Tensor:
    out: list[Tensor] = []
    backend.run_body(lambda: out.append(call(backend, torch.ones(64))), key)
    return out[0]


def test_dropout_follows_the_key() -> None:
    backend = bound(nn.Dropout(0.5))
    first = dropped(backend, KEY)
    assert torch.equal(dropped(backend, KEY), first)
    for other in (KEY._replace(seed=2), KEY._replace(stream=5), KEY._replace(step=4)):
        assert not torch.equal(dropped(backend, other), first)


def test_a_body_leaves_the_users_random_state_as_it_was() -> None:
    backend = bound(nn.Dropout(0.5))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dropped(backend, KEY)
    backend.run_body(lambda: print(dropped(backend, KEY)), KEY)  # one step within another
    assert torch.equal(torch.get_rng_state(), before) and torch.initial_seed() == 5

    def fails() -> None:
        torch.rand(1)
        raise KeyError

    with pytest.raises(KeyError):
        backend.run_body(fails, KEY)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_generator_of_an_accelerator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Generator()  # stands in for the one of the device
    if kind == "cuda":
        module = SimpleNamespace(default_generators=(torch.Generator(), own))
    else:
        module = SimpleNamespace(manual_seed=own.manual_seed, get_rng_state=own.get_state, set_rng_state=own.set_state)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    generators = GlobalGenerators(torch.device(kind, 1))
    before, state = own.get_state(), generators.state()
    generators.seed(7)
    assert own.initial_seed() == 7 == torch.default_generator.initial_seed()
    generators.put_back(state)
    assert torch.equal(own.get_state(), before)


DRAWS: dict[str, Callable[[protocol.RandomBackend, DrawKey], Any]] = {
    "normal": lambda random, key: random.normal(key, (20000,)),
    "uniform": lambda random, key: random.uniform(key, (20000,), -1.0, 3.0),
    "bernoulli": lambda random, key: random.bernoulli(key, 0.3, (20000,)),
    "integers": lambda random, key: random.integers(key, 2, 5, (20000,)),
    "permutation": lambda random, key: random.permutation(key, 100),
    "beta": lambda random, key: random.beta(key, 2.0, 3.0, (20000,)),
    "categorical": lambda random, key: random.categorical(key, torch.tensor([0.0, math.log(3.0)]).expand(20000, 2)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_equal_keys_draw_equal_numbers(name: str) -> None:
    random = bound(nn.Linear(1, 1).double()).random
    state = torch.get_rng_state()
    first = DRAWS[name](random, KEY)
    random.normal(KEY, (3,))
    assert torch.equal(DRAWS[name](random, KEY), first)
    for other in (KEY._replace(seed=2), KEY._replace(stream=5), KEY._replace(step=4)):
        assert not torch.equal(DRAWS[name](random, other), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "mean", "variance", "dtype"),
    [
        ("normal", 0.0, 1.0, torch.float64),
        ("uniform", 1.0, 16 / 12, torch.float64),
        ("bernoulli", 0.3, 0.21, torch.float64),
        ("integers", 3.0, 2 / 3, torch.int32),
        ("beta", 0.4, 0.04, torch.float64),
        ("categorical", 0.75, 0.1875, torch.int32),
    ],
)
def test_draws_have_their_distribution(name: str, mean: float, variance: float, dtype: torch.dtype) -> None:
    draws = DRAWS[name](bound(nn.Linear(1, 1).double()).random, KEY)
    assert draws.dtype == dtype and draws.shape == (20000,)
    assert abs(draws.double().mean().item() - mean) < 5 * math.sqrt(variance / 20000)
    assert abs(draws.double().var().item() / variance - 1) < 0.06


def test_the_range_of_draws() -> None:
    random = Backend().random
    assert random.uniform(KEY, (1000,), -1.0, 3.0).min() >= -1
    assert set(random.integers(KEY, 2, 5, (100,)).tolist()) == {2, 3, 4}
    assert set(random.bernoulli(KEY, 0.5, (100,)).tolist()) == {0.0, 1.0}
    assert sorted(random.permutation(KEY, 10).tolist()) == list(range(10))
    assert random.categorical(KEY, torch.zeros(2, 3, 4)).shape == (2, 3)
    assert random.normal(KEY, ()).shape == ()


def test_seeds_do_not_collide() -> None:
    lower = {mix(DrawKey(0, 123456789, step)) & 0xFFFFFFFF for step in range(100_000)}
    assert len(lower) == 100_000  # of which torch's CPU generator uses the lower half
    assert len({mix(DrawKey(seed, stream, 0)) for seed in range(50) for stream in range(50)}) == 2500
    assert all(0 <= mix(DrawKey(seed, 2**32 - 1, 10**9)) < 2**63 for seed in (-5, 0, 2**70))
