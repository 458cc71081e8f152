"""Checkpoints of PyTorch: dtypes that NumPy does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import loopcore as lc

DTYPES = [torch.cfloat, torch.cdouble, torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.int16]


class Scaled(torch.nn.Module):
    def __init__(self, dtype: torch.dtype, fill: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        floats = dtype.is_floating_point or dtype.is_complex
        value = torch.full((3,), fill).to(dtype)
        self.scale = torch.nn.Parameter(value, requires_grad=False) if floats else None
        self.register_buffer("kept", value.clone())

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    def make(fill: float) -> Any:
        return lc.Learner(
            Scaled(dtype, fill), lc.losses.mse, {"layer": lc.SGD(0.01)}, device="cpu", default_callbacks=False
        )

    first, second = make(2.0), make(0.0)
    second.load(first.save(tmp_path / "x"))
    module = second.model.native
    assert module.kept.dtype is dtype
    for value in (module.kept, module.scale):
        assert value is None or np.all(value.detach().to(torch.complex64).numpy() == 2)
