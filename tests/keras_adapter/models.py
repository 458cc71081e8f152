"""Keras models and optimizers on one framework; imported by a test module of each, since Keras has one a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras as typed_keras
import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import CheckpointError, UnknownModelError

keras: Any = typed_keras
# Keras 3.15 reads its own variables in a way that NumPy 2.4 wants otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
DRAW = np.random.default_rng(3)
X, Y = DRAW.normal(size=(16, 4)).astype("f4"), DRAW.integers(3, size=16)
OPTIMIZERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1, clipnorm=1.0),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate),
}


def network() -> Any:
    """With BatchNormalization and Dropout."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def learner_of(model: Any, optimizer: Any, **options: Any) -> lc.Learner:
    return lc.Learner(model, lc.losses.cross_entropy, optimizer, default_callbacks=False, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_keras_does_what_fit_of_keras_does(name: str) -> None:
    theirs, mine = network(), network()
    theirs.compile(OPTIMIZERS[name](0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner = learner_of(mine, OPTIMIZERS[name](0.05))
    for _ in range(5):
        theirs.train_on_batch(X, Y)
        learner.run_step(lc.TrainingPhase(), (X, Y))
    found = learner.model.native
    for own, other in zip(found.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(other), rtol=2e-4, atol=2e-6, err_msg=own.path
        )


def test_its_learning_rate_is_set_without_another_trace() -> None:
    learner = learner_of(network(), keras.optimizers.SGD(0.5))
    assert learner.hyper.learning_rate == 0.5
    before, phase = learner.export_weights(), lc.TrainingPhase()
    for rate in (0.25, 0.0, 0.125):
        learner.hyper.learning_rate = rate
        assert learner.hyper.learning_rate == rate
        learner.run_step(phase, (X, Y))
        now = learner.export_weights()
        moved = max(float(np.abs(now[path] - before[path]).max()) for path in now if "moving" not in path)
        assert (moved > 0) == (rate > 0)
        before = now
    assert getattr(learner.backend, "traces", 1) == 1


def test_a_schedule_of_keras_says_so() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    learner = learner_of(network(), keras.optimizers.SGD(schedule))
    learner.run_step(lc.TrainingPhase(), (X, Y))
    with pytest.raises(lc.errors.OptimizerError, match="schedule of Keras"):
        learner.hyper.learning_rate = 0.1


def test_what_keras_bakes_in_cannot_be_set() -> None:
    learner = learner_of(network(), keras.optimizers.SGD(0.1, momentum=0.5))
    assert learner.hyper.momentum == 0.5
    with pytest.raises(lc.errors.OptimizerError, match=r"lc\.Momentum"):
        learner.hyper.momentum = 0.9


def test_two_optimizers_of_two_parts() -> None:
    model = network()
    optimizers = {"": keras.optimizers.Adam(0.01), "dense_1": keras.optimizers.SGD(0.0)}
    learner = learner_of(model, optimizers)
    before = learner.export_weights()
    learner.run_step(lc.TrainingPhase(), (X, Y))
    now = learner.export_weights()
    same = {path for path in now if (now[path] == before[path]).all()}
    assert same == {"dense_1.kernel", "dense_1.bias"}


def test_a_part_of_what_an_optimizer_trains() -> None:
    """What gets no gradient stays where it is, with the momentum it has."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            return lc.losses.cross_entropy(learner.model(state.xs), state.ys)

        learner.update(learner.gradient(objective, wrt=learner.params.dense), learner.params.dense)

    learner = learner_of(network(), keras.optimizers.Adam(0.01))
    learner.run_step(lc.TrainingPhase(), (X, Y))
    before = learner.export_weights()
    lc.run_step(body, learner, lc.TrainingPhase(), xs=X, ys=Y)
    now = learner.export_weights()
    changed = {path for path in now if (now[path] != before[path]).any()}
    assert {path for path in changed if "moving" not in path} == {"dense.kernel", "dense.bias"}


def test_paths_do_not_depend_on_what_was_built_before() -> None:
    first, second = (learner_of(network(), lc.SGD(0.1)).export_weights() for _ in range(2))
    assert list(first) == list(second)
    assert {"dense.kernel", "dense_1.bias", "batch_normalization.moving_mean"} <= set(first)


def test_names_of_the_user_stay() -> None:
    block = keras.Sequential([keras.layers.Dense(4, name="block_7"), keras.layers.Dense(3)], name="tower_2")
    model = keras.Sequential([keras.Input((4,)), block])
    assert set(learner_of(model, lc.SGD(0.1)).export_weights()) == {
        *("tower_2.block_7.kernel", "tower_2.block_7.bias", "tower_2.dense.kernel", "tower_2.dense.bias")
    }


def test_a_model_without_weights_says_what_to_write() -> None:
    with pytest.raises(lc.errors.UnknownModelError, match=r"keras\.Input"):
        learner_of(keras.Sequential([keras.layers.Dense(3)]), lc.SGD(0.1))


def test_a_layer_is_a_model() -> None:
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    learner = learner_of(layer, lc.SGD(0.1))
    learner.run_step(lc.TrainingPhase(), (X, Y))
    assert set(learner.export_weights()) == {"kernel", "bias"}


def test_dropout_draws_new_numbers_each_step_and_the_same_again() -> None:
    def losses() -> list[float]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)])
        learner = learner_of(model, lc.SGD(0.0))
        return [float(learner.run_step(lc.TrainingPhase(), (X, Y)).loss) for _ in range(4)]

    first = losses()
    assert len(set(first)) == 4
    assert losses() == first


def test_the_native_model_predicts_as_the_learner_does() -> None:
    learner = learner_of(network(), keras.optimizers.Adam(0.01), data=([(X, Y)], None))
    learner.fit(2)
    found = keras.ops.convert_to_numpy(learner.model.native(X, training=False))
    np.testing.assert_allclose(learner.predict([X]), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_goes_on_with_an_optimizer_of_keras(name: str, tmp_path: Path) -> None:
    whole, first, second = (
        learner_of(network(), OPTIMIZERS[name](rate), data=([(X, Y)] * 3, None)) for rate in (0.05, 0.05, 0.5)
    )
    whole.fit(2)
    first.fit(1)
    second.load(first.save(tmp_path / "x"))
    second.fit(1)
    np.testing.assert_equal(second.export_weights(), whole.export_weights())


def test_the_state_of_another_optimizer_of_keras_is_refused(tmp_path: Path) -> None:
    first, second = (
        learner_of(network(), keras.optimizers.Adam(0.1)),
        learner_of(network(), keras.optimizers.AdamW(0.1)),
    )
    with pytest.raises(CheckpointError, match="AdamW here, Adam in the checkpoint"):
        second.load(first.save(tmp_path / "x"))


# -- models that are not built yet


class Subclassed(keras.Model):  # type: ignore[misc]
    """Makes its weights when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dense(3)]

    def call(self, x: Any, training: bool = False) -> Any:
        for layer in self.body:
            x = layer(x, training=training) if isinstance(layer, keras.layers.BatchNormalization) else layer(x)
        return x


def unbuilt(kind: str) -> Any:
    keras.utils.set_random_seed(0)
    return Subclassed() if kind == "subclassed" else keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(3)])


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_a_model_is_built_on_the_first_batch(kind: str) -> None:
    """As when the user had called it; the batch is the first of the fit all the same."""
    data = [(X[:8].astype("f8"), Y[:8]), (X[8:].astype("f8"), Y[8:])]
    mine, theirs = unbuilt(kind), unbuilt(kind)
    theirs(keras.ops.convert_to_tensor(X[:1]))
    learner = learner_of(mine, lc.SGD(0.1), data=(iter(data), None))
    other = learner_of(theirs, lc.SGD(0.1), data=(data, None))
    for one, two in zip(learner.export_weights().values(), other.export_weights().values(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert learner.fit(1).status == other.fit(1).status == "completed"
    for one, two in zip(learner.export_weights().values(), other.export_weights().values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


def test_without_data_it_cannot_be_built() -> None:
    with pytest.raises(UnknownModelError, match=r"keras\.Input"):
        learner_of(unbuilt("sequential"), lc.SGD(0.1))


# -- what keras adds to its own loss


class AddsLoss(keras.layers.Layer):  # type: ignore[misc]
    """Passes on what it gets, and asks for small values."""

    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.mean(x**2))
        return x


def regularized(kind: str, strength: float = 10.0) -> Any:
    keras.utils.set_random_seed(0)
    penalty = keras.regularizers.L2(strength)
    layers = {
        "kernel": lambda: [keras.layers.Dense(3, kernel_regularizer=penalty)],
        "within": lambda: [keras.Sequential([keras.layers.Dense(3, bias_regularizer=penalty)], name="head")],
        "activity": lambda: [keras.layers.Dense(3, activity_regularizer=penalty)],
        "own": lambda: [keras.layers.Dense(3), AddsLoss()],
    }
    return keras.Sequential([keras.Input((4,)), *layers[kind]()])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kernel", "regularizer of 'dense.kernel'"),
        ("within", "regularizer of 'head.dense.bias'"),
        ("activity", "activity_regularizer of 'dense"),
    ],
)
def test_regularizers_are_told_when_a_model_is_bound(kind: str, words: str) -> None:
    with pytest.warns(UserWarning) as told:
        learner = learner_of(regularized(kind), lc.SGD(0.01))
        learner.run_step(lc.TrainingPhase(), (X, Y))
    messages = [str(one.message) for one in told if "regularizer" in str(one.message)]
    assert len(messages) == 1
    assert words in messages[0] and "add the penalty to the loss" in messages[0]


def test_add_loss_is_told_once_at_the_first_training_step() -> None:
    learner = learner_of(regularized("own"), lc.SGD(0.01))
    with pytest.warns(UserWarning, match="add_loss") as told:
        for _ in range(3):
            learner.run_step(lc.TrainingPhase(), (X, Y))
    assert len([one for one in told if "add_loss" in str(one.message)]) == 1


def test_a_model_without_them_is_told_nothing(recwarn: pytest.WarningsRecorder) -> None:
    learner_of(network(), lc.SGD(0.01)).run_step(lc.TrainingPhase(), (X, Y))
    assert not [one for one in recwarn if "regularizer" in str(one.message) or "add_loss" in str(one.message)]


class Penalised(lc.TrainingPhase):
    """The phase of docs/how-a-step-runs.md, with the penalty of `regularized`."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.y_pred = learner.model(state.xs)
            kernel = learner.params.value["dense.kernel"]
            state.loss = learner.loss_fn(state.y_pred, state.ys) + 10.0 * learner.xp.sum(kernel**2)
            return state.loss

        learner.minimize(objective)


@pytest.mark.filterwarnings("ignore:.*regularizer of 'dense.kernel'")
def test_the_penalty_in_the_phase_is_that_of_keras() -> None:
    theirs, learner = regularized("kernel"), learner_of(regularized("kernel"), keras.optimizers.SGD(0.01))
    theirs.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(3):
        theirs.train_on_batch(X, Y)
        learner.run_step(Penalised(), (X, Y))
    for own, other in zip(learner.model.native.weights, theirs.weights, strict=True):
        found, expected = keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(other)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-6)
