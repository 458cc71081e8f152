"""Models that belong to no framework: ``(apply_fn, params[, state])`` with NumPy arrays, the same on every backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance.problems import Array, batches, host, make_learner, mlp_weights, run, train
from loopcore.testing.conformance.subject import Subject
from loopcore.testing.neutral import mlp

pytestmark = pytest.mark.usefixtures("backend")


class Layer(NamedTuple):
    weight: Any
    bias: Any


def tree(dtype: str) -> Any:
    draw = np.random.default_rng(0).normal
    layers = [Layer(draw(size=(3, 4)).astype(dtype), np.zeros(4, dtype)), Layer(draw(size=(4, 2)), np.zeros(2))]
    return {"net": [Layer(*(part.astype(dtype) for part in layer)) for layer in layers], "scale": np.ones((), dtype)}


def forward(params: Any, x: Any) -> Any:
    first, second = params["net"]
    return params["scale"] * (lc.xp.tanh(x @ first.weight + first.bias) @ second.weight + second.bias)


NAMES = ["net.0.bias", "net.0.weight", "net.1.bias", "net.1.weight", "scale"]


def counting(params: Any, state: Any, x: Any, train: bool) -> tuple[Any, Any]:
    """A mean that runs, and a number of calls."""
    mean = lc.xp.mean(x, axis=0)
    new = {"mean": 0.5 * state["mean"] + 0.5 * mean, "calls": state["calls"] + 1} if train else state
    return (x - state["mean"]) @ params["w"], new


def counting_model(dtype: str) -> Any:
    return counting, {"w": np.ones((3, 2), dtype)}, {"mean": np.zeros(3, dtype), "calls": 0}


# -- names and what is handed back


def test_names_are_the_way_through_the_tree(backend: Subject) -> None:
    learner = make_learner((forward, tree(backend.dtype)))
    assert learner.backend.name == backend.name
    assert sorted(learner.export_weights()) == NAMES


def test_weights_go_to_another_backend_and_back_without_a_map(backend: Subject) -> None:
    learner = make_learner((forward, tree(backend.dtype)))
    train(learner, batches(3))
    weights = learner.export_weights()
    with lc.using("numpy"):
        other = make_learner((forward, tree(backend.dtype)))
        other.import_weights(weights)
    round_trip = make_learner((forward, tree(backend.dtype)))
    round_trip.import_weights(other.export_weights())
    backend.close(round_trip.export_weights(), weights)


def test_one_array_and_named_models(backend: Subject) -> None:
    def scaled(param: Any, x: Any) -> Any:
        return param * x

    single = make_learner((scaled, np.ones(3, backend.dtype)))
    assert sorted(single.export_weights()) == ["param"]
    models = {"first": (scaled, np.ones(3, backend.dtype)), "net": (forward, tree(backend.dtype))}
    several = make_learner(models, optimizer={"first": lc.SGD(0.1), "net.net": lc.Adam(0.1)})
    assert sorted(several.export_weights()) == ["first", *(f"net.{name}" for name in NAMES)]
    assert several.frozen == ("net.scale",)


def test_the_pair_is_handed_back_with_the_present_values(backend: Subject) -> None:
    params = tree(backend.dtype)
    learner = make_learner((forward, params))
    before = learner.export_weights()
    train(learner, batches(2))
    apply_fn, present = learner.model.native
    assert apply_fn is forward and type(present["net"][0]) is Layer
    backend.close(host(learner, present["net"][1].weight), learner.export_weights()["net.1.weight"])
    assert np.abs(learner.export_weights()["net.1.weight"] - before["net.1.weight"]).max() > 1e-3
    np.testing.assert_array_equal(params["net"][1].weight, before["net.1.weight"])  # what was given is a copy


def test_the_value_has_the_structure_of_the_tree(backend: Subject) -> None:
    learner = make_learner((forward, tree(backend.dtype)))
    value = learner.params.value
    assert list(value) == ["net", "scale"] and type(value["net"][0]) is Layer
    state = run(learner, lambda learner, handle, state: learner.minimize(lambda: loss_of(learner, state)), xs=X, ys=Y)
    assert type(state.grads["net"][1]) is Layer
    learner.params.value = value
    backend.close(host(learner, learner.params.value["scale"]), np.ones(()))


X, Y = batches(1)[0]


def loss_of(learner: Any, state: Any) -> Any:
    state.loss = lc.losses.mse(learner.model(state.xs), state.ys)
    return state.loss


# -- values


def test_it_trains_as_the_same_network_of_the_framework(backend: Subject) -> None:
    weights = mlp_weights()
    neutral, native = make_learner(mlp(weights, backend.dtype)), make_learner(backend.mlp(weights))
    for learner in (neutral, native):
        train(learner, batches(5))
    backend.close(neutral.export_weights(), backend.weights(native), rtol=1e-4 if backend.dtype == "float32" else 0)


def test_other_parameters_and_gradients_at_other_values(backend: Subject) -> None:
    learner = make_learner((forward, tree(backend.dtype)))
    doubled = lc.tree.scale(learner.params.value, 2.0)

    def body(learner: Any, handle: Any, state: Any) -> None:
        state.other = learner.model.apply(state.doubled, state.xs)
        state.loss = lc.losses.mse(learner.model(state.xs), state.ys)
        state.at = learner.gradient(lambda: lc.losses.mse(learner.model(state.xs), state.ys), at=state.doubled)

    state = run(learner, body, xs=X, ys=Y, doubled=doubled)
    learner.params.value = doubled
    check = run(
        learner,
        lambda learner, handle, state: setattr(state, "at", learner.gradient(lambda: loss_of(learner, state))),
        xs=X,
        ys=Y,
    )
    backend.close(host(learner, state.other), host(learner, learner.model(learner.backend.convert(X))))
    backend.close(host(learner, state.at["scale"]), host(learner, check.at["scale"]))


# -- state


def test_the_state_is_threaded(backend: Subject) -> None:
    learner = make_learner(counting_model(backend.dtype))
    pairs = batches(3)
    train(learner, pairs)
    mean = np.zeros(3)
    for x, _ in pairs:
        mean = 0.5 * mean + 0.5 * x.mean(axis=0)
    backend.close(host(learner, learner.buffers.value["mean"]), mean)
    calls: Any = host(learner, learner.buffers.value["calls"])
    assert calls.dtype.kind == "i" and int(calls) == 3
    learner.run_step(lc.ValidationPhase(), pairs[0])
    run(learner, lambda learner, handle, state: learner.model(state.xs, update_state=False), xs=X)
    assert host(learner, learner.buffers.value["calls"]) == 3


def test_a_gradient_flows_through_the_state_within_its_objective(backend: Subject) -> None:
    def remembers(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return x @ params["w"] + state["h"], {"h": lc.xp.mean(x @ params["w"], axis=0)}

    start = np.random.default_rng(0).normal(size=(3, 2))
    learner = make_learner((remembers, {"w": start.astype(backend.dtype)}, {"h": np.zeros(2, backend.dtype)}))

    def body(learner: Any, handle: Any, state: Any) -> None:
        def objective() -> Any:
            learner.model(state.xs)
            state.loss = lc.xp.sum(learner.model(state.xs) ** 2)
            return state.loss

        state.grads = learner.gradient(objective)

    state = run(learner, body, xs=X)
    a, m = X @ start, (X @ start).mean(axis=0)
    expected = 2 * X.T @ (a + m) + 2 * np.outer(X.mean(axis=0), (a + m).sum(axis=0))
    backend.close(host(learner, state.grads["w"]), expected)
    backend.close(host(learner, learner.buffers.value["h"]), m)
    assert backend.native.is_plain(learner.backend.get(["h"])["h"])


def test_what_a_state_must_not_do(backend: Subject) -> None:
    params = {"w": np.ones((3, 2), backend.dtype)}

    def other_keys(params: Any, state: Any, x: Any) -> Any:
        return x @ params["w"], {"other": state["n"]}

    def other_shape(params: Any, state: Any, x: Any) -> Any:
        return x @ params["w"], {"n": lc.xp.stack([state["n"], state["n"]])}

    def no_state(params: Any, state: Any, x: Any) -> Any:
        return x @ params["w"]

    for fn, words in ((other_keys, "structure of its state"), (other_shape, "shape of its state 'n'")):
        with pytest.raises(lc.errors.BackendError, match=words):
            train(make_learner((fn, params, {"n": np.zeros(2, backend.dtype)})), batches(1))
    with pytest.raises(lc.errors.BackendError, match=r"must return \(y, new_state\)"):
        train(make_learner((no_state, params, {"n": np.zeros(2, backend.dtype)})), batches(1))


# -- mistakes


def test_integers_are_no_parameters(backend: Subject) -> None:
    with pytest.raises(lc.errors.UnknownModelError, match=r"'n'.*int64.*keep it in the state"):
        make_learner((forward, {"n": np.arange(3)}))


# -- random numbers


def noisy(params: Any, x: Any) -> Any:
    return (x + lc.random.normal(x.shape)) @ params["w"]


def outputs(backend: Subject, *callbacks: lc.Callback, seed: int = 0) -> Array:
    model = noisy, {"w": np.ones((3, 2), backend.dtype)}
    learner = make_learner(model, optimizer=lc.SGD(0.0), callbacks=list(callbacks), seed=seed)
    phase = lc.TrainingPhase()
    return np.stack([host(learner, learner.run_step(phase, (X, Y)).y_pred) for _ in range(3)])


class Draws(lc.Callback):
    """Draws by a function at module level, as an augmentation does."""

    writes = ("step.noise",)

    def __init__(self) -> None:
        self.numbers: list[Any] = []

    @lc.on(lc.StepBegin, lc.TrainingPhase)
    def draw(self, learner: Any, phase: Any) -> None:
        self.numbers.append(learner.to_host(lc.random.normal((2,))))


def test_a_function_draws_anew_at_each_step_and_again_the_same(backend: Subject) -> None:
    first = outputs(backend)
    assert np.abs(first[0] - first[1]).min() > 1e-6 and np.abs(first[1] - first[2]).min() > 1e-6
    backend.close(outputs(backend), first)
    assert np.abs(outputs(backend, seed=1) - first).min() > 1e-9


def test_who_else_draws_changes_nothing(backend: Subject) -> None:
    callback = Draws()
    backend.close(outputs(backend, callback), outputs(backend))
    assert len(callback.numbers) == 3 and callback.numbers[0].tolist() != callback.numbers[1].tolist()
    lone_callback = Draws()
    make_learner(backend.mlp(mlp_weights()), callbacks=[lone_callback]).run_step(lc.TrainingPhase(), (X, Y))
    np.testing.assert_array_equal(lone_callback.numbers[0], callback.numbers[0])


def test_rng_is_handed_to_a_function_that_takes_it(backend: Subject) -> None:
    calls: list[Any] = []

    def takes(params: Any, x: Any, train: bool, rng: Any) -> Any:
        calls.append((train, rng))
        return x @ params["w"]

    learner = make_learner((takes, {"w": np.ones((3, 2), backend.dtype)}), compile=False)
    train(learner, batches(1))
    learner.run_step(lc.ValidationPhase(), batches(1)[0])
    assert [mode for mode, _ in calls] == [True, False] and all(rng is not None for _, rng in calls)


# -- without a learner at hand


def distance(y_pred: Any, ys: Any) -> Any:
    """A metric at module level."""
    return lc.xp.mean(lc.xp.abs(y_pred - ys))


class Shrinks(lc.Callback):
    """A traced handler that does not ask the learner for its functions."""

    writes = ("step.grads",)

    @lc.on(lc.BackwardEnd, lc.TrainingPhase, traced=True)
    def shrink(self, learner: Any, phase: Any) -> None:
        learner.step.grads = lc.tree.map(lc.xp.tanh, learner.step.grads)


def test_metrics_and_callbacks_at_module_level(backend: Subject) -> None:
    data = batches(4)
    options: dict[str, Any] = {"data": (data, None), "default_callbacks": False}
    learner = make_learner(
        (forward, tree(backend.dtype)), callbacks=[Shrinks(), lc.Recorder(), lc.Metrics(distance)], **options
    )
    other = make_learner(
        (forward, tree(backend.dtype)), callbacks=[lc.Recorder(), lc.Metrics(lc.losses.mae)], **options
    )
    learner.fit(1)
    other.fit(1)
    assert float(learner.history["distance"][0] or 0) > 0
    first, second = (float(run.history["loss"][0] or 0) for run in (learner, other))
    assert abs(first - second) > 1e-6  # the gradients were other ones


def test_functions_go_by_the_array_and_creation_by_the_learner(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        xp = lc.xp
        state.kinds = xp.stack([xp.sum(xp.zeros((2,))), xp.sum(xp.asarray(np.ones(2))), xp.sum(state.xs * 0)])
        state.same = xp.astype(state.xs, xp.int32)
        state.norm = xp.linalg.vector_norm(state.xs)
        state.constant = xp.maximum(state.xs, np.zeros(3))

    learner = make_learner((forward, tree(backend.dtype)))
    state = run(learner, body, xs=X)
    assert host(learner, state.kinds).dtype == np.dtype(backend.dtype)
    assert host(learner, state.same).dtype == np.int32
    backend.close(host(learner, state.norm), np.sqrt((X**2).sum()))
    backend.close(host(learner, state.constant), np.maximum(X, 0))
    assert lc.xp.zeros((2,)).dtype == lc.xp.float32  # outside a learner, on the chosen backend
    assert learner.backend.is_array(lc.xp.zeros((2,)))


def test_unknown_functions_name_the_known_ones(backend: Subject) -> None:
    with pytest.raises(AttributeError, match=r"xp has no 'fft'.*tanh"):
        lc.xp.fft  # noqa: B018


# -- checkpoints


def test_a_run_goes_on_from_a_checkpoint(backend: Subject, tmp_path: Any) -> None:
    def learner() -> lc.Learner:
        return make_learner(counting_model(backend.dtype), optimizer=lc.Adam(0.01))

    reference, first, second = learner(), learner(), learner()
    pairs = batches(4)
    train(reference, pairs)
    train(first, pairs[:2])
    second.load(first.save(tmp_path / "run.safetensors"))
    train(second, pairs[2:])
    for path, value in reference.export_weights().items():
        np.testing.assert_array_equal(second.export_weights()[path], value)
