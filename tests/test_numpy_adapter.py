"""The NumPy backend: each method of the protocol, gradients against finite differences, optimizers by hand."""

from __future__ import annotations

import doctest
import gc
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from math import inf, nan, sqrt
from typing import Any

import autograd.differential_operators
import autograd.numpy
import numpy as np
import pytest
from autograd.tracer import isbox

import loopcore as lc
import loopcore_numpy.namespace
import loopcore_numpy.random
from loopcore import optimizers as specs
from loopcore.backend import Backend as Protocol
from loopcore.backend import DrawKey
from loopcore.errors import BackendError, GradientError, LossError, OptimizerError, UnknownModelError
from loopcore_numpy import Backend

anp: Any = autograd.numpy
diff: Any = autograd.differential_operators
KEY = DrawKey(1, 2, 3)
xp, losses = Backend.xp, Backend.losses
Point = namedtuple("Point", "x y")  # a user's own type, without annotations
same = np.testing.assert_array_equal
close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)


def array(*values: float, dtype: Any = np.float64) -> Any:
    return np.array(values, dtype)


def bound(model: Any, *trained: tuple[Any, tuple[str, ...]]) -> Backend:
    backend = Backend()
    backend.bind({"": model})
    backend.attach(trained)
    return backend


def dot(params: Any, x: Any) -> Any:
    return xp.sum(params["w"] * x)


def linear(w: Any = (1.0, 2.0)) -> Backend:
    return bound((dot, {"w": np.array(w)}))


def call(backend: Backend, *args: Any, model: str = "", training: bool = True, keep: bool = True, **kwargs: Any) -> Any:
    return backend.forward(model, args, kwargs, training=training, update_state=keep)


def gradient(backend: Backend, objective: Callable[[], Any], *paths: str, **scope: Any) -> Any:
    """The gradient of one scalar with respect to one group of paths."""
    return backend.gradient(objective, [paths or backend.paths("params")[""]], None, [scope])[0][0]


# -- models --------------------------------------------------------------------------------------------------------


def test_it_is_a_backend() -> None:
    made: Protocol = Backend()
    assert (made.name, made.compiles, made.transfers) == ("numpy", False, 0)


def test_paths_are_keys_indices_and_fields() -> None:
    tree = {"layers": [{"w": np.ones(1)}, (np.ones(1), None)], "p": Point(np.ones(1), np.ones(1))}
    assert bound((dot, tree)).paths("params") == {"": ("layers.0.w", "layers.1.0", "p.x", "p.y")}


def test_named_models_prefix_their_paths() -> None:
    backend = Backend()
    backend.bind({"a": (dot, {"w": np.ones(1)}), "b": np.ones(2)})
    assert backend.paths("params") == {"a": ("a.w",), "b": ("b",)}
    assert backend.paths("buffers") == {"a": (), "b": ()}
    same(backend.get(["b"])["b"], np.ones(2))


def test_a_bare_array_is_called_param() -> None:
    backend = bound((lambda w, x: w * x, np.ones(2)))
    assert backend.paths("params") == {"": ("param",)}
    same(call(backend, 3.0), array(3, 3))
    same(backend.pack("", "params", {"param": np.zeros(2)}), np.zeros(2))


def test_state_paths_and_their_collision_with_parameters() -> None:
    def count(params: Any, state: Any, x: Any) -> Any:
        return x, state

    backend = bound((count, {"w": np.ones(1)}, {"n": 0, "mean": np.zeros(2)}))
    assert backend.paths("buffers") == {"": ("mean", "n")}
    assert bound((count, {"w": np.ones(1)}, {"w": np.zeros(1)})).paths("buffers") == {"": ("state.w",)}
    assert bound((count, {"w": np.ones(1)}, np.zeros(1))).paths("buffers") == {"": ("state",)}


def test_parameters_are_copied_and_the_users_stay_untouched() -> None:
    mine = np.ones(2)
    backend = bound((dot, {"w": mine}), (specs.SGD(1.0), ("w",)))
    mine[:] = 5
    backend.update({"w": np.ones(2)}, True)
    same(mine, array(5, 5))
    same(backend.get(["w"])["w"], array(0, 0))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ((dot, {"w": "text"}), "'w'.*builtins.str"),
        ((dot, {"w": np.arange(2)}), "'w'.*int64.*state"),
        ((dot, {}), "no parameters"),
        (({"w": np.ones(1)}, dot), "apply_fn, params"),
        ((dot, {"w": np.ones(1)}, {}, {}), "apply_fn, params, state"),
        ((dot, {"w": np.ones(1)}, {"n": "text"}), "'n'.*state holds"),
        ((dot, {"a.b": np.ones(1), "a": {"b": np.ones(1)}}), "two arrays have this path"),
        (object(), "builtins.object"),
    ],
)
def test_models_that_cannot_be_used_name_the_leaf(model: Any, words: str) -> None:
    with pytest.raises(UnknownModelError, match=words):
        bound(model)
    assert not Backend.recognises(model)


def test_recognises_its_models() -> None:
    assert Backend.recognises((dot, {"w": np.ones(1)}))
    assert Backend.recognises({"w": [np.float32(1)]})


def test_native_gives_the_users_structure_with_present_values() -> None:
    backend = bound((dot, OrderedDict(w=np.ones(2))), (specs.SGD(1.0), ("w",)))
    backend.update({"w": np.ones(2)}, True)
    apply_fn, params = backend.native("")
    assert apply_fn is dot and isinstance(params, OrderedDict)
    same(params["w"], np.zeros(2))
    params["w"][:] = 7
    same(backend.get(["w"])["w"], np.zeros(2))
    same(bound([np.ones(1)]).native("")[0], np.ones(1))


def test_pack_and_unpack_are_inverse_and_refuse_other_structures() -> None:
    backend = Backend()
    backend.bind({"m": (dot, {"a": [np.ones(1)], "b": Point(np.zeros(2), np.zeros(3))}, {"n": 0})})
    leaves = {"a.0": 1, "b.x": 2, "b.y": 3}
    tree = backend.pack("m", "params", leaves)
    assert tree == {"a": [1], "b": Point(2, 3)}
    assert backend.unpack("m", "params", tree) == leaves
    assert backend.unpack("m", "buffers", {"n": 4}) == {"n": 4}
    with pytest.raises(ValueError, match="structure"):
        backend.unpack("m", "params", {"a": [1]})
    assert linear().pack("", "buffers", {}) == linear().unpack("", "buffers", {}) == {}


# -- calling models ------------------------------------------------------------------------------------------------


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


def counting(params: Any, state: Any, x: Any) -> Any:
    return params["w"] * x, {"n": state["n"] + 1, "mean": 0.5 * state["mean"] + 0.5 * xp.mean(params["w"] * x)}


def stateful() -> Backend:
    return bound((counting, {"w": array(2.0)}, {"n": 0, "mean": np.zeros(())}), (specs.SGD(0.1), ("w",)))


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


# -- weights -------------------------------------------------------------------------------------------------------


def test_references_and_snapshots_survive_updates() -> None:
    backend = bound((dot, {"w": np.ones(2)}), (specs.SGD(1.0), ("w",)))
    before, copy = backend.get(["w"])["w"], backend.snapshot(["w"])["w"]
    backend.update({"w": np.ones(2)}, True)
    same(before, np.ones(2))
    same(copy, np.ones(2))
    backend.snapshot(["w"])["w"][:] = 9
    same(backend.get(["w"])["w"], np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        before[:] = 3


def test_set_copies_and_adapts_the_dtype() -> None:
    backend = bound((dot, {"w": np.ones(2, np.float32)}))
    mine = array(3, 4)
    backend.set({"w": mine})
    mine[:] = 0
    found = backend.get(["w"])["w"]
    same(found, array(3, 4))
    assert found.dtype == np.float32
    backend.set({"w": found})  # of the same dtype
    assert backend.get(["w"])["w"] is not found
    backend = stateful()
    backend.set({"n": np.array(7.0)})
    assert backend.get(["n"])["n"].dtype == np.int64


def test_inside_an_objective_get_and_snapshot_are_differentiated() -> None:
    backend = linear()
    found = gradient(backend, lambda: xp.sum(backend.get(["w"])["w"] * backend.snapshot(["w"])["w"]))
    close(found["w"], array(2, 4))


# -- gradient ------------------------------------------------------------------------------------------------------


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


# -- grad ----------------------------------------------------------------------------------------------------------


def test_grad_of_one_and_of_several_arguments() -> None:
    backend = linear()
    close(backend.grad(lambda x: xp.sum(x**2), [])(array(1, 2)), array(2, 4))
    first, second = backend.grad(lambda x, tree: xp.sum(x * tree["a"][0]), [])(
        array(1, 2), {"a": [array(3, 4)], "n": None}
    )
    close(first, array(3, 4))
    close(second["a"][0], array(1, 2))
    assert second["n"] is None
    close(backend.grad(lambda x, scale: scale * xp.sum(x**2), [])(array(1.0), scale=3.0), array(6))


def test_grad_takes_python_floats_and_gives_zeros() -> None:
    first, second = linear().grad(lambda x, y: x * x, [])(3.0, np.ones(2, np.float32))
    assert first == 6.0 and first.shape == ()
    same(second, np.zeros(2))
    assert second.dtype == np.float32


def test_grad_inside_an_objective_as_for_gradient_penalties() -> None:
    backend = bound((lambda p, x: xp.sum(xp.square(x @ p["w"])), {"w": array(1, 2)}))
    x = np.array([[3.0, 4.0], [1.0, 1.0]])

    def penalty() -> Any:
        slope = backend.grad(lambda x: call(backend, x), [])(x)
        return xp.mean((xp.linalg.vector_norm(slope, axis=-1) - 1.0) ** 2)

    def by_hand(w: Any) -> Any:
        return np.mean((2 * np.abs(x @ w) * np.sqrt(w @ w) - 1) ** 2)

    close(gradient(backend, penalty)["w"], numeric(by_hand, array(1, 2)), rtol=1e-8)


def test_grad_of_boxes_and_scopes() -> None:
    backend, scope = linear(), dict[str, Any]()

    def cube(x: Any) -> Any:
        scope["x"] = x
        return xp.sum(x**3)

    def objective() -> Any:
        slope = backend.grad(cube, [scope])(backend.get(["w"])["w"])
        assert isbox(scope["x"])
        return xp.sum(slope)

    [[found]] = backend.gradient(objective, [("w",)], None, [scope])
    close(found["w"], array(6, 12))
    assert not isbox(scope["x"])
    with pytest.raises(ZeroDivisionError):
        backend.grad(lambda x: cube(x) + 1 // 0, [scope])(array(1.0))
    assert not isbox(scope["x"])


def test_grad_errors() -> None:
    backend = linear()

    def labelled(x: Any, labels: Any) -> Any:
        return xp.sum(x)

    with pytest.raises(GradientError, match=r"argument 1 of .*labelled holds int64.*close over it"):
        backend.grad(labelled, [])(array(1.0), np.arange(2))
    with pytest.raises(GradientError, match=r"argument 0 .* holds a int"):
        backend.grad(labelled, [])(1, array(1.0))
    with pytest.raises(GradientError, match="depends on none of its arguments"):
        backend.grad(lambda x: 1.0, [])(array(1.0))
    with pytest.raises(LossError, match=r"shape \(2,\)"):
        backend.grad(lambda x: x, [])(array(1, 2))
    with pytest.raises(LossError, match="returned nothing"):
        backend.grad(lambda x: None, [])(array(1, 2))


# -- array functions -----------------------------------------------------------------------------------------------


def numeric(fn: Callable[[Any], Any], x: Any, step: float = 1e-5) -> Any:
    """Central differences of a scalar function."""
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        out[index] = (fn(high) - fn(low)) / (2 * step)
    return out


DATA = np.random.default_rng(0)
A, B = DATA.normal(size=(2, 3)), DATA.normal(size=(2, 3))
POSITIVE = np.abs(A) + 0.5
ROWS = np.array([[2, 0, 1, 1], [0, 0, 2, 1]])
CUBE = DATA.normal(size=(2, 3, 4))


def slices(x: Any) -> Any:
    return x[:, 1:] * x[..., :2] + x[0, None, :2]


def operators(x: Any, y: Any) -> Any:
    return (1 - x) / y + x**2 @ y.T @ x - abs(-x)


# fmt: off
COMPARED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    # name: ours, NumPy's, arguments; every argument is differentiated
    "abs": (xp.abs, np.abs, (A,)),
    "exp": (xp.exp, np.exp, (A,)),
    "log": (xp.log, np.log, (POSITIVE,)),
    "log1p": (xp.log1p, np.log1p, (POSITIVE,)),
    "expm1": (xp.expm1, np.expm1, (A,)),
    "sqrt": (xp.sqrt, np.sqrt, (POSITIVE,)),
    "square": (xp.square, np.square, (A,)),
    "sign": (xp.sign, np.sign, (A,)),
    "tanh": (xp.tanh, np.tanh, (A,)),
    "sin": (xp.sin, np.sin, (A,)),
    "cos": (xp.cos, np.cos, (A,)),
    "maximum": (xp.maximum, np.maximum, (A, B)),
    "maximum broadcast": (xp.maximum, np.maximum, (A, B[:1])),
    "maximum number": (lambda x: xp.maximum(x, 0.1), lambda x: np.maximum(x, 0.1), (A,)),
    "minimum": (xp.minimum, np.minimum, (A, B)),
    "minimum broadcast": (xp.minimum, np.minimum, (A[:, :1], B)),
    "clip": (lambda x: xp.clip(x, -0.5, 0.5), lambda x: np.clip(x, -0.5, 0.5), (A,)),
    "clip below": (lambda x: xp.clip(x, min=0.1), lambda x: np.clip(x, 0.1, None), (A,)),
    "clip arrays": (xp.clip, np.clip, (3 * A, -np.abs(B[:1]), np.abs(B))),
    "where": (lambda x, y: xp.where(x > y, x, y), lambda x, y: np.where(x > y, x, y), (A, B)),
    "where broadcast": (partial(xp.where, A > 0), partial(np.where, A > 0), (B[0], np.ones(()))),
    "sum": (xp.sum, np.sum, (A,)),
    "sum axis": (lambda x: xp.sum(x, axis=0), lambda x: np.sum(x, 0), (A,)),
    "sum keep": (lambda x: xp.sum(x, axis=(0, -1), keepdims=True), lambda x: np.sum(x, keepdims=True), (A,)),
    "mean": (xp.mean, np.mean, (A,)),
    "mean axis": (lambda x: xp.mean(x, axis=-1, keepdims=True), lambda x: np.mean(x, -1, keepdims=True), (A,)),
    "var": (xp.var, np.var, (A,)),
    "var axis": (lambda x: xp.var(x, axis=1, correction=1), lambda x: np.var(x, 1, ddof=1), (A,)),
    "max": (xp.max, np.max, (A,)),
    "max axis": (lambda x: xp.max(x, axis=1), lambda x: np.max(x, 1), (A,)),
    "max axes": (lambda x: xp.max(x, axis=(0, 1), keepdims=True), lambda x: np.max(x, keepdims=True), (A,)),
    "min": (xp.min, np.min, (A,)),
    "min axis": (lambda x: xp.min(x, axis=0, keepdims=True), lambda x: np.min(x, 0, keepdims=True), (A,)),
    "concat": (lambda x, y: xp.concat([x, y], axis=1), lambda x, y: np.concatenate([x, y], 1), (A, B)),
    "concat last": (lambda x, y: xp.concat([x, y], axis=-1), lambda x, y: np.concatenate([x, y], -1), (A, B)),
    "concat flat": (lambda x, y: xp.concat([x, y], axis=None), lambda x, y: np.concatenate([x, y], None), (A, B[0])),
    "stack": (lambda x, y: xp.stack([x, y]), lambda x, y: np.stack([x, y]), (A, B)),
    "stack last": (lambda x, y: xp.stack([x, y], axis=-1), lambda x, y: np.stack([x, y], -1), (A, B)),
    "reshape": (lambda x: xp.reshape(x, (3, -1)), lambda x: np.reshape(x, (3, -1)), (A,)),
    "permute_dims": (lambda x: xp.permute_dims(x, (2, 0, 1)), lambda x: np.transpose(x, (2, 0, 1)), (CUBE,)),
    "expand_dims": (lambda x: xp.expand_dims(x, axis=1), lambda x: np.expand_dims(x, 1), (A,)),
    "squeeze": (lambda x: xp.squeeze(x, axis=0), lambda x: np.squeeze(x, 0), (A[:1],)),
    "broadcast_to": (lambda x: xp.broadcast_to(x, (4, 2, 3)), lambda x: np.broadcast_to(x, (4, 2, 3)), (A[:1],)),
    "flip": (xp.flip, np.flip, (A,)),
    "flip axis": (lambda x: xp.flip(x, axis=1), lambda x: np.flip(x, 1), (A,)),
    "take": (lambda x: xp.take(x, ROWS[0]), lambda x: np.take(x, ROWS[0]), (A[0],)),
    "take axis": (lambda x: xp.take(x, ROWS, axis=1), lambda x: np.take(x, ROWS, 1), (A,)),
    "take last": (lambda x: xp.take(x, ROWS, axis=-1), lambda x: np.take(x, ROWS, -1), (A,)),
    "take one": (lambda x: xp.take(x, np.array(1), axis=-1), lambda x: np.take(x, 1, -1), (A,)),
    "take_along_axis": (partial(xp.take_along_axis, indices=ROWS), lambda x: np.take_along_axis(x, ROWS, 1), (A,)),
    "take_along_axis broadcast": (
        partial(xp.take_along_axis, indices=ROWS[:, :1] % 2, axis=0),
        lambda x: np.take_along_axis(x, ROWS[:, :1] % 2, 0), (A,),
    ),
    "matmul": (xp.matmul, np.matmul, (A, B.T.copy())),
    "matmul vector": (xp.matmul, np.matmul, (A, B[0])),
    "matmul vectors": (xp.matmul, np.matmul, (A[0], B[0])),
    "matmul batch": (xp.matmul, np.matmul, (CUBE, DATA.normal(size=(4, 2)))),
    "astype": (lambda x: xp.astype(x, np.float64) * x, lambda x: x * x, (A,)),
    "full": (lambda x: xp.full((2, 2), x), lambda x: np.full((2, 2), x), (np.ones(()),)),
    "norm": (xp.linalg.vector_norm, np.linalg.norm, (A,)),
    "norm axis": (
        lambda x: xp.linalg.vector_norm(x, axis=1, keepdims=True), partial(np.linalg.norm, axis=1, keepdims=True), (A,),
    ),
    "norm 1": (lambda x: xp.linalg.vector_norm(x, axis=0, ord=1), partial(np.linalg.norm, ord=1, axis=0), (A,)),
    "norm inf": (lambda x: xp.linalg.vector_norm(x, axis=1, ord=inf), partial(np.linalg.norm, ord=inf, axis=1), (A,)),
    "relu": (xp.relu, lambda x: np.maximum(x, 0), (A,)),
    "sigmoid": (xp.sigmoid, lambda x: 1 / (1 + np.exp(-x)), (A,)),
    "softplus": (xp.softplus, lambda x: np.log(1 + np.exp(x)), (A,)),
    "softmax": (xp.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), (A,)),
    "softmax axis": (lambda x: xp.softmax(x, axis=0), lambda x: np.exp(x) / np.exp(x).sum(0), (A,)),
    "log_softmax": (xp.log_softmax, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), (A,)),
    "logsumexp": (xp.logsumexp, lambda x: np.log(np.exp(x).sum()), (A,)),
    "logsumexp axis": (
        lambda x: xp.logsumexp(x, axis=1, keepdims=True), lambda x: np.log(np.exp(x).sum(1, keepdims=True)), (A,),
    ),
    "slices": (slices, slices, (A,)),
    "operators": (operators, operators, (A, B)),
}
# fmt: on


@pytest.mark.parametrize("name", COMPARED)
def test_values_of_array_functions(name: str) -> None:
    ours, numpys, args = COMPARED[name]
    close(ours(*args), numpys(*args))
    assert np.shape(ours(*args)) == np.shape(numpys(*args))


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_of_array_functions(name: str) -> None:
    ours, numpys, args = COMPARED[name]
    weights = np.random.default_rng(1).normal(size=np.shape(numpys(*args)))
    found = linear().grad(lambda *xs: xp.sum(weights * ours(*xs)), [])(*args)
    for position, gradient in enumerate(found if len(args) > 1 else (found,)):

        def one(x: Any, position: int = position) -> Any:
            return np.sum(weights * numpys(*args[:position], x, *args[position + 1 :]))

        np.testing.assert_allclose(gradient, numeric(one, args[position]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", COMPARED)
def test_second_derivatives_of_array_functions(name: str) -> None:
    """Differentiate ``g . v`` where g is the gradient: the squared output keeps linear functions interesting."""
    ours, _, args = COMPARED[name]
    backend = linear()
    slope = backend.grad(lambda x: xp.sum(ours(x, *args[1:]) ** 2), [])
    along = np.random.default_rng(2).normal(size=args[0].shape)
    if name == "sign":
        return same(slope(args[0]), np.zeros((2, 3)))
    found = backend.grad(lambda x: xp.sum(along * slope(x)), [])(args[0])
    expected = numeric(lambda x: np.sum(along * slope(x)), args[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", COMPARED)
def test_array_functions_keep_float32(name: str) -> None:
    ours, _, args = COMPARED[name]
    small = [arg.astype(np.float32) for arg in args]
    found = linear().grad(lambda *xs: xp.sum(ours(*xs)), [])(*small)
    assert {g.dtype for g in (found if len(args) > 1 else (found,))} == {np.dtype(np.float32)}
    if name not in ("astype", "full", "operators"):  # two ask for float64; ** of autograd widens its derivative
        assert ours(*small).dtype == np.float32
        assert diff.elementwise_grad(lambda x: ours(x, *small[1:]))(small[0]).dtype == np.float32
    assert diff.elementwise_grad(lambda x: xp.astype(x, np.float64))(small[0]).dtype == np.float32


@pytest.mark.parametrize(
    ("fn", "x", "expected"),
    [
        (lambda x: xp.sum(xp.relu(x)), array(-1, 0, 2), array(0, 0, 1)),
        (lambda x: xp.sum(xp.abs(x)), array(-1, 0, 2), array(-1, 0, 1)),
        (lambda x: xp.sum(xp.maximum(x, 0.0)), array(-1, 0, 2), array(0, 0.5, 1)),
        (lambda x: xp.max(x), array(3, 1, 3), array(0.5, 0, 0.5)),
        (lambda x: xp.min(x), array(1, 1, 3), array(0.5, 0.5, 0)),
        (lambda x: xp.sum(xp.clip(x, -1, 1)), array(-2, -1, 0, 1, 2), array(0, 1, 1, 1, 0)),
        (lambda x: xp.linalg.vector_norm(x), array(0, 0), array(0, 0)),
        (
            lambda x: xp.sum(xp.linalg.vector_norm(xp.reshape(x, (2, 2)), axis=1)),
            array(0, 0, 3, 4),
            array(0, 0, 0.6, 0.8),
        ),
        (lambda x: xp.sum(xp.tanh(x)), array(-1e3, 0, 1e3), array(0, 1, 0)),
        (lambda x: xp.sum(xp.sigmoid(x)), array(-1e3, 0, 1e3), array(0, 0.25, 0)),
        (lambda x: xp.sum(xp.softplus(x)), array(-1e3, 0, 1e3), array(0, 0.5, 1)),
        (lambda x: xp.logsumexp(x), array(-inf, 0, 0), array(0, 0.5, 0.5)),
        (lambda x: xp.logsumexp(x), array(1e4, 1e4), array(0.5, 0.5)),
        (lambda x: xp.sum(xp.softmax(x)[0]), array(1e4, 1e4), array(0.25, -0.25)),
        (lambda x: xp.sum(xp.where(x > 0, x, 0.0)), array(-1, 2), array(0, 1)),
    ],
)
def test_gradients_at_corners(fn: Callable[[Any], Any], x: Any, expected: Any) -> None:
    close(linear().grad(fn, [])(x), expected)


def test_second_derivative_of_the_norm_at_zero_is_zero() -> None:
    backend = linear()
    slope = backend.grad(lambda x: xp.linalg.vector_norm(x), [])
    close(backend.grad(lambda x: xp.sum(slope(x)), [])(array(0, 0)), array(0, 0))


def test_values_at_corners() -> None:
    close(xp.sigmoid(array(-800, -40, 800)), array(0, np.exp(-40.0), 1))
    close(xp.softplus(array(-800, 800)), array(0, 800))
    close(xp.logsumexp(array(1e4, 1e4)), 1e4 + np.log(2))
    with np.errstate(divide="ignore"):
        assert xp.logsumexp(array(-inf, -inf)) == -inf
    same(xp.relu(array(nan, -1)), array(nan, 0))
    same(xp.clip(array(nan, 5), 0, 1), array(nan, 1))
    with pytest.raises(ValueError, match="orders 1, 2 and inf"):
        xp.linalg.vector_norm(array(1.0), ord=3)
    with pytest.raises(ValueError, match="needs an axis"):
        xp.take(A, np.array([0]))


def test_functions_without_a_gradient_answer_plain_inside_an_objective() -> None:
    backend, seen = linear((2.0, -1.0)), dict[str, Any]()

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.update(
            argmax=xp.argmax(w), argmin=xp.argmin(w, axis=0), any=xp.any(w > 0), all=xp.all(w > 0),
            finite=xp.isfinite(w), int=xp.astype(w, xp.int32), zeros=xp.zeros_like(w), ones=xp.ones_like(w),
            full=xp.full_like(w, 3), hot=xp.one_hot(xp.argmax(w), 2),
        )  # fmt: skip
        return xp.sum(w)

    gradient(backend, objective)
    assert not any(map(isbox, seen.values()))
    assert (seen["argmax"], seen["argmin"], seen["any"], seen["all"]) == (0, 1, True, False)
    for name, expected in {"int": [2, -1], "zeros": [0, 0], "ones": [1, 1], "full": [3, 3], "hot": [1, 0]}.items():
        same(seen[name], expected)


def test_creation_is_in_the_parameters_dtype() -> None:
    backend = bound((dot, {"w": np.ones(2, np.float32)}))
    made = [
        backend.xp.zeros((2,)), backend.xp.ones(3), backend.xp.full((2,), 1.0), backend.xp.eye(2),
        backend.xp.arange(0.0, 1.0, 0.5), backend.xp.one_hot(np.array([1]), 2), backend.xp.mean(np.arange(2)),
        backend.xp.var(np.arange(3)), backend.xp.full((), 2.0),
    ]  # fmt: skip
    assert {array.dtype for array in made} == {np.dtype(np.float32)}
    assert made[6] == 0.5
    same(backend.xp.eye(2, 3, 1), np.eye(2, 3, 1))
    assert xp.zeros(1).dtype == np.float64
    assert xp.arange(3).dtype == np.int64 and list(xp.arange(1, 7, 2)) == [1, 3, 5]
    assert xp.zeros(2, dtype=xp.int32).dtype == np.int32 and xp.zeros_like(np.ones(1, np.float16)).dtype == np.float16
    assert xp.full((2,), 1, dtype=xp.bool).dtype == np.bool_ == xp.full((2,), True).dtype
    assert backend.xp.full((2,), 1).dtype == np.int64
    assert xp.full_like(np.arange(2), 3).dtype == np.int64
    same(xp.one_hot(np.array([[2, 0]], np.uint8), 3), [[[0, 0, 1], [1, 0, 0]]])
    assert xp.sum(np.ones(2), dtype=xp.float32).dtype == np.float32


def test_xp_is_exactly_the_portable_list() -> None:
    # fmt: off
    listed = {
        "abs", "exp", "log", "log1p", "expm1", "sqrt", "square", "sign", "tanh", "sin", "cos", "maximum", "minimum",
        "clip", "where", "sum", "mean", "var", "max", "min", "any", "all", "argmax", "argmin", "concat", "stack",
        "reshape", "permute_dims", "expand_dims", "squeeze", "broadcast_to", "flip", "take", "take_along_axis",
        "matmul", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "arange", "eye", "astype",
        "isfinite", "float32", "int32", "int64", "bool", "linalg", "relu", "sigmoid", "softplus", "softmax",
        "log_softmax", "logsumexp", "one_hot", "einsum", "conv", "avg_pool", "max_pool", "gelu", "silu", "layer_norm",
        "asarray", "matrix_transpose", "logaddexp", "cumulative_sum", "sort", "argsort", "top_k", "segment_sum", "scan",
        "vmap",
    }
    # fmt: on
    assert set(dir(xp)) == listed == set(dir(Backend().xp)) == set(dir(lc.xp))
    assert not hasattr(xp, "convolve")
    with pytest.raises(AttributeError, match=r"xp has no 'convolve'.*matmul"):
        _ = xp.convolve


def test_doctests() -> None:
    for module in (loopcore_numpy.namespace, loopcore_numpy.random):
        failed, tried = doctest.testmod(module)
        assert tried > 0 and failed == 0


# -- losses --------------------------------------------------------------------------------------------------------

LOGITS = DATA.normal(size=(4, 3))
LABELS = np.array([0, 2, 1, 1])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
HOT = np.eye(3)[LABELS]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_cross_entropy_with_labels_of_any_width(dtype: Any) -> None:
    close(losses.cross_entropy(LOGITS, LABELS.astype(dtype), "none"), -np.log(P[range(4), LABELS]))
    found = linear().grad(lambda x: losses.cross_entropy(x, LABELS.astype(dtype)), [])(LOGITS)
    close(found, (P - HOT) / 4)


def test_cross_entropy_with_probabilities_and_more_axes() -> None:
    soft = np.full((4, 3), 1 / 3)
    close(losses.cross_entropy(LOGITS, soft, "none"), -(soft * np.log(P)).sum(1))
    close(losses.cross_entropy(LOGITS, HOT, "sum"), losses.cross_entropy(LOGITS, LABELS, "sum"))
    assert losses.cross_entropy(LOGITS[None], LABELS[None], "none").shape == (1, 4)
    close(linear().grad(lambda x: losses.cross_entropy(x, soft), [])(LOGITS), (P - soft) / 4)


def test_cross_entropy_can_be_differentiated_twice() -> None:
    backend = linear()
    slope = backend.grad(lambda x: losses.cross_entropy(x, LABELS, "sum"), [])
    along = np.arange(12.0).reshape(4, 3)
    expected = P * along - P * (P * along).sum(1, keepdims=True)
    close(backend.grad(lambda x: xp.sum(along * slope(x)), [])(LOGITS), expected)


def test_binary_cross_entropy_is_stable() -> None:
    x, z = array(-800, -1, 0, 2, 800), np.array([0, 1, 0, 1, 1])
    expected = array(0, np.log(1 + np.e), np.log(2), np.log(1 + np.exp(-2)), 0)
    close(losses.binary_cross_entropy(x, z, "none"), expected)
    sigmoid = array(0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1)
    close(linear().grad(lambda x: losses.binary_cross_entropy(x, z, "sum"), [])(x), sigmoid - z)


@pytest.mark.parametrize(
    ("loss", "elementwise", "slope"),
    [
        (losses.mse, lambda d: d * d, lambda d: 2 * d),
        (losses.mae, np.abs, np.sign),
        (losses.huber, lambda d: np.where(np.abs(d) <= 1, d * d / 2, np.abs(d) - 0.5), lambda d: np.clip(d, -1, 1)),
    ],
)
def test_regression_losses(loss: Any, elementwise: Any, slope: Any) -> None:
    y, t = array(0.5, -3, 2, 1), np.array([0, 1, 2, -1])
    close(loss(y, t, "none"), elementwise(y - t))
    close(loss(y, t, "sum"), elementwise(y - t).sum())
    close(loss(y, t), elementwise(y - t).mean())
    close(linear().grad(lambda y: loss(y, t), [])(y), slope(y - t) / 4)


def test_losses_keep_float32() -> None:
    x = LOGITS.astype(np.float32)
    for loss in (losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy, losses.cross_entropy):
        assert loss(x, HOT).dtype == np.float32 == linear().grad(partial(loss, ys=HOT), [])(x).dtype
        assert loss(x, HOT.astype(np.int64) if loss is not losses.cross_entropy else LABELS).dtype == np.float32


def test_loss_errors() -> None:
    with pytest.raises(ValueError, match=r"reduction='avg'.*\"mean\", \"sum\" or \"none\""):
        losses.mse(LOGITS, HOT, "avg")
    with pytest.raises(ValueError, match=r"\(4, 3\) takes integer classes of shape \(4,\), not \(3,\)"):
        losses.cross_entropy(LOGITS, LABELS[:3])
    with pytest.raises(ValueError, match="classes 0 to 2, not 0 to 3"):
        losses.cross_entropy(LOGITS, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="not -1 to 2"):
        losses.cross_entropy(LOGITS, np.array([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=r"probabilities of that shape, not \(4, 2\)"):
        losses.cross_entropy(LOGITS, HOT[:, :2])


# -- optimizers ----------------------------------------------------------------------------------------------------


def reference(spec: Any, w: float, grads: list[float]) -> Iterator[float]:
    """Weight by weight as the documentation of torch.optim writes the algorithms."""
    lr, velocity, m, v = spec.learning_rate, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        if isinstance(spec, specs.Adam):
            if isinstance(spec, specs.AdamW):
                w = w - lr * spec.weight_decay * w
            m = spec.beta1 * m + (1 - spec.beta1) * g
            v = spec.beta2 * v + (1 - spec.beta2) * g**2
            w = w - lr * (m / (1 - spec.beta1**t)) / (sqrt(v / (1 - spec.beta2**t)) + spec.epsilon)
        else:
            velocity = getattr(spec, "momentum", 0.0) * velocity + g
            w = w - lr * velocity
        yield w


@pytest.mark.parametrize(
    "spec",
    [
        specs.SGD(0.1), specs.Momentum(0.1, 0.8), specs.Adam(0.05), specs.Adam(0.1, 0.5, 0.7, 1e-3),
        specs.AdamW(0.05, weight_decay=0.3),
    ],
    ids=repr,
)  # fmt: skip
def test_optimizers_follow_their_formulas(spec: Any) -> None:
    start, grads = DATA.normal(size=3), DATA.normal(size=(12, 3))
    backend = bound({"w": start}, (spec, ("w",)))
    expected = [list(reference(spec, w, list(column))) for w, column in zip(start, grads.T, strict=True)]
    for step, grad in enumerate(grads):
        assert backend.update({"w": grad}, True) is True
        close(backend.get(["w"])["w"], [column[step] for column in expected])


@pytest.mark.parametrize("spec", [specs.SGD(0.1), specs.Momentum(0.1), specs.Adam(), specs.AdamW()], ids=repr)
def test_optimizers_keep_float32(spec: Any) -> None:
    backend = bound({"w": np.ones(2, np.float32), "s": np.float32(1)}, (spec, ("w", "s")))
    backend.update({"w": np.ones(2), "s": np.float64(1)}, True)
    assert {value.dtype for value in backend.get(["w", "s"]).values()} == {np.dtype(np.float32)}
    assert backend.get(["s"])["s"].shape == ()


def test_a_skipped_update_changes_nothing() -> None:
    spec, grads = specs.Adam(0.1), [0.3, -0.2]
    backend = bound({"w": np.zeros(1)}, (spec, ("w",)))
    for apply in (False, np.bool_(False), np.array(False)):
        assert backend.update({"w": array(nan)}, apply) is False
    backend.update({"w": array(grads[0])}, np.bool_(True))
    backend.update({"w": array(5)}, False)
    backend.update({"w": array(grads[1])}, np.array(True))
    close(backend.get(["w"])["w"], [[*reference(spec, 0.0, grads)][-1]])


def test_update_touches_only_the_optimizers_and_paths_of_its_gradients() -> None:
    adam = specs.Adam(0.1)
    backend = bound({"a": np.zeros(1), "b": np.zeros(1), "c": np.ones(1)}, (adam, ("a",)), (specs.SGD(1.0), ("b",)))
    backend.update({"b": array(1)}, True)
    backend.update({"a": array(0.3)}, True)
    with pytest.raises(OptimizerError, match="no optimizer trains c: leave these out"):
        backend.update({"b": array(1), "c": array(1)}, True)
    found = backend.get(["a", "b", "c"])
    close(found["a"], [*reference(adam, 0.0, [0.3])])  # its count began with its own first gradient
    same(found["b"], array(-1))
    same(found["c"], array(1))


def test_an_update_that_cannot_be_done_in_whole_is_not_begun() -> None:
    backend = bound({"a": np.zeros(1), "b": np.zeros(1)}, (specs.SGD(1.0), ("a",)), (specs.SGD(1.0), ("b",)))
    with pytest.raises(GradientError, match=r"gradient of 'b' has shape \(2,\), the parameter \(1,\)"):
        backend.update({"a": array(1), "b": array(1, 1)}, True)
    same(backend.get(["a"])["a"], array(0))


def test_hyperparameters() -> None:
    params, paths = {f"w{n}": np.zeros(1) for n in range(4)}, [(f"w{n}",) for n in range(4)]
    kinds = [specs.SGD(0.1), specs.Momentum(0.1, 0.8), specs.Adam(0.1), specs.AdamW(0.1)]
    backend = bound(params, *zip(kinds, paths, strict=True))
    assert [backend.hyper_names(n) for n in range(4)] == [
        ("learning_rate",), ("learning_rate", "momentum"), ("learning_rate", "momentum"),
        ("learning_rate", "momentum", "weight_decay"),
    ]  # fmt: skip
    assert backend.get_hyper(1, "momentum") == 0.8
    backend.set_hyper(0, "learning_rate", 2)
    backend.update({"w0": array(1.0)}, True)
    same(backend.get(["w0"])["w0"], array(-2))
    assert kinds[0].learning_rate == 0.1
    with pytest.raises(OptimizerError, match="has no momentum, it has learning_rate"):
        backend.set_hyper(0, "momentum", 0.5)


@pytest.mark.parametrize("optimizer", [object(), specs.Adam, "adam", specs.OptimizerSpec(0.1)])
def test_optimizers_that_are_no_neutral_specs(optimizer: Any) -> None:
    with pytest.raises(OptimizerError, match=r"lc\.Adam\(1e-3\)"):
        bound({"w": np.ones(1)}, (optimizer, ("w",)))
    assert linear().native_paths(optimizer) is None


# -- random --------------------------------------------------------------------------------------------------------

DRAWS: dict[str, tuple[Any, ...]] = {
    "normal": ((3, 2),),
    "uniform": ((3, 2), -1.0, 2.0),
    "bernoulli": (0.5, (3, 20)),
    "integers": (0, 1000, (3, 2)),
    "permutation": (50,),
    "beta": (0.5, 0.5, (3, 2)),
    "categorical": (np.zeros((50, 7)),),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_from_their_keys(name: str) -> None:
    draw = getattr(Backend().random, name)
    same(draw(KEY, *DRAWS[name]), draw(KEY, *DRAWS[name]))
    for part in KEY._fields:
        other = KEY._replace(**{part: getattr(KEY, part) + 1})
        assert not np.array_equal(draw(KEY, *DRAWS[name]), draw(other, *DRAWS[name]))
    same(draw(DrawKey(-1, 2**32 - 1, 0), *DRAWS[name]), draw(DrawKey(-1, 2**32 - 1, 0), *DRAWS[name]))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_draws_are_arrays_in_the_parameters_dtype(name: str, dtype: Any) -> None:
    backend = bound({"w": np.ones(1, dtype)})
    made = getattr(backend.random, name)(KEY, *DRAWS[name])
    assert isinstance(made, np.ndarray)
    assert made.dtype == (np.int32 if name in ("integers", "permutation", "categorical") else dtype)


def test_draws_have_their_distributions() -> None:
    random, many = Backend().random, (200, 100)
    normal, uniform = random.normal(KEY, many), random.uniform(KEY, many, -1, 3)
    close([normal.mean(), normal.var()], [0, 1], atol=0.03)
    close([uniform.mean(), uniform.min(), uniform.max()], [1, -1, 3], atol=0.03)
    mask = random.bernoulli(KEY, 0.3, many)
    assert set(np.unique(mask)) == {0.0, 1.0} and abs(mask.mean() - 0.3) < 0.02
    assert set(np.unique(random.integers(KEY, 2, 5, many))) == {2, 3, 4}
    same(np.sort(random.permutation(KEY, 9)), np.arange(9))
    assert abs(random.beta(KEY, 2.0, 6.0, many).mean() - 0.25) < 0.02
    chosen = random.categorical(KEY, np.broadcast_to(np.log([0.2, 0.8]), (9000, 2)))
    assert chosen.shape == (9000,) and abs(chosen.mean() - 0.8) < 0.02
    assert random.normal(KEY, ()).shape == random.categorical(KEY, np.zeros(3)).shape == ()


# -- arrays --------------------------------------------------------------------------------------------------------


class Foreign:
    """An array of another framework."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class Capsule:
    """An array that only speaks dlpack."""

    def __dlpack__(self, **options: Any) -> Any:
        return np.arange(3.0).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return np.arange(3.0).__dlpack_device__()


def test_convert() -> None:
    backend = bound({"w": np.ones(1, np.float32)})
    batch = {"x": np.ones((2, 2)), "y": np.arange(2, dtype=np.uint8), "ok": np.array([True]), "half": np.float16(1),
             "own": np.ones(2, np.float32), "foreign": Foreign([1.5]), "ints": [Foreign([1])], "n": 3, "f": 0.5,
             "text": "a", "bytes": b"a", "none": None, "class": Foreign, "point": Point(np.ones(1), 2)}  # fmt: skip
    found = backend.convert(batch)
    kinds = {"x": "float32", "y": "uint8", "ok": "bool", "half": "float32", "own": "float32", "foreign": "float32"}
    assert {name: str(found[name].dtype) for name in kinds} == kinds
    assert found["ints"][0].dtype == np.int64 and type(found["point"]) is Point and found["point"].x.dtype == np.float32
    assert all(found[name] is batch[name] for name in ("n", "f", "text", "bytes", "none", "class"))
    same(backend.convert(Capsule()), np.arange(3.0))
    for value in batch.values():
        if isinstance(value, np.ndarray):
            value[...] = 0
    assert found["x"].all() and found["own"].all() and found["ok"].all() and found["y"][1] == 1


def test_convert_returns_what_does_not_change() -> None:
    backend = linear()
    for tree in ({"a": [1, (2.0, None)]}, [1, "a"], (), {}, "text", None, Point(1, 2), object()):
        assert backend.convert(tree) is tree
    assert backend.convert(array(1.0)) is not array(1.0)


def test_convert_of_boxes_keeps_the_gradient() -> None:
    backend = bound({"w": array(1, 2, dtype=np.float32)})

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        wide = xp.astype(w, np.float64)
        assert backend.convert({"w": w})["w"] is w and backend.convert(wide).dtype == np.float32
        return xp.sum(backend.convert(wide) * 3.0)

    close(gradient(backend, objective)["w"], array(3, 3))


def test_concrete_is_plain_and_read_only() -> None:
    backend, seen = linear(), dict[str, Any]()
    mine = np.ones(2)

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen["tree"] = backend.concrete({"w": [w], "sum": xp.sum(w), "mine": mine, "n": 1})
        return xp.sum(w)

    gradient(backend, objective)
    tree = seen["tree"]
    assert not any(map(isbox, backend.tree_leaves(tree))) and tree["sum"] == 3 and tree["n"] == 1
    for view in (tree["w"][0], tree["mine"]):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5
    mine[0] = 2  # only the view is read-only
    assert tree["mine"][0] == 2
    untouched = {"n": 1, "s": "a", "scalar": np.float64(1)}
    assert backend.concrete(untouched) is untouched


def test_adopt_keeps_unchanged_leaves_and_converts_replaced_ones() -> None:
    backend = bound({"w": array(1, 2, dtype=np.float32)})

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        old = {"a": w * 2.0, "b": w * 3.0, "sum": xp.sum(w), "frozen": np.ones(2, np.float32)}
        old["stopped"] = backend.stop_gradient(old["a"])  # the same memory, but a constant
        read = backend.concrete(old)
        kept = backend.adopt(old, read)
        assert all(kept[name] is old[name] for name in old)
        more = backend.adopt(old, {"b": read["b"], "new": [read["a"], np.ones(2)]})
        assert more["b"] is old["b"] and more["new"][1].dtype == np.float32
        changed = backend.adopt(old["a"], read["a"] * 1)
        assert not isbox(changed) and backend.adopt(old["b"], read["b"]) is old["b"]
        return xp.sum(kept["a"] + changed)

    close(gradient(backend, objective)["w"], array(2, 2))


def test_what_an_open_objective_differentiates() -> None:
    backend = linear()
    seen: list[Any] = []

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.append({"a": [w * 2, np.ones(2)]})
        assert backend.is_differentiated(w) and backend.is_differentiated(seen[0])
        assert not any(map(backend.is_differentiated, (np.ones(2), {"a": 1.0}, None, "a", backend.concrete(w))))
        return xp.sum(w)

    scope: dict[str, Any] = {}
    backend.gradient(lambda: scope.setdefault("loss", objective()), [("w",)], None, [scope])
    assert not backend.is_differentiated(scope["loss"]) and not backend.is_differentiated(backend.get(["w"]))


def test_to_host_copies_and_counts() -> None:
    backend = linear()
    mine = {"a": np.ones(2), "b": [np.float32(1), 3, "s"], "c": None}
    found = backend.to_host(mine)
    mine["a"][:] = 0  # type: ignore[index]
    same(found["a"], np.ones(2))
    assert backend.transfers == 2 and type(found["b"][0]) is np.ndarray and found["b"][1:] == [3, "s"]
    seen: list[Any] = []

    def objective() -> Any:
        seen.append(backend.to_host(backend.get(["w"])))
        return call(backend, array(1, 1))

    gradient(backend, objective)
    assert not isbox(seen[0]["w"]) and backend.transfers == 3


def test_small_queries() -> None:
    backend = linear()
    assert backend.is_ready(array(1.0)) and backend.scope().__enter__() is None
    assert backend.is_array(array(1.0)) and backend.is_array(np.float32(1)) and backend.is_array(np.bool_(True))
    assert not any(backend.is_array(value) for value in (1.0, True, None, "a", [np.ones(1)], np.str_("a")))
    assert backend.signature(np.ones((2, 3), np.int8)) == ((2, 3), np.dtype(np.int8))
    assert backend.signature(np.float32(1)) == ((), np.dtype(np.float32))
    seen: list[Any] = []

    def objective() -> Any:
        w = backend.get(["w"])["w"]
        seen.append((backend.is_array(w), backend.signature(w), backend.tree_leaves({"b": w, "a": None})))
        return xp.sum(w)

    gradient(backend, objective)
    assert seen[0][:2] == (True, ((2,), np.dtype(np.float64)))
    assert seen[0][2][0] is None and isbox(seen[0][2][1])


def test_trees() -> None:
    backend = linear()
    tree = {"b": [1, 2], "a": Point(3, None)}
    assert backend.tree_leaves(tree) == [3, None, 1, 2]
    assert backend.tree_map(lambda x, y: (x, y), tree, tree)["a"] == Point((3, 3), (None, None))
    assert backend.tree_map(np.negative, array(1.0)) == -1


def test_stop_gradient_opens_everything() -> None:
    backend = linear()

    def inner(x: Any) -> Any:
        assert not any(map(isbox, backend.tree_leaves(backend.stop_gradient({"x": [x]}))))
        return xp.sum(x * backend.stop_gradient(x))

    found = gradient(
        backend, lambda: xp.sum(backend.grad(inner, [])(backend.get(["w"])["w"]) * backend.get(["w"])["w"])
    )
    close(found["w"], array(1, 2))


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


def test_devices() -> None:
    for device in (None, "cpu"):
        Backend(device=device).to_device(device)
    for make in (lambda: Backend(device="cuda"), lambda: linear().to_device("gpu:0")):
        with pytest.raises(BackendError, match="computes on the CPU"):
            make()


def test_bind_again_forgets_the_old_models() -> None:
    backend = linear()
    backend.bind({"new": {"v": np.ones(1, np.float32)}})
    assert backend.paths("params") == {"new": ("new.v",)}
    assert backend.xp.zeros(1).dtype == np.float32
    with pytest.raises(UnknownModelError):
        backend.bind({"bad": object()})
    assert backend.paths("params") == {"new": ("new.v",)}
