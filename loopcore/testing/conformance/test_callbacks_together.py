"""Callbacks that change inputs, gradients, updates and weights: their order follows from what they declare alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing import same_random
from loopcore.testing.conformance.problems import (
    OUTPUTS,
    Array,
    dense_weights,
    forced_plan,
    make_learner,
    ragged,
    train,
)
from loopcore.testing.conformance.subject import Subject

W = dense_weights()
KNOWN_LENGTH = pytest.mark.parametrize("known_length", [True, False], ids=["length", "no_length"])
MAKERS: dict[str, Callable[[], lc.Callback]] = {
    "mixup": lambda: lc.MixUp(2.0, classes=OUTPUTS),
    "accumulation": lambda: lc.GradientAccumulation(2),
    "clipping": lambda: lc.GradientClipping(norm=0.2),
    "average": lambda: lc.AveragedWeights(0.9),
}
ORDER = ["GradientAccumulation", "GradientClipping", "AveragedWeights", "MixUp"]


class Unsized:
    """Batches whose number nobody knows in advance."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)


def labelled(*sizes: int) -> list[tuple[Array, Array]]:
    """Inputs, and labels that depend on them."""
    return [(xs, (xs.sum(axis=-1) > 0).astype(np.int64)) for xs, _ in ragged(*sizes)]


def fitted(backend: Subject, names: Any, known_length: bool = True, last: int = 3, **options: Any) -> lc.Learner:
    """Two epochs with callbacks in this order of the list; what ends them is ``last`` samples in half a window."""
    train = labelled(5, 5, last) if last else labelled(5, 5)
    callbacks = [*[MAKERS[name]() for name in names], lc.Metrics(lc.accuracy)]
    data: Any = (train if known_length else Unsized(train), labelled(6, 6))
    parts: dict[str, Any] = {"loss_fn": lc.losses.cross_entropy, "optimizer": lc.Momentum(0.1), "reads": (), **options}
    learner = make_learner(backend.linear(W), data=data, callbacks=callbacks, **parts)
    assert learner.fit(2).status == "completed"
    return learner


def trained(backend: Subject, names: Any, known_length: bool = True, last: int = 3, **options: Any) -> dict[str, Any]:
    """All that should not depend on the order of the list."""
    learner = fitted(backend, names, known_length, last, **options)
    assert learner.shared.accumulation == lc.Accumulated(*((6, 4) if last else (4, 2)))
    assert [name for callback in learner.callbacks if (name := type(callback).__name__) in ORDER] == ORDER
    average = backend.leaves(learner, learner.shared.averaged_params)
    return {"weights": backend.weights(learner), "average": average, "history": dict(learner.history.items())}


@pytest.mark.timeout(600)  # 24 times some programs to compile
def test_all_orders_of_the_list_give_the_same_bits(backend: Subject) -> None:
    orders = list(permutations(MAKERS))
    assert len(orders) == 24
    if forced_plan.get() != "fused":  # the order is the same in all plans of a backend; here they take long to compile
        orders = orders[::12]
    expected = trained(backend, MAKERS, last=0)  # whole windows: a program less for each order
    assert not np.allclose(expected["weights"]["bias"], W["bias"])
    for names in orders:
        np.testing.assert_equal(trained(backend, names, last=0), expected)
        gc.collect()  # programs take memory maps, of which a process may have so many


@KNOWN_LENGTH
def test_backends_agree_where_they_draw_the_same(backend: Subject, witness: Subject, known_length: bool) -> None:
    with same_random():
        with lc.using(witness.name):
            expected = trained(witness, MAKERS, known_length)
        result = trained(backend, reversed(MAKERS), known_length)
    for part in ("weights", "average"):
        backend.close(result[part], expected[part], rtol=1e-4)
    for name, values in expected["history"].items():
        backend.close(result["history"][name], values, rtol=1e-4)


@KNOWN_LENGTH
def test_the_plan_of_a_step_makes_no_difference(backend: Subject, known_length: bool) -> None:
    result, expected = (trained(backend, MAKERS, known_length, compile=mode) for mode in ("auto", False))
    for part in ("weights", "average"):
        backend.close(result[part], expected[part], rtol=1e-4)


@pytest.mark.parametrize("absent", MAKERS)
def test_each_of_them_takes_part(backend: Subject, absent: str) -> None:
    """Without any one of the four callbacks the losses, which the tests above compare, are other ones."""
    subset = [name for name in MAKERS if name != absent]
    histories = [fitted(backend, names, compile=False).history for names in (MAKERS, subset)]
    with_all, without = (np.array([*history.steps("loss"), *history.steps("val_loss")]) for history in histories)
    assert not np.allclose(with_all, without, rtol=1e-3)


def test_they_go_on_within_a_window(backend: Subject, tmp_path: Path) -> None:
    """A run is saved within a window of accumulation: what the callbacks keep is in the checkpoint."""

    def fresh() -> lc.Learner:
        callbacks = [*[make() for make in MAKERS.values()], lc.Recorder()]
        optimizer = lc.Momentum(0.1)
        return make_learner(
            backend.linear(W), loss_fn=lc.losses.cross_entropy, optimizer=optimizer, callbacks=callbacks, compile=False
        )

    pairs = labelled(5, 5, 5, 5)
    reference, first, second = fresh(), fresh(), fresh()
    train(reference, pairs)
    train(first, pairs[:3])
    second.load(first.save(tmp_path / "run.safetensors"))
    train(second, pairs[3:])
    np.testing.assert_equal(second.export_weights(), reference.export_weights())
    average, expected = (backend.leaves(learner, learner.shared.averaged_params) for learner in (second, reference))
    np.testing.assert_equal(average, expected)
    assert second.shared.accumulation == reference.shared.accumulation == lc.Accumulated(batches=4, updates=2)
