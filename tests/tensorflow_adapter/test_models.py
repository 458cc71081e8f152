"""The TensorFlow adapter: modules, trees, layers and their devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.backend import Backend as Protocol
from loopcore.backend import CompilingBackend
from loopcore.errors import BackendError, UnknownModelError
from loopcore_tensorflow import Backend
from tests.tensorflow_adapter.calls import Net, X, Y, dense, keras, learner_of, tf


@pytest.mark.parametrize("compile", ["auto", False])
def test_a_module_of_tensorflow(compile: Any) -> None:
    module = Net()
    learner = learner_of(module, data=([(X, Y)] * 3, [(X, Y)]), compile=compile)
    assert list(learner.export_weights()) == ["first", "rest.0", "rest.1.bias", "calls"]
    before = float(learner.run_step(lc.ValidationPhase(), (X, Y)).loss)
    learner.fit(2)
    assert float(learner.run_step(lc.ValidationPhase(), (X, Y)).loss) < before
    assert int(module.calls) == 6, "validation leaves it alone"
    assert learner.model.native is module and isinstance(module.first, tf.Variable)


class Bounded(tf.Module):  # type: ignore[misc]
    """One variable that is trained within bounds, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.ones((3, 1)), constraint=lambda value: tf.clip_by_value(value, -0.5, 0.5))
        self.scale = tf.Variable(2.0, trainable=False)

    def __call__(self, x: Any) -> Any:
        return self.scale * (x @ self.kernel)


@pytest.mark.parametrize("kind", ["spec", "keras"])
def test_a_variable_of_tensorflow_keeps_its_constraint_and_its_flag(kind: str) -> None:
    module = Bounded()
    optimizer = lc.SGD(0.1) if kind == "spec" else keras.optimizers.SGD(0.1)
    learner = learner_of(module, optimizer, data=([(X, X[:, :1])], None))
    learner.fit(1)
    assert learner.params.names == ("kernel",)
    assert float(module.scale) == 2.0 and float(tf.reduce_max(tf.abs(module.kernel))) <= 0.5


def test_a_layer_of_keras_within_a_module_is_refused() -> None:
    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = keras.layers.Dense(1)

    with pytest.raises(UnknownModelError, match=r"head is a layer of Keras within a tf\.Module"):
        learner_of(Mixed())


def test_models_that_cannot_be_used() -> None:
    class Empty(tf.Module):  # type: ignore[misc]
        pass

    for model, said in (
        (Empty(), "no variables yet"),
        (keras.Sequential([keras.layers.Dense(2)]), r"keras\.Input"),
        (keras.layers.Dense, "write Dense"),
        ("dense", "the model is a str"),
    ):
        with pytest.raises(UnknownModelError, match=said):
            lc.Learner(model, backend="tensorflow")


def test_a_tree_of_arrays_is_parameters_without_a_forward() -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.tree.dot(learner.params.weights.value, learner.params.weights.value))

    models = {"net": dense(), "weights": {"a": np.ones(2), "b": [tf.ones(())]}}
    learner = learner_of(models, {"weights": lc.SGD(0.25)})
    lc.run_step(body, learner, lc.TrainingPhase())
    assert learner.export_weights()["weights.a"].dtype == np.float32, "NumPy arrays follow the other models"
    np.testing.assert_allclose(learner.to_host(learner.params.weights.value)["b"], [0.5])
    with pytest.raises(BackendError, match="without a forward"):
        learner.model.weights(X)


def test_devices() -> None:
    assert "CPU:0" in learner_of(dense(), device="cpu").run_step(lc.TrainingPhase(), (X, Y)).loss.device
    with pytest.raises(BackendError, match="none of TensorFlow's, which are CPU:0"):
        Backend(device="gpu:7")
    learner = learner_of(dense())
    learner.to_device("CPU:0")
    learner.run_step(lc.TrainingPhase(), (X, Y))


def test_the_adapter_has_all_that_the_protocol_asks_for() -> None:
    wanted = {name for cls in (Protocol, CompilingBackend) for name in vars(cls) if not name.startswith("_")}
    chained = {"piece", "pull"}  # only where ``chains`` is true
    assert not [name for name in wanted - chained if not hasattr(Backend(), name)]
