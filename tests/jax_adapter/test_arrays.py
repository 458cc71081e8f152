"""The JAX adapter: arrays in and out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import loopcore as lc
from loopcore_jax import Backend
from tests.jax_adapter.calls import bound, dense_params, stepped


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_reused_buffer_is_copied_before_the_program_starts(device: Any) -> None:
    backend = Backend(device=device)
    memory = np.zeros(4 * 1000 + 64, np.uint8)
    start = -memory.ctypes.data % 64  # JAX shares the memory of aligned arrays, and of those alone
    buffer = memory[start : start + 4000].view(np.float32)
    buffer[:] = 1.0
    found = backend.convert({"x": buffer})["x"]
    buffer[:] = 7.0
    np.testing.assert_array_equal(found, np.ones_like(buffer))


def test_conversion_keeps_what_fits_and_what_is_no_array() -> None:
    backend = bound(lc.SGD(0.1))
    batch = {"z": jnp.ones(2), "a": [jnp.arange(2), "text", None, 3]}
    assert backend.convert(batch) is batch
    found = backend.convert(
        {"z": np.ones(2), "b": np.arange(2, dtype=np.uint8), "a": np.array(["text"]), "n": np.int64(3)}
    )
    assert list(found) == ["z", "b", "a", "n"]
    assert [str(found[name].dtype) for name in ("z", "b", "n")] == ["float32", "uint8", "int32"]
    assert isinstance(found["a"], np.ndarray)
    half = bound(lc.SGD(0.1), jax.tree.map(lambda w: w.astype(jnp.bfloat16), dense_params()))
    assert half.convert(np.ones(2)).dtype == jnp.bfloat16
    assert half.to_host(half.get(["w"]))["w"].dtype == jnp.bfloat16
    assert stepped(half)["w"].dtype == jnp.bfloat16


def test_values_read_out_are_copies_and_fetches_are_counted() -> None:
    backend = bound(lc.SGD(0.1))
    present = backend.get(["w"])["w"]
    assert backend.snapshot(["w"])["w"].unsafe_buffer_pointer() != present.unsafe_buffer_pointer()
    host = backend.to_host({"w": present, "text": "text"})
    assert (host["text"], host["w"].flags.owndata, host["w"].flags.writeable) == ("text", True, True)
    assert backend.transfers == 1
    assert backend.is_ready(present.block_until_ready())
    assert backend.number(present) is present
