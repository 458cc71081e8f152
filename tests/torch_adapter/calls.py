"""What the tests of the PyTorch adapter share: small models, and the protocol's calls in short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loopcore.backend import DrawKey, Leaves
from loopcore_torch import Backend

KEY = DrawKey(seed=1, stream=2, step=3)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled()


def bound(model: Any, optimizer: Any = None, **options: Any) -> Backend:
    """A backend with one unnamed model, all of which one optimizer trains."""
    backend = Backend(**options)
    backend.bind({"": model})
    if optimizer is not None:
        backend.attach([(optimizer, backend.paths("params")[""])])
    return backend


def call(backend: Backend, *args: Any, model: str = "", training: bool = True, update: bool = True, **kw: Any) -> Any:
    return backend.forward(model, args, kw, training=training, update_state=update)


def gradient(backend: Backend, objective: Callable[[], Any], at: Leaves | None = None, *scopes: Any) -> Leaves:
    """With respect to all parameters."""
    paths = tuple(path for part in backend.paths("params").values() for path in part)
    return backend.gradient(objective, [paths], at, scopes)[0][0]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def weights(values: Any = (1.0, 2.0), optimizer: Any = None) -> Backend:
    """A backend whose model is the tree {"w": values}."""
    return bound({"w": torch.tensor(values)}, optimizer)


def w(backend: Backend) -> Tensor:
    found: Tensor = backend.get(["w"])["w"]
    return found


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    actual = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    expected = expected.detach().numpy() if isinstance(expected, Tensor) else expected
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x)))
        return result


def compiled_of(model: nn.Module) -> Any:
    """What torch.compile makes of a module: typed as a function, but a module."""
    return torch.compile(model, backend="eager")


def norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def w_of(backend: Backend, path: str) -> Tensor:
    found: Tensor = backend.get([path])[path]
    return found
