"""The NumPy adapter: what a model does inside a step."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest
from autograd.tracer import isbox

from loopcore.errors import BackendError
from tests.numpy_adapter.calls import KEY, array, bound, call, gradient, linear, same, stateful, xp


@pytest.mark.parametrize(
    ("forward", "inverted"),
    [
        (lambda params, x, train, deterministic=None: (train, deterministic), False),
        (lambda params, x, *, training, deterministic=None: (training, deterministic), False),
        (lambda params, x, is_training=3, inference=None: (is_training, inference), False),
        (lambda params, x, deterministic, inference=None: (deterministic, inference), True),
        (lambda params, x, *, inference=3, use_running_average=None: (inference, use_running_average), True),
        (lambda params, x, use_running_average, other=None: (use_running_average, other), True),
    ],
)
def test_mode_goes_to_the_first_word_the_signature_has(forward: Any, inverted: bool) -> None:
    backend = bound((forward, np.ones(1)))
    assert call(backend, 0, training=True) == (not inverted, None)
    assert call(backend, 0, training=False) == (inverted, None)


def test_a_mode_of_the_caller_wins() -> None:
    backend = bound((lambda params, x, train: train, np.ones(1)))
    assert call(backend, 0, train="mine") == "mine"


def test_no_mode_for_a_function_that_only_has_keywords() -> None:
    assert call(bound((lambda params, x, **rest: rest, np.ones(1))), 0, scale=2) == {"scale": 2}


def test_rng_follows_from_the_key_and_the_order_of_calls() -> None:
    def noise(params: Any, rng: np.random.Generator) -> float:
        return rng.random()

    backend, seen = bound((noise, np.ones(1))), list[Any]()

    def body() -> None:
        seen.append((call(backend), call(backend)))

    for key in (KEY, KEY, KEY._replace(step=4)):
        backend.run_body(body, key)
    assert seen[0] == seen[1]
    assert len({*seen[0], *seen[2]}) == 4


def test_a_nested_body_leaves_the_generators_of_the_outer_one_alone() -> None:
    backend, seen = bound((lambda params, rng: rng.random(), np.ones(1))), list[Any]()

    def body(nested: bool) -> None:
        call(backend)
        if nested:
            backend.run_body(partial(body, False), KEY._replace(step=9))
        seen.append(call(backend))

    backend.run_body(partial(body, True), KEY)
    backend.run_body(partial(body, False), KEY)
    assert seen[1] == seen[2] != seen[0]


def test_a_tree_of_arrays_cannot_be_called() -> None:
    with pytest.raises(BackendError, match=r"without a forward.*apply_fn"):
        call(bound({"w": np.ones(1)}), 0)


def test_state_is_threaded_and_dropped_on_request() -> None:
    backend = stateful()
    call(backend, array(1, 3))
    call(backend, array(1, 3), keep=False)
    found = backend.get(["n", "mean"])
    assert (found["n"], found["mean"]) == (1, 2.0)
    backend.apply("", {}, (array(5.0),), {}, training=True)
    assert backend.get(["n"])["n"] == 1


def test_state_written_inside_an_objective_is_plain_afterwards() -> None:
    backend = stateful()

    def objective() -> Any:
        call(backend, array(1, 3))
        assert isbox(backend.get(["mean"])["mean"])
        return xp.sum(call(backend, array(1, 3)))

    same(gradient(backend, objective, "w")["w"], array(4))
    found = backend.get(["n", "mean"])
    assert (found["n"], found["mean"]) == (2, 3.0)
    assert not isbox(found["mean"])


def test_gradients_flow_through_state_within_an_objective() -> None:
    backend = stateful()

    def objective() -> Any:
        call(backend, array(1, 3))
        return backend.get(["mean"])["mean"]

    same(gradient(backend, objective, "w")["w"], array(1.0))  # d/dw of 0.5 * mean(w * [1, 3])


def test_a_model_may_write_its_state_in_place_and_no_parameter() -> None:
    def in_place(params: Any, state: Any) -> Any:
        state["n"] += 1
        return params, state

    backend = bound((in_place, {"w": np.ones(1)}, {"n": np.zeros(1)}))
    call(backend, keep=False)
    same(backend.get(["n"])["n"], array(0))
    call(backend)
    same(backend.get(["n"])["n"], array(1))
    with pytest.raises(ValueError, match="read-only"):
        call(backend)["w"][:] = 0


def test_state_errors() -> None:
    with pytest.raises(BackendError, match=r"must return \(y, new_state\), not ndarray"):
        call(bound((lambda p, s, x: p, np.ones(1), {"n": 0})), 0)
    with pytest.raises(BackendError, match="changed the structure of its state"):
        call(bound((lambda p, s, x: (p, {}), np.ones(1), {"n": 0})), 0)


def test_apply_takes_other_parameters_and_fills_in_absent_ones() -> None:
    backend = bound((lambda p, x: p["a"] * x + p["b"], {"a": array(2.0), "b": array(1.0)}))
    same(backend.apply("", {"a": array(5.0)}, (array(3),), {}, training=False), array(16))
    same(call(backend, array(3)), array(7))


def test_bodies_run_without_floating_point_warnings() -> None:
    backend, seen = linear(), list[Any]()
    backend.run_body(lambda: seen.append(xp.log(array(0.0)) / xp.sum(array(0.0))), KEY)
    assert seen[0] == -inf
    with pytest.warns(RuntimeWarning):
        np.log(array(0.0))


def test_a_body_that_raises_leaves_the_backend_as_it_was() -> None:
    backend = bound((lambda params, rng: rng.random(), np.ones(1)))
    first = call(bound((lambda params, rng: rng.random(), np.ones(1))))
    with pytest.raises(ZeroDivisionError):
        backend.run_body(lambda: call(backend) / 0, KEY)
    assert call(backend) == first
