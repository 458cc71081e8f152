"""Mixed inputs, smoothed labels, and steps up the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import same_random
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, batches, make_learner, mlp_weights, norm_weights, train
from loopcore.testing.conformance.subject import Subject

W = mlp_weights()
X, Y = batches(1, size=200)[0]
LABELS = (X.sum(axis=-1) > 0).astype(np.int64)


def mixed(backend: Subject, ys: Array, *callbacks: lc.Callback, steps: int = 1) -> list[tuple[Array, Array]]:
    loss = lc.losses.mse if ys.dtype.kind == "f" and ys.min() < 0 else lc.losses.cross_entropy
    learner = make_learner(backend.mlp(W), loss_fn=loss, callbacks=callbacks)
    states = [learner.run_step(lc.TrainingPhase(), (X, ys)) for _ in range(steps)]
    return [(learner.to_host(state.xs), learner.to_host(state.ys)) for state in states]


@pytest.mark.parametrize("kind", ["labels", "rows", "targets"])
def test_inputs_and_labels_are_mixed_alike(backend: Subject, kind: str) -> None:
    rows = {"labels": np.eye(2)[LABELS], "rows": np.eye(2)[LABELS], "targets": Y}[kind]
    labels = LABELS if kind == "labels" else rows
    shares = []
    for xs, ys in mixed(backend, labels, lc.MixUp(1.0, classes=2 if kind == "labels" else None), steps=3):
        mixture, originals = np.concatenate([xs, ys], axis=1), np.concatenate([X, rows], axis=1)
        # each row lies on the line from its own sample to another one, all at one share of the way
        away, lines = mixture - originals, originals[None] - originals[:, None]
        scale = np.einsum("id,ijd->ij", away, lines) / np.maximum(np.einsum("ijd,ijd->ij", lines, lines), 1e-9)
        error = np.abs(away[:, None] - scale[..., None] * lines).max(axis=-1)
        row_shares = scale[np.arange(len(X)), error.argmin(axis=1)]
        mixed_shares = row_shares[np.abs(away).max(axis=1) > 1e-6]
        assert error.min(axis=1).max() < 1e-4 and np.ptp(mixed_shares) < 1e-3 and len(mixed_shares) > 150
        shares.append(float(np.median(mixed_shares)))
    assert len({round(share, 3) for share in shares}) == 3 and all(0 < share < 1 for share in shares)


def test_the_mixture_is_the_one_of_the_draws(backend: Subject, witness: Subject) -> None:
    with same_random():
        mixtures = mixed(backend, LABELS, lc.MixUp(0.4, classes=2), steps=3)
        with lc.using(witness.name):
            expected = mixed(witness, LABELS, lc.MixUp(0.4, classes=2), steps=3)
    for mixture, other in zip(mixtures, expected, strict=True):
        backend.close(mixture[0], other[0])
        backend.close(mixture[1], other[1])


def test_smoothed_labels(backend: Subject) -> None:
    rows = np.eye(2)[LABELS] * 0.9 + 0.05
    backend.close(mixed(backend, LABELS, lc.LabelSmoothing(0.1, classes=2))[0][1], rows, rtol=1e-6)
    backend.close(mixed(backend, np.eye(2)[LABELS], lc.LabelSmoothing(0.1))[0][1], rows, rtol=1e-6)


def test_smoothing_follows_mixing(backend: Subject) -> None:
    for order in (1, -1):
        callbacks = [lc.MixUp(1.0, classes=2), lc.LabelSmoothing(0.1)][::order]  # only the first sees integers
        ((_, smooth),) = mixed(backend, LABELS, *callbacks)
        ((_, plain),) = mixed(backend, LABELS, lc.MixUp(1.0, classes=2))
        backend.close(smooth, plain * 0.9 + 0.05, rtol=1e-6)


def test_validation_is_left_alone(backend: Subject) -> None:
    callbacks = [lc.MixUp(1.0, classes=2), lc.LabelSmoothing(0.1)]
    learner = make_learner(backend.mlp(W), loss_fn=lc.losses.cross_entropy, callbacks=callbacks)
    state = learner.run_step(lc.ValidationPhase(), (X, LABELS))
    np.testing.assert_array_equal(learner.to_host(state.ys), LABELS)
    backend.close(learner.to_host(state.xs), X)


@pytest.mark.parametrize("callback", [lc.MixUp, lc.LabelSmoothing])
def test_integers_need_the_number_of_classes(backend: Subject, callback: Any) -> None:
    with pytest.raises(lc.errors.CallbackError, match=r"classes=10"):
        mixed(backend, LABELS, callback())


def test_integers_are_not_mixed(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.MixUp(1.0)])
    with pytest.raises(lc.errors.CallbackError, match=r"step\.xs is of dtype"):
        learner.run_step(lc.TrainingPhase(), (X.astype(np.int32), Y))


def test_sharpness_aware_steps_by_hand(backend: Subject) -> None:
    rho, weights, pairs, loss = 0.3, dict(W), batches(4), 0.0
    learner = make_learner(backend.mlp(W), phases=[lc.SAMTrainingPhase(rho)], data=(pairs, None))
    learner.fit(1)
    loss, optimizer = 0.0, oracle.Optimizer(oracle.sgd(0.1), weights)
    for x, y in pairs:
        loss = oracle.mse(oracle.mlp(weights, x), y)
        uphill = oracle.mse_gradient(weights, x, y)
        length = np.sqrt(sum(np.sum(grad**2) for grad in uphill.values()))
        point = {name: weights[name] + rho * uphill[name] / length for name in weights}
        optimizer.update(oracle.mse_gradient(point, x, y))
    backend.close(backend.weights(learner), weights)
    backend.close(learner.to_host(learner.step.loss), loss)


def test_sharpness_aware_steps_leave_statistics_alone_the_second_time(backend: Subject) -> None:
    pair = batches(1)[0]
    plain, sharp = (make_learner(backend.batch_norm(norm_weights())) for _ in range(2))
    train(plain, [pair])
    sharp.run_step(lc.SAMTrainingPhase(0.5), pair)
    for name in ("norm.mean", "norm.variance"):
        backend.close(backend.weights(sharp)[name], backend.weights(plain)[name])
    assert not np.allclose(backend.weights(sharp)["out.weight"], backend.weights(plain)["out.weight"])


def test_changes_in_an_objective_are_made_in_both(backend: Subject) -> None:
    class Halve(lc.Callback):
        writes = ("step.y_pred",)

        @lc.on(lc.LossBegin, lc.AbstractTrainingPhase, traced=True)
        def halve(self, learner: Any, phase: Any) -> None:
            learner.step.y_pred = 0.5 * learner.step.y_pred

    class Half(lc.SAMTrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            super().step(learner, handle, state)

    pair = batches(1)[0]
    learner = make_learner(backend.mlp(W), callbacks=[Halve()])
    learner.run_step(Half(0.3), pair)

    def gradient(weights: Any) -> Any:
        return oracle.mlp_gradient(weights, pair[0], 0.5 * (oracle.mlp(weights, pair[0]) - 2 * pair[1]) / pair[1].size)

    uphill = gradient(W)
    length = np.sqrt(sum(np.sum(grad**2) for grad in uphill.values()))
    slopes = gradient({name: W[name] + 0.3 * uphill[name] / length for name in W})
    backend.close(backend.weights(learner), {name: W[name] - 0.1 * slopes[name] for name in W})
