"""NumPy batches on PyTorch: copied once, whatever their layout, in the dtype they need."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import loopcore as lc

VALUES = [
    *(
        np.arange(6).astype(dtype).reshape(2, 3)
        for dtype in ("f4", "f8", ">f4", "i8", "i4", ">i4", "u1", "u2", "?", "c8")
    ),
    np.arange(6, dtype="f4").reshape(2, 3).T,
    np.arange(6, dtype="f4")[::-2],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value.dtype.str}{list(value.strides)}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_in_the_right_dtype(value: Any, dtype: torch.dtype) -> None:
    model = torch.nn.Linear(1, 1, dtype=dtype)
    backend: Any = lc.Learner(model, lc.losses.mse, lc.SGD(0.1), default_callbacks=False).backend
    alone, mixed = backend.convert({"x": value})["x"], backend.convert({"x": value, "y": "text"})["x"]
    before = value.copy()
    value += np.ones((), value.dtype)
    for found in (alone, mixed):
        wanted = {"f": dtype, "u": torch.uint8 if value.itemsize == 1 else torch.int64}.get(value.dtype.kind)
        assert found.is_contiguous() and (wanted is None or found.dtype is wanted)
        np.testing.assert_array_equal(found.numpy(), before)
    value[...] = before
