"""The JAX adapter: gradients inside a step."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import GradientError
from loopcore_jax import Backend
from tests.jax_adapter.calls import X, bound, dense, dense_params


def test_an_objective_that_raises_leaves_no_tracer_behind() -> None:
    def forward(params: Any, state: Any, x: Any) -> Any:
        return dense(params, x), {"sum": jnp.sum(params["w"])}

    backend = Backend()
    backend.bind({"": (forward, dense_params(), {"sum": jnp.zeros(())})})
    scope: dict[str, Any] = {"tree": {"deep": [None, "text"]}}

    def objective() -> Any:
        scope["y"] = {"b": backend.forward("", (X,), {}, training=True, update_state=True), "a": [scope["tree"]]}
        assert backend.is_differentiated(scope["y"])
        assert not backend.is_differentiated({"x": jnp.ones(2), "y": backend.concrete(scope["y"])["b"]})
        raise lc.CancelStepException("enough")

    with pytest.raises(lc.CancelStepException, match="enough"):
        backend.gradient(objective, [("w",)], None, [scope])
    np.testing.assert_allclose(scope["y"]["b"], X @ np.full((3, 2), 0.5), rtol=1e-6)
    assert list(scope["y"]) == ["b", "a"]
    assert float(backend.get(["sum"])["sum"]) == 3.0
    assert not backend.is_differentiated(scope["y"])


def test_what_an_inner_objective_does_not_reach_is_an_error_although_the_outer_one_does() -> None:
    backend = bound(lc.SGD(0.1))

    def outer() -> Any:
        w = backend.get(["w"])["w"]
        backend.gradient(lambda: jnp.sum(w * w), [("w",)], None, [])
        return jnp.sum(w)

    for run in (lambda f: f(), lambda f: backend.compile(lambda: (f(), None))()):
        with pytest.raises(GradientError, match="does not depend on w"):
            run(lambda: backend.gradient(outer, [("w",)], None, []))
