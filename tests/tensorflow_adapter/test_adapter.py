"""The TensorFlow adapter beyond the conformance suite: modules, trees, layers, optimizers, programs and errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras as typed_keras
import numpy as np
import pytest
import tensorflow as typed_tf

import loopcore as lc
from loopcore.backend import Backend as Protocol
from loopcore.backend import CompilingBackend
from loopcore.errors import BackendError, GradientError, LossError, OptimizerError, TraceError, UnknownModelError
from loopcore_tensorflow import Backend

keras: Any = typed_keras
tf: Any = typed_tf
DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(8, 3)).astype("f4"), DRAW.normal(size=(8, 2)).astype("f4")


def learner_of(model: Any, optimizer: Any = None, **options: Any) -> Any:
    options = {"default_callbacks": False, **options}
    return lc.Learner(model, lc.losses.mse, lc.SGD(0.1) if optimizer is None else optimizer, **options)


def dense(seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(2)])


# -- tf.Module


class Net(tf.Module):  # type: ignore[misc]
    """Variables in attributes, a list and a dict; one counts calls while training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = tf.Variable(tf.ones((3, 4)) / 3)
        self.rest = [tf.Variable(tf.ones((4, 2)) / 4), {"bias": tf.Variable(tf.zeros(2))}]
        self.calls = tf.Variable(0, trainable=False)
        self.same = self.first

    def __call__(self, x: Any, training: bool = False) -> Any:
        if training:
            self.calls.assign_add(1)
        return tf.tanh(x @ self.first) @ self.rest[0] + self.rest[1]["bias"]


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


def test_a_module_with_other_values() -> None:
    """Through tensors in place of its variables, differentiated twice; they are back afterwards."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def outer() -> Any:
            slopes = learner.gradient(lambda: learner.loss_fn(learner.model(state.xs), state.ys))
            fast = learner.tree.map(lambda w, g: w - 0.5 * g, learner.params.value, slopes)
            return learner.loss_fn(learner.model.apply(fast, state.xs), state.ys)

        state.grads = learner.gradient(outer)

    module = Net()
    first, second = module.first, module.rest[1]["bias"]
    learner = learner_of(module, reads=("step.grads",))
    found = learner.to_host(lc.run_step(body, learner, lc.TrainingPhase(), xs=X, ys=Y).grads)
    assert module.first is first and module.rest[1]["bias"] is second and int(module.calls) == 1

    def loss(path: str, index: tuple[int, ...], shift: float) -> float:
        weights = {name: value.astype("f8") for name, value in learner.export_weights().items() if name != "calls"}
        weights[path][index] += shift

        def forward(w: Any) -> tuple[float, Any]:
            hidden = np.tanh(X @ w["first"])
            error = hidden @ w["rest.0"] + w["rest.1.bias"] - Y
            upstream = 2 * error / error.size
            back = upstream @ w["rest.0"].T * (1 - hidden**2)
            slopes = {"first": X.T @ back, "rest.0": hidden.T @ upstream, "rest.1.bias": upstream.sum(0)}
            return float(np.mean(error**2)), slopes

        slopes = forward(weights)[1]
        return forward({name: value - 0.5 * slopes[name] for name, value in weights.items()})[0]

    for path, index in (("first", (1, 2)), ("rest.0", (0, 1)), ("rest.1.bias", (0,))):
        expected = (loss(path, index, 1e-5) - loss(path, index, -1e-5)) / 2e-5
        assert found[path][index] == pytest.approx(expected, rel=1e-3, abs=1e-6)


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


# -- optimizers


def test_adam_is_the_one_of_the_paper_and_not_epsilon_hat() -> None:
    """TensorFlow's kernel adds epsilon before the correction of the bias; here it is added after."""
    learner = learner_of({"w": np.ones(3)}, lc.Adam(0.1, epsilon=0.5))

    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: learner.xp.sum(learner.params.value["w"] * state.g))

    w, mean, square = np.ones(3), np.zeros(3), np.zeros(3)
    phase = lc.TrainingPhase()
    for step in range(1, 6):
        g = np.array([0.1, -2.0, 0.5]) * step
        lc.run_step(body, learner, phase, g=g)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        w = w - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 0.5)
    np.testing.assert_allclose(learner.to_host(learner.params.value["w"]), w, rtol=1e-5)


def test_optimizers_of_others() -> None:
    with pytest.raises(OptimizerError, match=r"keras\.optimizers\.Adam"):
        learner_of(dense(), object())


# -- programs


def test_xla_compiles_the_same_step() -> None:
    losses = []
    for compile in ("auto", "xla", False):
        learner = learner_of(dense(), lc.Adam(0.05), compile=compile)
        phase = lc.TrainingPhase()
        losses.append([float(learner.run_step(phase, (X, Y)).loss) for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)


def test_numbers_of_python_never_retrace() -> None:
    class Weighted(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                loss = learner.loss_fn(learner.model(state.xs), state.ys)
                return loss * state.weight * learner.hyper.scale

            learner.minimize(objective)

    learner, phase = learner_of(dense(), hyper={"scale": 1.0}), Weighted()
    for number in range(6):
        learner.hyper.scale = 0.5 + number
        learner.hyper.learning_rate = 0.1 / (1 + number)
        learner.run_step(phase, {"xs": X, "ys": Y, "weight": 0.25 * number})
    assert learner.backend.traces == 1


def test_a_tensor_of_another_trace_is_an_error_that_says_where_to_keep_it() -> None:
    kept: list[Any] = []

    class Leaks(lc.ValidationPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.sum(state.xs) + (kept[-1] if kept else 0.0)
            kept.append(state.loss)

    learner, phase = learner_of(dense()), Leaks()
    learner.run_step(phase, (X, Y))
    with pytest.raises(TraceError, match=r"kept\[-1\].*an earlier compiled step left behind"):
        learner.run_step(phase, (X[:4], Y[:4]))


def test_nothing_symbolic_stays_behind() -> None:
    quiet = [lc.ProgressPrinter(quiet=True), lc.MetricsPrinter(quiet=True)]
    learner = learner_of(dense(), default_callbacks=True, callbacks=quiet, data=([(X, Y)], None))
    learner.fit(1)
    kept = [*vars(learner.shared).values(), *vars(learner.step).values(), learner.attempt]
    assert not any(tf.is_tensor(value) and tf.is_symbolic_tensor(value) for value in kept)


def test_a_step_that_is_cut_compiles_its_parts() -> None:
    heard: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(1), lc.BackwardEnd)
    learner, phase = learner_of(dense(), lc.Adam(0.01), callbacks=[note]), lc.TrainingPhase()
    plain = learner_of(dense(), lc.Adam(0.01), compile=False)
    for _ in range(4):
        cut, eager = (one.run_step(phase, (X, Y)) for one in (learner, plain))
        np.testing.assert_allclose(float(cut.loss), float(eager.loss), rtol=1e-6)
    assert len(heard) == 4 and learner.backend.traces == 0
    assert learner.runs.runner_of(phase).plan.kind == "split"


def test_a_step_that_does_not_fire_what_is_heard_is_one_program() -> None:
    heard: list[int] = []
    note = lc.FunctionCallback(lambda learner, phase: heard.append(1), lc.BackwardEnd)
    learner, phase = learner_of(dense(), callbacks=[note]), lc.ValidationPhase()
    learner.run_step(phase, (X, Y))
    assert learner.backend.traces == 1 and learner.runs.runner_of(phase).plan.kind == "fused"

    def body(learner: Any, handle: Any, state: Any) -> None:
        phase.step(learner, handle, state)
        handle(lc.BackwardEnd())

    lc.run_step(body, learner, phase, xs=X, ys=Y)  # another body of the same phase may fire it
    assert len(heard) == 1 and learner.backend.traces == 1


# -- devices, dtypes, conversion


def test_devices() -> None:
    assert "CPU:0" in learner_of(dense(), device="cpu").run_step(lc.TrainingPhase(), (X, Y)).loss.device
    with pytest.raises(BackendError, match="none of TensorFlow's, which are CPU:0"):
        Backend(device="gpu:7")
    learner = learner_of(dense())
    learner.to_device("CPU:0")
    learner.run_step(lc.TrainingPhase(), (X, Y))


def test_conversion_keeps_what_fits_and_copies_numpy() -> None:
    backend = Backend()
    host = np.ones((2, 3), "f4")
    batch = {"x": tf.ones((2, 3)), "n": tf.constant([1, 2]), "name": "a", "none": None}
    assert backend.convert(batch) == batch
    found = backend.convert(
        {"x": host, "wide": host.astype("f8"), "flag": np.array([True]), "small": np.array([3], "u1")}
    )
    host[:] = 7
    assert {name: value.dtype.name for name, value in found.items()} == {
        **{"x": "float32", "wide": "float32", "flag": "bool", "small": "uint8"}
    }
    np.testing.assert_array_equal(found["x"], 1)


def test_values_read_out_are_copies_and_fetches_are_counted() -> None:
    backend = Backend()
    tensor = tf.ones(3)
    found = backend.to_host({"a": tensor, "b": [tensor, 2]})
    found["a"][:] = 5
    assert backend.transfers == 2 and float(tensor[0]) == 1 and found["b"][1] == 2


def test_losses_and_functions_that_cannot_be_differentiated() -> None:
    learner = learner_of(dense())

    def run(objective: Any) -> None:
        lc.run_step(lambda learner, handle, state: learner.gradient(objective), learner, lc.TrainingPhase())

    for objective, error, said in (
        (lambda: 1.0, LossError, r"without \.numpy\(\)"),
        (lambda: tf.constant(1), LossError, "int32"),
        (lambda: tf.ones(2), LossError, "shape"),
        (lambda: tf.ones(()), GradientError, "does not depend"),
    ):
        with pytest.raises(error, match=said):
            run(objective)
    with pytest.raises(GradientError, match="which has no gradient"):
        learner.grad(lambda n: tf.reduce_sum(n))(tf.constant([1, 2]))


def test_an_embedding_has_dense_gradients() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    learner = learner_of(keras.Sequential([keras.Input((2,), dtype="int32"), *layers]), lc.Adam(0.1))
    before = learner.export_weights()["embedding.embeddings"]
    learner.run_step(lc.TrainingPhase(), (np.array([[0, 1], [1, 4]]), Y[:2]))
    moved = (learner.export_weights()["embedding.embeddings"] != before).any(axis=1)
    assert moved.tolist() == [True, True, False, False, True]


def test_the_adapter_has_all_that_the_protocol_asks_for() -> None:
    wanted = {name for cls in (Protocol, CompilingBackend) for name in vars(cls) if not name.startswith("_")}
    chained = {"piece", "pull"}  # only where ``chains`` is true
    assert not [name for name in wanted - chained if not hasattr(Backend(), name)]


@pytest.mark.parametrize("compile", [False, True])
def test_operators_of_two_dtypes_say_what_to_write(compile: bool) -> None:
    class Accuracy(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.right = learner.xp.argmax(state.xs, axis=-1) == state.ys

    learner = learner_of(dense(), compile=compile)
    with pytest.raises(Exception, match=r"int32|int64") as caught:
        learner.run_step(Accuracy(), {"xs": np.ones((2, 3)), "ys": np.zeros(2, np.int32)})
    assert "xp.astype(xp.argmax(y, axis=-1), ys.dtype) == ys" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("compile", [False, True])
def test_a_draw_in_a_loop_of_tensorflow_is_refused(compile: bool) -> None:
    loops: list[Callable[[Callable[[], Any]], Any]] = [
        lambda draw: tf.while_loop(lambda n, c: n < 4, lambda n, c: (n + 1, c + draw()), (0, 0.0)),
        lambda draw: tf.map_fn(lambda x: x + draw(), tf.zeros(4)),
        lambda draw: tf.vectorized_map(lambda x: x + draw(), tf.zeros(4)),
    ]

    class Looping(lc.ValidationPhase):
        def __init__(self, loop: Callable[[Callable[[], Any]], Any]) -> None:
            self.loop = loop

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            self.loop(lambda: learner.random.normal(()))

    for loop in loops:
        with pytest.raises(lc.errors.TraceError, match=r"learner\.random was used inside tensorflow's"):
            learner_of(dense(), compile=compile).run_step(Looping(loop), {"xs": np.ones((2, 3), "f4")})


def test_a_seed_for_stateless_draws() -> None:
    keys = [learner_of(dense()).random.key() for _ in range(2)]
    assert keys[0].shape == (2,)
    numbers = [tf.random.stateless_normal((3,), key).numpy().tolist() for key in keys]
    assert numbers[0] == numbers[1]


def test_full_of_an_array() -> None:
    xp = learner_of(dense()).xp
    np.testing.assert_array_equal(xp.full((2, 3), np.arange(3.0, dtype="f4")), [[0, 1, 2]] * 2)


def test_the_wider_of_two_floating_dtypes() -> None:
    xp = learner_of(dense()).xp
    single, double = tf.ones(2, tf.float32), tf.ones(2, tf.float64)
    assert {xp.maximum(single, double).dtype, xp.maximum(double, single).dtype} == {tf.float64}
    assert xp.maximum(single, tf.ones(2, tf.int64)).dtype == tf.float32
