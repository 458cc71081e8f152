"""The NumPy adapter: gradients inside a step."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from math import inf
from typing import Any

import autograd.differential_operators
import autograd.numpy
import numpy as np
import pytest
from autograd.tracer import isbox

from loopcore.errors import GradientError, LossError
from loopcore_numpy import Backend
from tests.numpy_adapter.calls import KEY, Point, array, bound, call, close, diff, gradient, linear, same, stateful, xp

anp: Any = autograd.numpy


def test_gradient_in_the_dtype_of_the_parameter() -> None:
    backend = bound((lambda p, x: xp.mean((p["w"] * x) ** 2), {"w": array(1, 2, dtype=np.float32)}))
    found = gradient(backend, lambda: call(backend, array(1, 1)))["w"]  # a float64 batch widens the loss
    assert found.dtype == np.float32
    close(found, array(1, 2))


def test_gradients_for_groups_and_zeros_for_what_is_not_reached() -> None:
    backend = bound({"a": array(1.0), "b": array(2.0), "c": np.float64(3.0)})

    def objective() -> Any:
        here = backend.get(["a", "b"])
        return xp.sum(here["a"] * here["b"])

    [[first, second]] = backend.gradient(objective, [("a", "c"), ("b",)], None, [])
    same(first["a"], array(2))
    same(first["c"], np.zeros(()))
    same(second["b"], array(1))


def test_a_tuple_of_scalars_runs_forward_once() -> None:
    backend, calls = linear(), list[int]()

    def objective() -> Any:
        calls.append(1)
        w = backend.get(["w"])["w"]
        return xp.sum(w), xp.sum(w * w), xp.sum(w) * 0 + 1, 5.0

    found = backend.gradient(objective, [("w",)], None, [])
    assert calls == [1]
    close([row[0]["w"] for row in found], [[1, 1], [2, 4], [0, 0], [0, 0]])


def test_scalars_do_not_pollute_one_another() -> None:
    backend = linear((0.0, 2.0))
    scope: dict[str, Any] = {}

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        scope["bad"] = xp.sqrt(w)  # infinite derivative at 0, not on the way to the loss
        return xp.sum(w), xp.sum(scope["bad"])

    with np.errstate(all="ignore"):
        good, bad = backend.gradient(objective, [("w",)], None, [scope])
    close(good[0]["w"], array(1, 1))
    assert bad[0]["w"][0] == inf


def test_gradients_do_not_share_memory() -> None:
    backend = bound({"a": np.ones(2), "b": np.ones(2), "c": np.ones((1, 2))})

    def objective() -> Any:
        here = backend.get(["a", "b", "c"])
        return xp.sum(here["a"] + here["b"] + xp.reshape(here["c"], (2,)))

    found = gradient(backend, objective)
    found["a"][:] = 9
    close(found["b"], np.ones(2))
    close(found["c"], np.ones((1, 2)))
    squared = gradient(backend, lambda: xp.sum((backend.get(["a"])["a"] + backend.get(["b"])["b"]) ** 2))
    squared["a"][:] = 9
    close(squared["b"], array(4, 4))


def test_at_differentiates_elsewhere_and_writes_nothing() -> None:
    backend = linear()
    [[found]] = backend.gradient(lambda: xp.sum(backend.get(["w"])["w"] ** 2), [("w",)], {"w": array(10, 20)}, [])
    close(found["w"], array(20, 40))
    same(backend.get(["w"])["w"], array(1, 2))


def test_at_replaces_what_is_not_differentiated() -> None:
    backend = bound({"a": array(2.0), "b": array(3.0)})

    def objective() -> Any:
        here = backend.get(["a", "b"])
        return xp.sum(here["a"] * here["b"])

    [[found]] = backend.gradient(objective, [("a",)], {"b": array(7.0)}, [])
    same(found["a"], array(7))


def test_values_from_outside_are_constants() -> None:
    backend = linear()
    outside = call(backend, array(1, 1))
    close(gradient(backend, lambda: call(backend, array(1, 1)) * outside)["w"], array(3, 3))


def test_scopes_are_plain_at_any_depth() -> None:
    backend = linear()
    scope: dict[str, Any] = {"old": np.ones(1), "text": "a"}
    shared: dict[str, Any] = {"deep": None}

    def objective() -> Any:
        scope["y"] = call(backend, array(1, 1))
        scope["tree"] = {"list": [scope["y"], 3, None, "s"], "point": Point(scope["y"], np.ones(1))}
        shared["deep"] = (scope["y"],)
        assert isbox(scope["y"])
        return scope["y"]

    backend.gradient(objective, [("w",)], None, [scope, shared])
    assert [scope["y"], scope["tree"]["list"][0], scope["tree"]["point"].x, shared["deep"]] == [3, 3, 3, (3,)]
    assert scope["tree"]["list"][1:] == [3, None, "s"] and type(scope["tree"]["point"]) is Point
    assert not any(map(isbox, backend.tree_leaves([scope, shared])))


def test_nested_gradient_can_be_differentiated_by_the_outer_one() -> None:
    backend, scope = linear(), dict[str, Any]()

    def inner() -> Any:
        scope["inner"] = xp.sum(backend.get(["w"])["w"] ** 3)
        return scope["inner"]

    def outer() -> Any:
        grads = gradient(backend, inner, **scope)["w"]
        assert isbox(grads)
        return xp.sum(grads * grads)

    close(gradient(backend, outer)["w"], 36 * array(1, 8))  # d/dw (3 w^2)^2


def test_inner_gradient_leaves_the_boxes_of_the_outer_one() -> None:
    backend, scope = linear(), dict[str, Any]()

    def inner() -> Any:
        scope["y"] = call(backend, array(1, 1)) ** 2
        return scope["y"]

    def outer() -> Any:
        scope["before"] = call(backend, array(1, 0))
        backend.gradient(inner, [("w",)], None, [scope])
        assert isbox(scope["before"]) and isbox(scope["y"])
        return scope["y"] + scope["before"]

    [[found]] = backend.gradient(outer, [("w",)], None, [scope])
    close(found["w"], array(7, 6))
    assert scope == {"before": 1, "y": 9}


def test_third_order() -> None:
    backend = linear((1.0, 2.0))

    def power() -> Any:
        return xp.sum(backend.get(["w"])["w"] ** 4)

    def step(objective: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: xp.sum(gradient(backend, objective)["w"])

    close(gradient(backend, step(step(power)))["w"], array(24, 48))


def test_gradient_at_values_that_depend_on_the_parameters() -> None:
    backend = linear((1.0, 2.0))

    def loss() -> Any:
        return xp.sum(backend.get(["w"])["w"] ** 2)

    def adapted() -> Any:  # one step of MAML: w' = w - 0.1 * 2 w
        w = backend.get(["w"])["w"]
        moved = w - 0.1 * gradient(backend, loss)["w"]
        return xp.sum(backend.gradient(loss, [("w",)], {"w": moved}, [])[0][0]["w"])

    close(gradient(backend, adapted)["w"], array(1.6, 1.6))


def test_other_learners_are_constants_of_an_objective() -> None:
    ours, other = linear(), linear((3.0, 4.0))

    def objective() -> Any:
        found = gradient(other, lambda: xp.sum(other.get(["w"])["w"] ** 2) * call(ours, array(1, 1)))
        return xp.sum(found["w"])

    close(gradient(ours, objective)["w"], array(14, 14))


def test_autograd_itself_works_inside_an_objective() -> None:
    backend = linear()

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        slope = diff.elementwise_grad(lambda x: anp.tanh(x * w))(anp.zeros(2))
        return xp.sum(slope**2)

    close(gradient(backend, objective)["w"], array(2, 4))
    inside = diff.grad(lambda x: x * gradient(backend, lambda: call(backend, array(1, 1)) * x)["w"][0])(2.0)
    close(inside, 4.0)


def raising(backend: Backend, scope: dict[str, Any]) -> Any:
    scope["y"] = call(backend, array(1, 1))
    raise KeyError("mine")


def test_an_exception_inside_an_objective_leaves_everything_usable() -> None:
    backend, scope = linear(), dict[str, Any]()
    outer: dict[str, Any] = {}

    def catching() -> Any:
        with pytest.raises(KeyError, match="mine"):
            backend.gradient(lambda: raising(backend, scope), [("w",)], None, [scope])
        outer["level"] = scope["y"]
        return call(backend, array(1, 0))

    with pytest.raises(KeyError, match="mine"):
        backend.gradient(lambda: raising(backend, scope), [("w",)], None, [scope])
    assert scope == {"y": 3} and not isbox(scope["y"])
    close(gradient(backend, catching)["w"], array(1, 0))
    assert isbox(outer["level"]) and not isbox(backend.get(["w"])["w"])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned nothing: end it with return state.loss"),
        ((), "returned nothing"),
        (np.ones((2, 3)), r"shape \(2, 3\).*reduction=\"mean\".*xp.mean"),
        ("loss", "returned a str"),
        ({"loss": 1.0}, "returned a dict"),
        ((1.0, None), "returned nothing"),
    ],
)
def test_losses_that_are_no_scalars(result: Any, words: str) -> None:
    with pytest.raises(LossError, match=words):
        gradient(linear(), lambda: result)


def test_an_array_that_depends_on_parameters_is_no_loss() -> None:
    backend = linear()
    with pytest.raises(LossError, match=r"shape \(2,\)"):
        gradient(backend, lambda: backend.get(["w"])["w"])


def test_a_loss_that_reaches_nothing() -> None:
    backend = bound({f"w{n}": np.ones(1) for n in range(6)})
    for constant in (1.0, np.float64(2), np.ones(())):
        with pytest.raises(GradientError, match=r"none of 'w0', 'w1', 'w2', 'w3' and 2 more"):
            gradient(backend, lambda constant=constant: constant)  # type: ignore[misc]
    with pytest.raises(GradientError, match="stop_gradient"):
        gradient(backend, lambda: xp.sum(backend.stop_gradient(backend.get(["w0"])["w0"])))
    with pytest.raises(GradientError):
        gradient(backend, lambda: xp.sum(backend.get(["w1"])["w1"]), "w0")


def test_a_wrong_gradient_of_autograd_is_noticed() -> None:
    backend = linear(1.0)
    with pytest.raises(GradientError, match=r"xp\.where"):
        gradient(backend, lambda: anp.sum(anp.where(np.ones(3) > 0, backend.get(["w"])["w"], 0.0)))


def test_a_step_within_an_objective_is_no_part_of_it() -> None:
    backend, seen = stateful(), list[Any]()

    def objective() -> Any:
        y = xp.sum(call(backend, array(1.0)))
        backend.run_body(lambda: seen.append(call(backend, array(1.0))), KEY)
        return y

    same(gradient(backend, objective)["w"], array(1))
    assert not isbox(seen[0]) and backend.get(["n"])["n"] == 2


def test_threads_do_not_see_the_objective_of_another() -> None:
    """Both are inside an objective at once, and nest in it, so that their levels interleave."""
    barrier, found = threading.Barrier(2, timeout=20), dict[int, Any]()

    def train(number: int) -> None:
        backend = linear((1.0 + number, 2.0))

        def outer() -> Any:
            barrier.wait()
            w = backend.get(["w"])["w"]
            inner = gradient(backend, lambda: (barrier.wait(), xp.sum(backend.get(["w"])["w"] ** 3))[1])["w"]
            barrier.wait()
            return xp.sum(inner * w)

        found[number] = [gradient(backend, outer)["w"] for _ in range(20)]

    threads = [threading.Thread(target=train, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        close(found[number], [9 * array(1.0 + number, 2.0) ** 2] * 20)


def test_another_thread_sees_present_values_during_an_objective() -> None:
    backend, seen = linear(), list[Any]()

    def objective() -> Any:
        thread = threading.Thread(target=lambda: seen.append(backend.get(["w"])["w"]))
        thread.start()
        thread.join()
        return call(backend, array(1, 1))

    gradient(backend, objective)
    assert not isbox(seen[0])


def test_a_gradient_leaves_no_garbage() -> None:
    backend, scope = linear(), dict[str, Any]()

    def run() -> None:
        def objective() -> Any:
            scope["loss"] = call(backend, array(1, 1)) ** 2
            return scope["loss"]

        backend.gradient(objective, [("w",)], None, [scope])
        backend.grad(lambda x: xp.sum(x * x), [scope])(array(1, 2))

    run()
    gc.collect()
    gc.disable()
    try:
        run()
        assert gc.collect() == 0
    finally:
        gc.enable()
