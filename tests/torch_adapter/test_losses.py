"""The PyTorch adapter: losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loopcore.errors import (
    LossError,
)
from loopcore_torch import Backend
from tests.torch_adapter.calls import (
    assert_close,
    seeded,  # noqa: F401, used by all tests here
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_those_of_torch(reduction: Any) -> None:
    losses = Backend.losses
    y, t = torch.randn(5, 3), torch.rand(5, 3)
    natives: list[tuple[str, Callable[..., Tensor]]] = [
        ("binary_cross_entropy", F.binary_cross_entropy_with_logits),
        ("mse", F.mse_loss),
        ("mae", F.l1_loss),
        ("huber", F.huber_loss),
    ]
    for name, native in natives:
        assert torch.equal(getattr(losses, name)(y, t, reduction), native(y, t, reduction=reduction))
        assert getattr(losses, name)(y, (t > 0.5), reduction=reduction).dtype == torch.float32
    labels = torch.tensor([0, 2, 1, 1, 0])
    expected = F.cross_entropy(y, labels, reduction=reduction)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(losses.cross_entropy(y, labels.to(dtype), reduction), expected)
    assert_close(losses.cross_entropy(y, F.one_hot(labels, 3), reduction), expected)
    assert_close(losses.cross_entropy(y, F.one_hot(labels, 3).double(), reduction), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_class_axis_is_last(reduction: Any) -> None:
    y, labels = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    expected = F.cross_entropy(y.movedim(-1, 1), labels, reduction=reduction)
    assert_close(Backend.losses.cross_entropy(y, labels, reduction), expected)
    soft = F.one_hot(labels, 3).float()
    assert_close(Backend.losses.cross_entropy(y, soft, reduction), expected)
    assert_close(Backend.losses.cross_entropy(y[0, 0], labels[0, 0]), F.cross_entropy(y[0, 0], labels[0, 0]))


def test_losses_that_cannot_be() -> None:
    losses = Backend.losses
    for name in ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"):
        with pytest.raises(ValueError, match="reduction='average'"):
            getattr(losses, name)(torch.ones(2, 2), torch.ones(2, 2), "average")
    for labels in (torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5)):
        with pytest.raises(LossError, match="integer labels of shape"):
            losses.cross_entropy(torch.ones(5, 3), labels)
