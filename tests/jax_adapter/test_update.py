"""The JAX adapter: updates inside a step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import loopcore as lc
from tests.jax_adapter.calls import GRADS, X, Y, bound, program, stepped


@pytest.mark.parametrize("optimizer", [lc.Adam(0.1), optax.adam(0.1)], ids=["spec", "native"])
def test_an_update_of_some_parameters_leaves_the_state_of_the_others(optimizer: Any) -> None:
    backend = bound(optimizer)
    stepped(backend, times=1)
    before = backend.copy(backend.carried())
    backend.update({"w": GRADS["w"]}, True)
    after = backend.carried()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    named = {jax.tree_util.keystr(path): flag for path, flag in jax.tree_util.tree_leaves_with_path(same)}
    assert {path: flag for path, flag in named.items() if "'b'" in path and not flag} == {}
    assert not any(flag for path, flag in named.items() if "'w'" in path)


def test_an_array_decides_on_an_update_in_a_program() -> None:
    backend = bound(lc.Adam(0.1))
    run, batch = program(backend, donate=()), (jnp.asarray(X), jnp.asarray(Y))
    before = backend.carried()
    (kept, _, updated), _ = run(before, backend.hyper_values(), batch, jnp.asarray(False))
    assert not updated
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, kept)
    assert all(jax.tree.leaves((same["params"], same["optimizers"][0])))
    (moved, _, updated), _ = run(before, backend.hyper_values(), batch, jnp.asarray(True))
    assert updated
    assert not bool((moved["params"]["w"] == before["params"]["w"]).any())
    assert backend.traces == 1
