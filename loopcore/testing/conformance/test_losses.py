"""The neutral losses: values, reductions and gradients against formulas in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject

DRAW = np.random.default_rng(3)
LOGITS = DRAW.normal(0, 2, (6, 5))
LABELS = np.array([0, 4, 2, 2, 1, 3])
PROBABILITIES = DRAW.dirichlet(np.ones(5), 6)
TARGETS = DRAW.normal(0, 2, (6, 5))
BITS = (DRAW.random((6, 5)) < 0.5).astype(np.float64)


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def cross_entropy(x: Array, ys: Array) -> Array:
    if ys.shape == x.shape:
        return np.asarray(-(ys * log_softmax(x)).sum(axis=-1))
    return np.asarray(-np.take_along_axis(log_softmax(x), ys[..., None].astype(int), axis=-1)[..., 0])


def binary_cross_entropy(x: Array, ys: Array) -> Array:
    return np.asarray(np.logaddexp(0, x) - x * ys)


def huber(x: Array, ys: Array) -> Array:
    distance = np.abs(x - ys)
    return np.asarray(np.where(distance < 1, 0.5 * distance**2, distance - 0.5))


CASES: dict[str, tuple[Callable[[Array, Array], Array], Array]] = {
    "cross_entropy": (cross_entropy, LABELS),
    "binary_cross_entropy": (binary_cross_entropy, BITS),
    "mse": (lambda x, ys: (x - ys) ** 2, TARGETS),
    "mae": (lambda x, ys: np.abs(x - ys), TARGETS),
    "huber": (huber, TARGETS),
}
REDUCTIONS: dict[str, Callable[[Array], Any]] = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}


def test_every_loss_has_a_case(backend: Subject) -> None:
    assert set(lc.losses.__all__) == set(CASES)
    assert [name for name in CASES if not hasattr(make_learner(backend.mlp(mlp_weights())).losses, name)] == []


def evaluate(backend: Subject, name: str, y_pred: Array, ys: Array, reduction: str = "mean") -> tuple[Any, Array]:
    """The loss, and the gradient of its sum with respect to the predictions."""

    def body(learner: Any, handle: Any, state: Any) -> None:
        def loss(x: Any) -> Any:
            return getattr(learner.losses, name)(x, state.ys, reduction=reduction)

        state.value = loss(state.x)
        state.slope = learner.grad(lambda x: learner.xp.sum(loss(x)))(state.x)

    learner = make_learner(backend.mlp(mlp_weights()))
    state = run(learner, body, x=y_pred, ys=ys)
    value, slope = learner.to_host([state.value, state.slope])
    assert value.dtype == slope.dtype == backend.dtype
    return value, slope


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(backend: Subject, name: str, reduction: str) -> None:
    formula, ys = CASES[name]
    value, slope = evaluate(backend, name, LOGITS, ys, reduction)
    reduce = REDUCTIONS[reduction]
    backend.close(value, reduce(formula(LOGITS, ys)))
    backend.close(slope, oracle.finite_difference(lambda x: reduce(formula(x, ys)), LOGITS), rtol=1e-7)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_labels_of_any_width(backend: Subject, dtype: str) -> None:
    value, slope = evaluate(backend, "cross_entropy", LOGITS, LABELS.astype(dtype))
    backend.close(value, cross_entropy(LOGITS, LABELS).mean())
    backend.close(slope, (np.exp(log_softmax(LOGITS)) - np.eye(5)[LABELS]) / 6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_probabilities(backend: Subject, reduction: str) -> None:
    value, slope = evaluate(backend, "cross_entropy", LOGITS, PROBABILITIES, reduction)
    reduce = REDUCTIONS[reduction]
    backend.close(value, reduce(cross_entropy(LOGITS, PROBABILITIES)))
    expected = oracle.finite_difference(lambda x: reduce(cross_entropy(x, PROBABILITIES)), LOGITS)
    backend.close(slope, expected, rtol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_the_class_axis_is_the_last(backend: Subject, soft: bool, reduction: str) -> None:
    x = DRAW.normal(0, 2, (2, 3, 4, 5))
    ys = DRAW.dirichlet(np.ones(5), (2, 3, 4)) if soft else DRAW.integers(0, 5, (2, 3, 4))
    value, slope = evaluate(backend, "cross_entropy", x, ys, reduction)
    reduce = REDUCTIONS[reduction]
    backend.close(value, reduce(cross_entropy(x, ys)))
    backend.close(slope, oracle.finite_difference(lambda x: reduce(cross_entropy(x, ys)), x), rtol=1e-7)


def test_as_many_classes_as_rows_are_no_probabilities(backend: Subject) -> None:
    x = LOGITS[:5]
    value, _ = evaluate(backend, "cross_entropy", x, LABELS[:5])
    backend.close(value, cross_entropy(x, LABELS[:5]).mean())


@pytest.mark.parametrize("kind", ["float64", "int64", "bool", "uint8"])
def test_binary_targets_of_any_kind(backend: Subject, kind: str) -> None:
    value, slope = evaluate(backend, "binary_cross_entropy", LOGITS, BITS.astype(kind))
    backend.close(value, binary_cross_entropy(LOGITS, BITS).mean())
    backend.close(slope, (1 / (1 + np.exp(-LOGITS)) - BITS) / LOGITS.size)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy"])
def test_large_logits_stay_finite(backend: Subject, name: str) -> None:
    x = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 50.0]])
    ys = np.array([0, 0]) if name == "cross_entropy" else np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    value, slope = evaluate(backend, name, x, ys, "none")
    backend.close(value, CASES[name][0](x, ys))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_shapes_that_would_broadcast_are_refused(backend: Subject, name: str) -> None:
    with pytest.raises(lc.errors.LossError, match="shape"):
        make_learner(backend.mlp(mlp_weights()), loss_fn=getattr(lc.losses, name)).run_step(
            lc.ValidationPhase(), (np.ones((4, 3)), np.ones(4))
        )


def test_labels_of_another_shape_are_refused(backend: Subject) -> None:
    with pytest.raises(ValueError, match="shape"):
        evaluate(backend, "cross_entropy", LOGITS, LABELS[:3])


@pytest.mark.parametrize("name", CASES)
def test_every_loss_trains_a_model(backend: Subject, name: str) -> None:
    draw = np.random.default_rng(4)
    x = draw.normal(size=(8, 3))
    ys = draw.integers(0, 2, 8) if name == "cross_entropy" else draw.integers(0, 2, (8, 2)).astype(float)
    learner = make_learner(backend.mlp(mlp_weights()), loss_fn=getattr(lc.losses, name), data=([(x, ys)] * 20, None))
    losses = [float(learner.to_host(learner.run_step(lc.TrainingPhase(), (x, ys)).loss)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
