"""Batches of all kinds become arrays of the framework, in the dtype of the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import (
    INPUTS,
    OUTPUTS,
    Array,
    batches,
    dense_weights,
    make_learner,
    mlp_weights,
    ragged,
    run,
)
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)
(X, Y), *_ = PAIRS
W = mlp_weights()


def trained(pairs: list[tuple[Array, Array]]) -> dict[str, Array]:
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), weights)
    for x, y in pairs:
        optimizer.update(oracle.mse_gradient(weights, x, y))
    return weights


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_pairs_and_dicts(backend: Subject, kind: str) -> None:
    make: Any = {"tuple": tuple, "list": list, "dict": lambda pair: dict(zip(("xs", "ys"), pair, strict=True))}[kind]
    learner = make_learner(backend.mlp(W), data=([make(pair) for pair in PAIRS], None))
    learner.fit(1)
    backend.close(backend.weights(learner), trained(PAIRS))


def test_nested_batches(backend: Subject) -> None:
    class Nested(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            def objective() -> Any:
                views = [learner.model(view) for view in state.views["all"]]
                return sum(lc.losses.mse(view, state.target[0]) for view in views) / len(views)

            learner.minimize(objective)

    (a, y), (b, _), *_ = PAIRS
    learner = make_learner(backend.mlp(W), data=([{"views": {"all": [a, b]}, "target": (y,)}], None), phases=[Nested()])
    learner.fit(1)
    first, second = oracle.mse_gradient(W, a, y), oracle.mse_gradient(W, b, y)
    backend.close(backend.weights(learner), {name: W[name] - 0.05 * (first[name] + second[name]) for name in W})


@pytest.mark.parametrize("loader_dtype", ["float64", "float32", "float16"])
def test_floats_get_the_dtype_of_the_parameters(backend: Subject, loader_dtype: str) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.y_pred = learner.model(state.xs)

    for dtype in backend.native.dtypes:
        learner = make_learner(backend.within(dtype).mlp(W))
        state = run(learner, body, xs=X.astype(loader_dtype), deep={"x": [X.astype(loader_dtype)]})
        arrays = learner.to_host([state.xs, state.deep["x"][0], state.y_pred])
        assert [array.dtype.name for array in arrays] == [dtype] * 3
        backend.within(dtype).close(
            arrays[2], oracle.mlp(W, X.astype(loader_dtype)), rtol=1e-3 if loader_dtype == "float16" else 0
        )


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool"])
def test_integers_and_bools_keep_their_kind(backend: Subject, dtype: str) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        labels = learner.xp.astype(state.labels, learner.xp.int32)
        state.picked = learner.xp.where(labels == 1, state.xs, learner.xp.zeros_like(state.xs))

    labels = np.array([[0, 1, 1]] * len(X), dtype)
    learner = make_learner(backend.mlp(W))
    state = run(learner, body, xs=X, labels=labels)
    result = learner.to_host(state.labels)
    assert result.dtype.kind == labels.dtype.kind or (result.dtype.kind, labels.dtype.kind) == ("i", "u")
    np.testing.assert_array_equal(result, labels)
    backend.close(learner.to_host(state.picked), np.where(labels == 1, X, 0))


def test_what_is_no_array_is_left_alone(backend: Subject) -> None:
    phase = lc.PredictionPhase()
    learner = make_learner(backend.mlp(W))
    extra = {"ids": ["a", "b"], "count": 3, "share": 0.5, "flag": True, "nothing": None}
    state = learner.run_step(phase, {"xs": X, **extra})
    assert {name: getattr(state, name) for name in extra} == extra


class Reusing:
    """A loader that fills one buffer again and again."""

    def __init__(self, pairs: list[tuple[Array, Array]]) -> None:
        self._pairs = pairs
        self._x, self._y = np.empty_like(pairs[0][0]), np.empty_like(pairs[0][1])

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for x, y in self._pairs:
            self._x[...], self._y[...] = x, y
            yield self._x, self._y
            self._x[...] = self._y[...] = np.nan


def test_a_loader_may_reuse_its_buffer(backend: Subject) -> None:
    for dtype in backend.native.dtypes:
        pairs = [(x.astype(dtype), y.astype(dtype)) for x, y in 5 * PAIRS]  # no conversion that would copy
        subject = backend.within(dtype)
        learner = make_learner(subject.mlp(W), data=(Reusing(pairs), None))
        learner.fit(1)
        subject.close(subject.weights(learner), trained(5 * PAIRS), rtol=1e-4 if dtype == "float32" else 0)


def test_values_kept_from_a_reused_buffer_stay(backend: Subject) -> None:
    buffer = X.astype(backend.dtype)
    learner = make_learner(backend.mlp(W))
    state = learner.run_step(lc.TrainingPhase(), (buffer, Y))
    buffer[...] = 0.0
    backend.close(learner.to_host(state.xs), X)


def test_the_loaders_array_is_not_written_to(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.xs = state.xs * 2.0

    xs = X.astype(backend.dtype)
    xs.flags.writeable = False
    run(make_learner(backend.mlp(W)), body, xs=xs)
    backend.close(xs, X)


def test_arrays_in_odd_memory_orders(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.y_pred = learner.model(state.xs)

    learner = make_learner(backend.mlp(W))
    wide = np.zeros((len(X), 2 * INPUTS))
    wide[:, ::2] = X
    for odd in (np.asfortranarray(X), wide[:, ::2], X[::-1][::-1], X.astype(">f8")):
        backend.close(learner.to_host(run(learner, body, xs=odd).y_pred), oracle.mlp(W, X))


def test_ragged_last_batches(backend: Subject) -> None:
    pairs = ragged(5, 5, 2)
    learner = make_learner(backend.mlp(W), data=(pairs, None))
    learner.fit(2)
    backend.close(backend.weights(learner), trained(2 * pairs))


def test_arrays_of_the_framework_are_taken_as_they_are(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    native = learner.backend.convert(X)
    state = learner.run_step(lc.TrainingPhase(), (native, Y))
    backend.close(learner.to_host(state.y_pred), oracle.mlp(W, X))


@pytest.mark.parametrize("batch", [(X, Y, Y), X, (X,)], ids=["three", "array", "one"])
def test_batches_without_the_parts_of_the_phase(backend: Subject, batch: Any) -> None:
    with pytest.raises(lc.errors.UnpackError, match=r"\(xs, ys\)"):
        make_learner(backend.mlp(W)).run_step(lc.TrainingPhase(), batch)


# -- prediction ----------------------------------------------------------------------------------------------------


def test_predictions_of_batches_are_joined(backend: Subject) -> None:
    pairs = ragged(5, 5, 2)
    learner = make_learner(backend.mlp(W))
    expected = np.concatenate([oracle.mlp(W, x) for x, _ in pairs])
    for data in (pairs, [x for x, _ in pairs], [(x,) for x, _ in pairs], [{"xs": x} for x, _ in pairs]):
        predictions = learner.predict(data)
        assert isinstance(predictions, np.ndarray)
        assert predictions.shape == (12, OUTPUTS)
        backend.close(predictions, expected)


def test_an_array_is_one_batch(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    backend.close(learner.predict(X), oracle.mlp(W, X))
    backend.close(learner.predict(learner.backend.convert(X)), oracle.mlp(W, X))


def test_prediction_changes_nothing(backend: Subject) -> None:
    learner = make_learner(
        backend.mlp(W), optimizer=lc.Adam(0.01), data=(PAIRS, None), callbacks=[lc.Recorder(), lc.Metrics()]
    )
    learner.fit(1)
    weights, history = backend.weights(learner), dict(learner.history)
    learner.predict(X)
    backend.close(backend.weights(learner), weights)
    assert {name: learner.history[name] for name in history} == history


def test_predictions_of_a_mapping_are_what_the_model_returns(backend: Subject) -> None:
    """The model is called by the names that it takes; labels in the batch are none of them."""
    weights = dense_weights(layer="out")
    learner = make_learner(backend.structured(weights))
    data = [{"x": part, "scale": 2.5, "labels": np.arange(len(part))} for part in (X[:5], X[5:])]
    plain = X @ weights["out.weight"] + weights["out.bias"]
    predictions = learner.predict(data)
    assert isinstance(predictions["plain"], np.ndarray)
    backend.close(predictions, {"plain": plain, "scaled": 2.5 * plain})
