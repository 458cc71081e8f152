"""What users of Keras bring is taken whole, or refused; imported by a test module of each framework."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras as typed_keras
import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import OptimizerError, UnknownModelError

keras: Any = typed_keras
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
DRAW = np.random.default_rng(7)
X, Y = DRAW.normal(size=(32, 4)).astype("f4"), DRAW.integers(3, size=32)
DATA = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]


def loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(**options: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh", name="body"), keras.layers.Dense(3, name="head", **options)]
    return keras.Sequential([keras.Input((4,)), *layers])


def learner_of(model: Any, optimizer: Any, data: Any = DATA, **options: Any) -> lc.Learner:
    return lc.Learner(
        model,
        loss(),
        optimizer,
        data=(data, None),
        default_callbacks=False,
        callbacks=options.pop("callbacks", ()),
        **options,
    )


def kernel(model: Any, layer: str = "head") -> np.ndarray[Any, Any]:
    return np.array(keras.ops.convert_to_numpy(model.get_layer(layer).kernel))


def fitted(model: Any, optimizer: Any, epochs: int = 1, **options: Any) -> Any:
    """The fit of Keras on the same batches."""
    model.compile(optimizer, loss(), **options)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def assert_same(found: Any, expected: Any, atol: float = 1e-6) -> None:
    for mine, theirs in zip(found.weights, expected.weights, strict=True):
        one, two = keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs)
        np.testing.assert_allclose(one, two, rtol=0, atol=atol, err_msg=mine.path)


# -- the same weights as after a fit of Keras

HONOURED: dict[str, Callable[[], Any]] = {
    "global_clipnorm": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.01),
    "clipvalue": lambda: keras.optimizers.SGD(0.5, clipvalue=0.001),
    "accumulation": lambda: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)),
}


@pytest.mark.parametrize("name", HONOURED)
def test_an_optimizer_is_honoured(name: str) -> None:
    mine = network()
    learner_of(mine, HONOURED[name]()).fit(2)
    assert_same(mine, fitted(network(), HONOURED[name](), epochs=2))


def test_a_convolutional_network_ends_where_the_fit_of_keras_does() -> None:
    images, labels = DRAW.normal(size=(32, 6, 6, 1)).astype("f4"), DRAW.integers(3, size=32)

    def convolutional() -> Any:
        keras.utils.set_random_seed(1)
        body = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
        head = [keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dropout(0.0), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((6, 6, 1)), *body, *head])

    mine, theirs = convolutional(), convolutional()
    batches = [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 32, 8)]
    learner_of(mine, keras.optimizers.SGD(0.05, momentum=0.9), batches).fit(2)
    theirs.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss())
    theirs.fit(images, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert_same(mine, theirs)


def test_mixed_precision_keeps_float32_updates() -> None:
    def mixed() -> Any:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(8, dtype="mixed_bfloat16"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((4,)), *layers])

    mine, theirs = mixed(), mixed()
    learner_of(mine, keras.optimizers.SGD(0.1)).fit(1)
    assert {str(variable.dtype) for variable in mine.weights} == {"float32"}
    assert_same(mine, fitted(theirs, keras.optimizers.SGD(0.1)), atol=1e-4)


# -- constraints and exclusions


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("optimizer", ["keras", "spec"])
def test_a_constraint_holds(optimizer: str, compile: bool) -> None:
    model = network(kernel_constraint=keras.constraints.MaxNorm(0.5))
    learner_of(model, keras.optimizers.SGD(1.0) if optimizer == "keras" else lc.SGD(1.0), compile=compile).fit(1)
    assert np.linalg.norm(kernel(model), axis=0).max() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("by", ["name", "variable"])
def test_what_is_excluded_from_decay_does_not_decay(by: str) -> None:
    model = network()
    optimizer = keras.optimizers.AdamW(1e-9, weight_decay=1e8)  # a step takes a tenth of what decays
    if by == "name":
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
    else:
        optimizer.exclude_from_weight_decay(var_list=[layer.kernel for layer in model.layers])
    model.get_layer("head").bias.assign(np.ones(3, "f4"))
    before = kernel(model)
    learner_of(model, optimizer, DATA[:1]).fit(1)
    np.testing.assert_allclose(kernel(model), before, atol=1e-6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model.get_layer("head").bias), 0.9, atol=1e-4)


# -- what is frozen


@pytest.mark.parametrize("optimizer", ["keras", "spec"])
def test_what_the_user_froze_stays_frozen(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    model.get_layer("body").trainable = False
    before = kernel(model, "body"), kernel(model)
    learner = learner_of(model, keras.optimizers.Adam(0.1) if optimizer == "keras" else lc.Adam(0.1))
    assert set(learner.frozen) == {"body.kernel", "body.bias"}
    assert "frozen: body" in learner.explain()
    learner.fit(1)
    np.testing.assert_array_equal(kernel(model, "body"), before[0])
    assert np.abs(kernel(model) - before[1]).max() > 0


def test_what_is_frozen_or_let_go_between_fits_is_heeded() -> None:
    model = network()
    learner = learner_of(model, lc.Adam(0.1))
    learner.fit(1)
    model.get_layer("body").trainable = False
    before = kernel(model, "body"), kernel(model)
    learner.fit(1)
    np.testing.assert_array_equal(kernel(model, "body"), before[0])
    assert np.abs(kernel(model) - before[1]).max() > 0
    assert set(learner.frozen) == {"body.kernel", "body.bias"}
    model.get_layer("body").trainable = True
    learner.fit(1)
    assert np.abs(kernel(model, "body") - before[0]).max() > 0
    assert learner.frozen == ()


def test_what_is_let_go_later_is_trained_by_a_spec() -> None:
    model = network()
    model.get_layer("body").trainable = False
    learner = learner_of(model, lc.Adam(0.1))
    learner.fit(1)
    before = kernel(model, "body")
    model.get_layer("body").trainable = True
    learner.fit(1)
    assert np.abs(kernel(model, "body") - before).max() > 0


def test_an_optimizer_of_keras_cannot_take_more_variables() -> None:
    model = network()
    model.get_layer("body").trainable = False
    learner = learner_of(model, keras.optimizers.Adam(0.1))
    learner.fit(1)
    model.get_layer("body").trainable = True
    for _ in range(2):
        with pytest.raises(OptimizerError, match=r"cannot add body\..*, body\..* to it: make a new one"):
            learner.fit(1)


def test_binding_leaves_every_flag_as_it_was() -> None:
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    entry = keras.Input((4,))
    model = keras.Model(entry, keras.layers.Dense(3, name="head")(keras.layers.Add()([inner(entry), shared(entry)])))
    inner.trainable = False
    model.get_layer("head").bias.trainable = False
    flags = [(one, one.trainable) for one in (model, inner, shared, *model.layers, *model.variables)]
    learner = learner_of(model, lc.SGD(0.1))
    assert [one.trainable for one, _ in flags] == [flag for _, flag in flags]
    assert len(learner.frozen) == 3 and "head.bias" in learner.frozen


# -- refused by name

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scale": (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), "pass the optimizer within it"),
    "factor": (lambda: keras.optimizers.SGD(0.1, loss_scale_factor=8.0), "leave loss_scale_factor out"),
    "average": (lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), r"lc\.AveragedWeights\(0\.5\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_does_more_than_step_is_refused(name: str) -> None:
    optimizer, message = REFUSED[name]
    with pytest.raises(OptimizerError, match=message):
        learner_of(network(), optimizer())


def test_an_optimizer_of_other_variables_is_refused() -> None:
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(network().trainable_variables)
    with pytest.raises(OptimizerError, match=r"was built for other variables.*body\.kernel"):
        learner_of(network(), optimizer)


@pytest.mark.parametrize("optimizer", ["keras", "spec"])
def test_float16_without_a_scaled_loss_is_refused(optimizer: str) -> None:
    layers = [keras.layers.Dense(8, name="half", dtype="mixed_float16"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    with pytest.raises(OptimizerError, match=r"'half' is mixed_float16.*mixed_bfloat16"):
        learner_of(model, keras.optimizers.SGD(0.1) if optimizer == "keras" else lc.SGD(0.1))
    assert learner_of(model, None).predict(DATA).shape == (32, 3)


class OwnStep(keras.Model):  # type: ignore[misc]
    """Does what nobody would call."""

    def train_step(self, *args: Any) -> Any:
        raise AssertionError("nobody calls it")


class Plain(OwnStep):
    """The same without it."""

    train_step = keras.Model.train_step


@pytest.mark.parametrize("name", ["train_step", "test_step", "compute_loss"])
def test_a_step_of_the_model_is_refused(name: str) -> None:
    entry = keras.Input((4,))
    kind = type("Mine", (keras.Model,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(UnknownModelError, match=rf"a Mine with a {name} of its own.*keras\.Model\.{name}"):
        learner_of(kind(entry, keras.layers.Dense(3)(entry)), lc.SGD(0.1))


def test_a_step_that_is_taken_back_is_none() -> None:
    entry = keras.Input((4,))
    assert learner_of(Plain(entry, keras.layers.Dense(3)(entry)), lc.SGD(0.1)).fit(1).status == "completed"


# -- the user's own objects


def test_what_the_user_writes_between_fits_counts() -> None:
    model, optimizer = network(), keras.optimizers.SGD(0.0)
    learner = learner_of(model, optimizer)
    learner.fit(1)
    model.set_weights([np.full_like(weight, 0.25) for weight in model.get_weights()])
    assert learner.params.value["head.kernel"].shape == (8, 3)
    np.testing.assert_array_equal(learner.export_weights()["head.kernel"], np.full((8, 3), 0.25))
    learner.fit(1)
    np.testing.assert_array_equal(kernel(model), np.full((8, 3), 0.25))
    optimizer.learning_rate = 0.5
    assert learner.hyper.learning_rate == 0.5
    learner.fit(1)
    assert np.abs(kernel(model) - 0.25).max() > 0


def test_what_the_learner_is_given_the_model_shows() -> None:
    model, optimizer = network(), keras.optimizers.SGD(0.5)
    learner = learner_of(model, optimizer)
    weights = {path: np.full_like(value, 0.5) for path, value in learner.export_weights().items()}
    learner.import_weights(weights)
    np.testing.assert_array_equal(kernel(model), np.full((8, 3), 0.5))
    learner.hyper.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25
    learner.params.value = {path: value + 1 for path, value in learner.params.value.items()}
    np.testing.assert_array_equal(kernel(model), np.full((8, 3), 1.5))


class Looks(lc.Callback):
    """Looks at the user's model, not at the learner's, and writes into it once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: list[tuple[str, np.ndarray[Any, Any]]] = []

    @lc.on(lc.EpochBegin)
    @lc.on(lc.EpochEnd)
    @lc.on(lc.FitEnd)
    def look(self, learner: Any, phase: Any, event: Any) -> None:
        self.seen.append((type(event).__name__, kernel(self.model)))


class LooksAtSteps(Looks):
    """Says that it does."""

    reads = ("params",)

    @lc.on(lc.StepEnd)
    def after(self, learner: Any, phase: Any) -> None:
        self.seen.append(("StepEnd", kernel(self.model)))
        np.testing.assert_array_equal(self.seen[-1][1], learner.to_host(learner.params.value["head.kernel"]))


def test_handlers_see_the_present_values_in_the_model_of_the_user() -> None:
    model = network()
    looks = Looks(model)
    learner_of(model, keras.optimizers.SGD(0.1), callbacks=[looks]).fit(2)
    begin, end, again, last, whole = looks.seen
    assert [name for name, _ in looks.seen] == ["EpochBegin", "EpochEnd", "EpochBegin", "EpochEnd", "FitEnd"]
    assert np.abs(end[1] - begin[1]).max() > 0 and np.abs(last[1] - again[1]).max() > 0
    np.testing.assert_array_equal(end[1], again[1])
    np.testing.assert_array_equal(last[1], whole[1])
    expected = fitted(network(), keras.optimizers.SGD(0.1), epochs=1)
    np.testing.assert_allclose(end[1], kernel(expected), atol=1e-6)


def test_handlers_within_steps_see_them_too_where_they_say_so() -> None:
    model = network()
    looks = LooksAtSteps(model)
    learner_of(model, keras.optimizers.SGD(0.1), callbacks=[looks]).fit(1)
    steps = [value for name, value in looks.seen if name == "StepEnd"]
    assert len(steps) == len(DATA)
    assert all(np.abs(two - one).max() > 0 for one, two in pairwise(steps))


def test_what_a_handler_writes_into_the_model_counts() -> None:
    model = network()

    def write(learner: Any, phase: Any) -> None:
        model.get_layer("head").kernel.assign(np.full((8, 3), 2.0, "f4"))

    callback = lc.FunctionCallback(write, lc.EpochBegin)
    learner_of(model, keras.optimizers.SGD(0.0), callbacks=[callback]).fit(1)
    np.testing.assert_array_equal(kernel(model), np.full((8, 3), 2.0))


def test_an_optimizer_that_has_stepped_goes_on_and_is_given_back(tmp_path: Path) -> None:
    whole = fitted(network(), keras.optimizers.Adam(0.05), epochs=1)
    whole.save(tmp_path / "model.keras")
    mine = keras.models.load_model(tmp_path / "model.keras")
    whole.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    learner_of(mine, mine.optimizer).fit(1)
    assert_same(mine, whole)
    assert int(mine.optimizer.iterations) == int(whole.optimizer.iterations) == 8
    for epoch_model in (whole, mine):
        epoch_model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert_same(mine, whole)


# -- data, metrics, and how steps run


class Dataset(keras.utils.PyDataset):  # type: ignore[misc]
    """Counts what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Any:
        self.calls.append(str(index))
        return DATA[index]

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")


def test_a_dataset_is_told_of_its_epochs() -> None:
    dataset = Dataset()
    learner = learner_of(network(), lc.SGD(0.1), dataset)
    learner.fit(2)
    assert dataset.calls == ["begin", "0", "1", "2", "3", "end"] * 2
    dataset.calls.clear()
    learner.predict(dataset)
    assert dataset.calls[0] == "begin" and dataset.calls[-1] == "end"


def counted() -> list[Any]:
    return [
        keras.metrics.SparseCategoricalAccuracy(),
        keras.metrics.SparseTopKCategoricalAccuracy(k=2),
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
    ]


@pytest.mark.parametrize("compile", [True, False])
def test_metric_objects_count_what_they_count_in_keras(compile: bool) -> None:
    objects, theirs = counted(), network()
    callbacks = [lc.Recorder(), lc.Metrics(*objects)]
    learner = learner_of(network(), keras.optimizers.SGD(0.1), callbacks=callbacks, compile=compile)
    learner.fit(2)
    theirs.compile(keras.optimizers.SGD(0.1), loss(), metrics=counted())
    history = theirs.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    for one in objects:
        found = learner.history[type(one).__name__]
        assert found == pytest.approx(history[one.name], abs=1e-6)
        assert float(one.result()) == pytest.approx(found[-1], abs=1e-6)  # the user's own object has its numbers
    assert ("y_pred" in learner.runs.runner_of(learner.phases[0]).plan.kept) == (not learner.backend.compiles)


def test_a_metric_with_a_value_for_each_class_is_kept_by_class() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    metric = keras.metrics.F1Score(average=None)
    labels = [(x, np.eye(3, dtype="f4")[y]) for x, y in DATA]
    learner = lc.Learner(
        model,
        keras.losses.CategoricalCrossentropy(),
        lc.SGD(0.1),
        data=(labels, None),
        callbacks=[lc.Recorder(), lc.Metrics(metric)],
        default_callbacks=False,
    )
    learner.fit(1)
    found: Any = learner.history["F1Score"][0]
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(metric.result()), atol=1e-6)


def test_a_metric_that_is_fed_apart_has_the_same_value() -> None:
    apart = lc.Metric(keras.metrics.SparseCategoricalAccuracy(), "apart", host=True)
    callbacks = [lc.Recorder(), lc.Metrics(keras.metrics.SparseCategoricalAccuracy(), apart)]
    learner = learner_of(network(), lc.SGD(0.1), callbacks=callbacks)
    learner.fit(2)
    assert learner.history["apart"] == pytest.approx(learner.history["SparseCategoricalAccuracy"], abs=1e-6)


def test_a_model_that_runs_eagerly_does() -> None:
    model = network()
    model.compile(run_eagerly=True)
    learner = learner_of(model, lc.SGD(0.1))
    assert "plan: eager" in learner.explain()
    assert learner.fit(1).status == "completed"


def test_a_mask_is_told_of_once() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(3)]
    tokens, labels = DRAW.integers(5, size=(8, 6)), DRAW.integers(3, size=(8, 6))
    mine = keras.Sequential([keras.Input((6,), dtype="int32"), *layers])
    theirs = keras.models.clone_model(mine)
    theirs.set_weights(mine.get_weights())
    with pytest.warns(UserWarning, match="masks its output") as told:
        learner_of(mine, keras.optimizers.SGD(0.5), [(tokens, labels)]).fit(3)
    assert len([one for one in told if "masks its output" in str(one.message)]) == 1
    theirs.compile(keras.optimizers.SGD(0.5), loss())
    theirs.fit(tokens, labels, batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert_same(mine, theirs)  # a loss of Keras sees the mask


class Weighted(lc.AbstractTrainingPhase):
    """Batches with sample weights, as the fit of Keras takes them."""

    data_key = "training"

    def unpack(self, batch: Any) -> Any:
        xs, ys, weights = batch
        return {"xs": xs, "ys": ys, "weights": weights}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            state.loss = learner.loss_fn(learner.model(state.xs), state.ys, state.weights)
            return state.loss

        learner.minimize(objective)


def test_sample_weights_go_to_a_loss_of_keras() -> None:
    weights = DRAW.uniform(size=32).astype("f4")
    batches = [(X[i : i + 8], Y[i : i + 8], weights[i : i + 8]) for i in range(0, 32, 8)]
    mine, theirs = network(), network()
    learner_of(mine, keras.optimizers.SGD(0.1), batches, phases=[Weighted()]).fit(1)
    theirs.compile(keras.optimizers.SGD(0.1), loss())
    theirs.fit(X, Y, sample_weight=weights, batch_size=8, shuffle=False, verbose=0)
    assert_same(mine, theirs)
