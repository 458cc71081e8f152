"""What `save` accepts, `load` loads, to the bit and in its dtype; what no file can keep is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import loopcore as lc
from loopcore.checkpoint.file import manifest_of, read, write
from loopcore.errors import CheckpointError

KEPT = "<f8 >f8 >f4 <f4 <f2 >f2 c8 >c8 c16 >c16 i4 >i4 >i8 u2 >u2 bool i1"
OTHERS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4", "float4_e2m1fn")


def dtypes() -> list[np.dtype[Any]]:
    return [*map(np.dtype, KEPT.split()), *(np.dtype(getattr(ml_dtypes, name)) for name in OTHERS)]


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)], ids=str)
def test_every_dtype_comes_back(dtype: np.dtype[Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    value = (np.arange(np.prod(shape, dtype=int)) % 3).reshape(shape).astype(dtype)
    arrays, _ = read(write(tmp_path / "x", {"a": value, "b": np.ones(2)}, {"version": 1, "backend": "numpy"}))
    assert arrays["a"].dtype == dtype.newbyteorder("=") and arrays["a"].shape == shape
    np.testing.assert_array_equal(arrays["a"].astype(complex), value.astype(complex))
    assert arrays["b"].dtype == np.float64 and manifest_of(tmp_path / "x")["backend"] == "numpy"


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, np.longdouble), np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(1, [("a", "f4")])],
    ids=lambda value: str(value.dtype),
)
def test_what_no_file_keeps_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be written: the\.array is an array of "):
        write(tmp_path / "x", {"the.array": value}, {"version": 1, "backend": "numpy"})
    assert not list(tmp_path.iterdir())


def with_buffer(value: Any) -> Any:
    def forward(params: Any, state: Any, x: Any) -> Any:
        return x * params["w"], state

    return lc.testing.toy_learner(model=(forward, {"w": np.zeros(1)}, {"b": value}), steps=1)


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
def test_a_buffer(dtype: np.dtype[Any], tmp_path: Path) -> None:
    value = np.arange(3).astype(dtype)
    path = with_buffer(value).save(tmp_path / "x")
    other = with_buffer(np.zeros_like(value))
    other.load(path)
    np.testing.assert_array_equal(other.export_weights()["b"], value)


class Carries(lc.Callback):
    carries = writes = ("shared.n",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def setup(self, learner: Any) -> None:
        learner.shared.n = self.value


@pytest.mark.parametrize("value", [0.1, 2**31, 2**40, True, 1j, np.float32(0.5), {"a": [1, 0.1]}], ids=str)
def test_a_carried_value(value: Any, tmp_path: Path) -> None:
    path = lc.testing.toy_learner([Carries(value)]).save(tmp_path / "x")
    zero = {"a": [0, 0.0]} if isinstance(value, dict) else type(value)(0)
    other = lc.testing.toy_learner([Carries(zero)])
    other.load(path)
    assert other.shared.n == value


@pytest.mark.parametrize("value", ["x", None, 10**20], ids=str)
def test_a_carried_value_that_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be written: shared/n/0 is an array of "):
        lc.testing.toy_learner([Carries(value)]).save(tmp_path / "x")
