"""One script without a framework's name on each backend, chosen by the environment, a block, or ``backend=``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from examples import convnet, transformer
from tests.conftest import ROOT
from tests.frameworks import one_script
from tests.frameworks.networks import BACKENDS, keras
from tests.test_docs import run as run_page

import jax.numpy as jnp  # isort: skip
import tensorflow as typed_tf  # isort: skip
import torch  # isort: skip

pytestmark = pytest.mark.timeout(300)
tf: Any = typed_tf
SCRIPT = Path(one_script.__file__)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script leaves on each backend when the environment chooses."""
    folders = {backend: tmp_path_factory.mktemp(backend) for backend in BACKENDS}
    running = {
        backend: subprocess.Popen(_command(folder), env=_environment(backend)) for backend, folder in folders.items()
    }
    assert all(process.wait(timeout=240) == 0 for process in running.values())
    return {backend: json.loads((folder / "result.json").read_text("utf-8")) for backend, folder in folders.items()}


def _command(folder: Path) -> list[str]:
    return [sys.executable, str(SCRIPT), str(folder)]


def _environment(backend: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "LOOPCORE_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}


def same(result: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-5) -> None:
    assert result["status"] == expected["status"]
    assert result["names"] == expected["names"] == ["hidden.bias", "hidden.weight", "out.bias", "out.weight"]
    assert result["events"] == expected["events"] and len(expected["events"]) > 500
    assert len(expected["losses"]) == 100
    np.testing.assert_allclose(result["losses"], expected["losses"], rtol=rtol)
    assert result["history"].keys() == expected["history"].keys()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_environment_chooses(results: dict[str, Any], backend: str) -> None:
    assert results[backend]["backend"] == backend
    same(results[backend], results["numpy"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_use_and_the_argument_choose_the_same(results: dict[str, Any], backend: str, tmp_path: Path) -> None:
    with lc.using(backend):
        by_block = one_script.main(tmp_path / "block")
    by_argument = one_script.main(tmp_path / "argument", backend)
    for result in (by_block, by_argument):
        assert result["backend"] == backend
        same(result, results[backend], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_of_each_load_on_each(results: dict[str, Any], backend: str) -> None:
    with lc.using(backend):
        learner = lc.Learner((one_script.apply_fn, one_script.first_params()))
    for result in results.values():
        learner.load_model(result["checkpoint"])
        for name, value in learner.export_weights().items():
            np.testing.assert_array_equal(value, np.asarray(result["weights"][name], "float32"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_prints_the_same_on_every_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPCORE_BACKEND", backend)
    path = ROOT / "docs" / "pick-a-backend.md"
    assert run_page(path.read_text(encoding="utf-8"), str(path), frameworks=("torch",)) > 15


# -- two networks with layers, noise and statistics

NETWORKS: dict[str, Callable[..., lc.Learner]] = {
    "transformer": lambda **options: transformer.make(batch_size=16, width=32, **options),
    "convnet": lambda **options: convnet.make(batch_size=16, **options),
}


def neutral_losses(network: str, backend: str, steps: int) -> list[float]:
    """The losses of the first steps of an example, whose dropout draws the same numbers on every backend."""
    losses = one_script.Losses()
    callbacks = [losses, lc.Recorder(), lc.MaxSteps(steps)]
    with lc.using(backend), lc.testing.same_random():
        NETWORKS[network](callbacks=callbacks, default_callbacks=False).fit(steps)
    return losses.values


@pytest.mark.parametrize("network", NETWORKS)
def test_the_networks_of_the_examples_have_the_same_losses(network: str) -> None:
    expected = neutral_losses(network, "numpy", 20)
    assert len(expected) == 20 and expected[-1] < 0.9 * expected[0]
    for backend in BACKENDS[1:]:
        np.testing.assert_allclose(neutral_losses(network, backend, 20), expected, rtol=1e-5, err_msg=backend)


# -- what was chosen, and what a type decides


def apply_fn(params: Any, x: Any) -> Any:
    return x @ params["w"]


PARAMS = {"w": np.ones((2, 2), "float32")}


@pytest.fixture
def forget() -> Iterator[None]:
    yield
    lc.use(None)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.usefixtures("forget")
def test_a_native_model_keeps_its_backend(backend: str) -> None:
    lc.use(backend)
    assert lc.Learner((apply_fn, PARAMS)).backend.name == backend
    models = {
        "torch": (torch.nn.Linear(2, 2), (apply_fn, {"w": torch.ones(2, 2)})),
        "jax": ((apply_fn, {"w": jnp.ones((2, 2))}),),
        "tensorflow": (
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
            (apply_fn, {"w": tf.ones((2, 2))}),
        ),
    }
    for name, natives in models.items():
        for model in natives:
            assert lc.Learner(model).backend.name == name


@pytest.mark.usefixtures("forget")
def test_keras_imported_before_the_choice_is_said(caplog: pytest.LogCaptureFixture) -> None:
    lc.use("jax")
    assert re.search("Keras is imported already and runs on tensorflow.*jax was chosen", caplog.text)
    caplog.clear()
    lc.use("tensorflow")
    lc.use("numpy")  # on which Keras cannot train: it is no other choice for its models
    assert caplog.text == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_make_and_take_arrays_of_the_chosen_backend(backend: str) -> None:
    kinds = {"numpy": np.ndarray, "torch": torch.Tensor, "jax": jnp.ndarray, "tensorflow": tf.Tensor}
    with lc.using(backend):
        arrays = [lc.xp.zeros((2, 3)), lc.xp.asarray([[1.0, 2.0]]), lc.random.normal((2,)), lc.xp.arange(3)]
        lc.random.seed(5)
        drawn = np.asarray(lc.random.normal((4,)))
    assert all(isinstance(array, kinds[backend]) for array in arrays)
    assert [
        str(array.dtype).rpartition(".")[2].strip("'<>") for array in arrays[:3]
    ] != [] and drawn.dtype == np.float32
    lc.random.seed(5)
    np.testing.assert_array_equal(np.asarray(lc.random.normal((4,))).astype("float32"), drawn)  # the same on all


def test_functions_go_by_the_type_whatever_was_chosen() -> None:
    with lc.using("numpy"):
        for array in (torch.ones(2), jnp.ones(2), tf.ones(2), np.ones(2)):
            assert type(lc.xp.exp(array)) is type(array * 2)
            assert np.asarray(lc.xp.astype(array, lc.xp.int32)).dtype == np.int32
            tree = lc.tree.lerp({"a": array}, {"a": 3 * array}, 0.5)
            np.testing.assert_array_equal(np.asarray(tree["a"]), [2.0, 2.0])
            assert float(lc.tree.global_norm({"a": array})) == pytest.approx(2**0.5)


# -- mistakes

MASK = np.zeros(2, "float32")


@pytest.mark.parametrize(
    ("backend", "name", "words"),
    [
        ("torch", "np.tanh", r"np \(numpy\)"),
        ("jax", "np.tanh", r"np \(numpy\)"),
        ("tensorflow", "np.tanh", r"np \(numpy\)"),
        ("torch", "jnp.tanh", r"jnp \(jax\)"),
        ("tensorflow", "jnp.tanh", r"jnp \(jax\)"),
        ("numpy", "jnp.tanh", r"jnp \(jax\)"),
        ("jax", "torch.tanh", r"torch \(torch\)"),
        ("torch", "mask", r"MASK \(numpy\).*lc\.use\('torch'\) first"),
    ],
)
def test_a_function_that_mixes_frameworks_is_named_with_its_line(backend: str, name: str, words: str) -> None:
    functions = {
        "np.tanh": lambda params, x: np.tanh(x @ params["w"]),
        "jnp.tanh": lambda params, x: jnp.tanh(x @ params["w"]),
        "torch.tanh": lambda params, x: torch.tanh(x @ params["w"]),
        "mask": lambda params, x: (x @ params["w"]) * MASK,
    }
    x = np.ones((3, 2), "float32")
    with lc.using(backend):
        learner = lc.Learner((functions[name], PARAMS), lc.losses.mse, lc.SGD(0.1), default_callbacks=False)
        with pytest.raises(lc.errors.BackendError, match=rf"test_switch\.py:\d+: .*runs on {backend}.*{words}"):
            learner.run_step(lc.TrainingPhase(), (x, x))


def test_functions_refuse_arrays_of_two_frameworks() -> None:
    with pytest.raises(lc.errors.BackendError, match=r"xp\.maximum: it got arrays of jax and torch.*lc\.use"):
        lc.xp.maximum(torch.ones(2), jnp.ones(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_of_a_learner_take_constants_and_refuse_arrays_of_others(backend: str) -> None:
    learner = lc.Learner((apply_fn, PARAMS), backend=backend, default_callbacks=False)
    xp, array = learner.xp, learner.xp.ones((2,))
    np.testing.assert_array_equal(learner.to_host(xp.maximum(array, 2 * np.ones(2, "float32"))), [2.0, 2.0])
    np.testing.assert_array_equal(learner.to_host(xp.concat([array, np.zeros(1, "float32")])), [1.0, 1.0, 0.0])
    assert float(learner.to_host(xp.sqrt(4.0))) == 2.0
    foreign = jnp.ones(2) if backend == "torch" else torch.ones(2)
    with pytest.raises(lc.errors.BackendError, match=rf"xp\.tanh: it got arrays of .*{backend}.*lc\.xp\.asarray"):
        xp.tanh(foreign)


def test_arrays_of_two_frameworks_in_one_model() -> None:
    with pytest.raises(lc.errors.UnknownModelError, match=r"mixes what belongs to torch and jax.*NumPy"):
        lc.Learner((apply_fn, {"w": torch.ones(2, 2), "b": jnp.ones(2)}))


def test_arrays_made_before_the_backend_was_chosen() -> None:
    for array, other in ((torch.ones(2, 2), "jax"), (jnp.ones((2, 2)), "torch"), (tf.ones((2, 2)), "numpy")):
        with pytest.raises(lc.errors.UnknownModelError, match=rf"'w'.*the backend is {other}.*lc\.use"):
            lc.Learner((apply_fn, {"w": array}), backend=other)
