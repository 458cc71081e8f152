"""The JAX adapter: losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import GradientError, LossError
from tests.jax_adapter.calls import bound


def test_losses_that_are_none() -> None:
    backend = bound(lc.SGD(0.1))
    results: list[tuple[Any, str]] = [(1.5, "number"), (jnp.arange(3)[0], "int32"), ([], "list")]
    for result, said in results:
        with pytest.raises(LossError, match=said):
            backend.gradient(partial(dict.get, {"it": result}, "it"), [("w",)], None, [])
    with pytest.raises(GradientError, match="argument 1 of the function"):
        backend.grad(lambda x, n: x * n, [])(jnp.asarray(1.0), jnp.asarray(2))
    assert backend.grad(lambda x, *, power: x**power, [])(3.0, power=2.0) == 6.0


def test_a_label_that_is_no_class_makes_the_loss_nan() -> None:
    for label in (-1, 3):
        assert np.isnan(lc.losses.cross_entropy(jnp.zeros((1, 3)), jnp.asarray([label])))
