"""The NumPy adapter: models and optimizers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from loopcore import optimizers as specs
from loopcore.backend import Backend as Protocol
from loopcore.errors import BackendError, OptimizerError, UnknownModelError
from loopcore_numpy import Backend
from tests.numpy_adapter.calls import Point, array, bound, call, dot, linear, same

# -- models ------------------------------------------------------------------------------------------------------------


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


# -- optimizers --------------------------------------------------------------------------------------------------------


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
