"""Averages of the weights: against closed forms, and what validation sees of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, norm_weights, train
from loopcore.testing.conformance.subject import Subject

W, N = mlp_weights(), norm_weights()
PAIRS = batches(6)
DECAY = 0.8
# for each way the share of every trajectory point w_0 .. w_n in the average after n updates
SHARES: dict[str, tuple[dict[str, Any], Callable[[int], list[float]]]] = {
    "ema": ({}, lambda n: [DECAY**n] + [(1 - DECAY) * DECAY ** (n - i) for i in range(1, n + 1)]),
    "debias": (
        {"debias": True},
        lambda n: [0.0] + [(1 - DECAY) * DECAY ** (n - i) / (1 - DECAY**n) for i in range(1, n + 1)],
    ),
    "warmup": ({"warmup": True}, lambda n: _shares([min(DECAY, (1 + k) / (10 + k)) for k in range(1, n + 1)])),
    "start": ({"start": 2}, lambda n: [0.0, 0.0, *_shares([DECAY] * (n - 2))]),
    "swa": ({"decay": None}, lambda n: [0.0] + [1 / n] * n),
    "swa_later": ({"decay": None, "start": 2}, lambda n: [0.0] * 3 + [1 / (n - 2)] * (n - 2)),
}


def _shares(decays: list[float]) -> list[float]:
    """Shares of w_0 .. w_n where the k-th update leaves ``decays[k]`` of the average."""
    shares = [1.0]
    for decay in decays:
        shares = [*(share * decay for share in shares), 1 - decay]
    return shares


def trajectory(pairs: Any = PAIRS) -> list[dict[str, Any]]:
    """The weights before and after each update."""
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(0.3), weights)
    points = [dict(weights)]
    for pair in pairs:
        optimizer.update(oracle.mse_gradient(weights, *pair))
        points.append(dict(weights))
    return points


def averaging(backend: Subject, *callbacks: lc.Callback, **options: Any) -> lc.Learner:
    return make_learner(backend.mlp(W), optimizer=lc.SGD(0.3), callbacks=callbacks, **options)


@pytest.mark.parametrize("way", SHARES)
def test_the_average_is_the_closed_form(backend: Subject, way: str) -> None:
    options, shares = SHARES[way]
    learner = averaging(backend, lc.AveragedWeights(**{"decay": DECAY, **options}))
    points = trajectory()
    for count, pair in enumerate(PAIRS, start=1):
        train(learner, [pair])
        if count > 2:
            expected = {name: sum(s * p[name] for s, p in zip(shares(count), points, strict=False)) for name in W}
            backend.close(backend.leaves(learner, learner.shared.averaged_params), expected)
    np.testing.assert_allclose(sum(shares(len(PAIRS))), 1)
    backend.close(backend.weights(learner), points[-1])


def test_only_updates_move_it(backend: Subject) -> None:
    class SkipOdd(lc.Callback):
        writes = ("step.apply",)

        @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
        def skip(self, learner: Any, phase: Any) -> None:
            learner.step.apply = learner.attempt % 2 == 0

    learner = averaging(backend, lc.AveragedWeights(None), SkipOdd())
    train(learner, PAIRS)
    points = trajectory(PAIRS[::2])[1:]
    mean = {name: np.mean([point[name] for point in points], axis=0) for name in W}
    backend.close(backend.leaves(learner, learner.shared.averaged_params), mean)
    backend.close(learner.to_host(learner.shared.averaged_updates), 3.0)


@pytest.mark.parametrize("end", ["completed", "cancelled", "failed", "skipped", "failed at once"])
def test_validation_sees_the_average_and_gives_back_the_weights(backend: Subject, end: str) -> None:
    def interrupt(learner: Any, phase: Any) -> None:
        raise {"c": lc.CancelEpochException, "s": lc.CancelEpochException, "f": RuntimeError}[end[0]]("enough")

    event = lc.EpochBegin if end in ("skipped", "failed at once") else lc.StepEnd
    interruptions = [At(event, interrupt, lc.AbstractValidationPhase)] if end != "completed" else []
    callbacks = [lc.AveragedWeights(None), *interruptions, lc.Metrics()]
    learner = averaging(backend, *callbacks, data=(PAIRS, PAIRS[:1]))
    if end.startswith("failed"):
        with pytest.raises(RuntimeError, match="enough"):
            learner.fit(1)
    else:
        learner.fit(1)
    points = trajectory()
    backend.close(backend.weights(learner), points[-1])
    mean = {name: np.mean([point[name] for point in points[1:]], axis=0) for name in W}
    if end == "completed":
        backend.close(learner.history["val_loss"], [oracle.mse(oracle.mlp(mean, PAIRS[0][0]), PAIRS[0][1])])
    train(learner, PAIRS[:1])  # and goes on with them
    backend.close(backend.weights(learner), trajectory([*PAIRS, PAIRS[0]])[-1])


def test_statistics_of_a_normalisation_are_averaged_too(backend: Subject) -> None:
    model = backend.batch_norm(N)
    means: list[Any] = []
    learner = make_learner(model, callbacks=[lc.AveragedWeights(0.5)], data=(None, PAIRS[:1]))
    average = N["norm.mean"]
    for pair in PAIRS[:3]:
        train(learner, [pair])
        means.append(backend.weights(learner)["norm.mean"])
        average = 0.5 * (average + means[-1])
    averaged = learner.shared.averaged_buffers
    backend.close(backend.leaves(learner, averaged, learner.buffers)["norm.mean"], average)
    exports: list[Any] = []
    look = At(lc.StepEnd, lambda learner, phase: exports.append(learner.export_weights()), reads=("params", "buffers"))
    learner.callbacks.add(look)
    learner.run_epoch(lc.ValidationPhase())
    backend.close(backend.native.neutral(exports[0])["norm.mean"], average)
    backend.close(backend.weights(learner)["norm.mean"], means[-1])


def test_the_average_becomes_the_model(backend: Subject) -> None:
    learner = averaging(backend, lc.AveragedWeights(None))
    train(learner, PAIRS)
    learner.params.value = learner.shared.averaged_params
    mean = {name: np.mean([point[name] for point in trajectory()[1:]], axis=0) for name in W}
    backend.close(backend.weights(learner), mean)


def test_it_begins_with_the_weights_of_the_first_step(backend: Subject) -> None:
    learner = averaging(backend, lc.AveragedWeights(DECAY), data=(None, PAIRS[:1]))
    for name, value in learner.export_weights().items():
        learner.import_weights({**learner.export_weights(), name: value + 1.0})
    start = backend.weights(learner)
    exports: list[Any] = []
    look = At(lc.StepEnd, lambda learner, phase: exports.append(learner.export_weights()), reads=("params", "buffers"))
    learner.callbacks.add(look)
    learner.run_epoch(lc.ValidationPhase())  # before any step, the average is the weights
    backend.close(backend.native.neutral(exports[0]), start)
    train(learner, PAIRS[:1])
    after = backend.weights(learner)
    expected = {name: DECAY * start[name] + (1 - DECAY) * after[name] for name in start}
    backend.close(backend.leaves(learner, learner.shared.averaged_params), expected)
