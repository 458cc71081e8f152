"""What is not finite goes nowhere: not into a weight, the state of an optimizer, a statistic or a checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import Array, batches, make_learner, mlp_weights, norm_weights
from loopcore.testing.conformance.subject import Subject

PAIRS = batches(4)
W = mlp_weights()


def spoiled(at: int, value: float = np.nan) -> list[tuple[Array, Array]]:
    """The pairs, one of them with a number that is not finite among its targets."""
    return [
        (x, np.where(np.arange(y.size).reshape(y.shape) == 3, value, y) if n == at else y)
        for n, (x, y) in enumerate(PAIRS)
    ]


def trained(count: int, rate: float = 0.1) -> dict[str, Any]:
    """The weights after so many steps of gradient descent."""
    weights = dict(W)
    optimizer = oracle.Optimizer(oracle.sgd(rate), weights)
    for pair in PAIRS[:count]:
        optimizer.update(oracle.mse_gradient(weights, *pair))
    return weights


def is_finite(learner: lc.Learner) -> bool:
    """Whether all weights, and all arrays that the optimizers keep, are finite."""
    arrays = [*learner.export_weights().values(), *learner.backend.export_optimizers().values()]
    return all(np.isfinite(np.asarray(array, np.float64)).all() for array in arrays if array.dtype.kind in "fV")


class Rooted(lc.AbstractTrainingPhase):
    """The loss is finite, the gradient is not where a prediction equals its target: the root of 0 has none."""

    data_key = "training"

    def unpack(self, batch: Any) -> dict[str, Any]:
        """A batch, and how much of its error counts."""
        xs, ys, part = batch
        return {"xs": xs, "ys": ys, "part": part}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        """The objective adds a root of the error; where ``part`` is 0 it is the root of 0, whose gradient is NaN."""

        def objective() -> Any:
            error = learner.model(state.xs) - state.ys
            state.loss = learner.xp.mean(error * error)
            return state.loss + learner.xp.sqrt(learner.xp.sum((error * state.part) ** 2))

        self.apply(learner, handle, state, learner.gradient(objective))

    def apply(self, learner: Any, handle: Any, state: Any, grads: Any) -> None:
        """Fires BackwardEnd and updates."""
        state.grads = grads
        handle(lc.BackwardEnd())
        learner.update(state.grads)


class Plain(Rooted):
    """Fires no event before it updates, so that no handler could withhold the update."""

    def apply(self, learner: Any, handle: Any, state: Any, grads: Any) -> None:
        """Only updates."""
        learner.update(grads)


class When(Rooted):
    """Updates under a condition of its own, an array, besides that of the guard."""

    def apply(self, learner: Any, handle: Any, state: Any, grads: Any) -> None:
        """Update if the loss is small."""
        learner.update(grads, when=state.loss < 1e9)


def rooted(at: int) -> list[Any]:
    return [(*pair, np.array(0.0 if n == at else 1.0)) for n, pair in enumerate(PAIRS)]


@pytest.mark.parametrize("kind", [Rooted, Plain, When])
def test_a_gradient_that_is_not_finite_goes_nowhere(backend: Subject, kind: type[Rooted]) -> None:
    weights = []
    for data in (rooted(-1)[:2], rooted(2)):
        guard = [lc.StopOnNaNLoss()]
        learner = make_learner(
            backend.mlp(W), data=(data, None), phases=[kind()], callbacks=guard, optimizer=lc.Adam(0.01)
        )
        result = learner.fit(1)
        weights.append(backend.weights(learner))
    assert (result.status, result.stopped_by) == ("stopped", "StopOnNaNLoss")
    assert "gradient" in result.reason and "step 3" in result.reason
    backend.close(weights[0], weights[1])
    assert is_finite(learner)


def test_without_the_guard_it_would(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), data=(rooted(2), None), phases=[Rooted()])
    learner.fit(1)
    assert not is_finite(learner)


class Silent(lc.TrainingPhase):
    """Fires no event."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        """Gradient and update."""

        def objective() -> Any:
            state.loss = learner.loss_fn(learner.model(state.xs), state.ys)
            return state.loss

        learner.update(learner.gradient(objective))


class Lossless(lc.TrainingPhase):
    """Has a loss that it does not write into the state."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        """Gradient and update."""
        learner.update(learner.gradient(lambda: learner.loss_fn(learner.model(state.xs), state.ys)))


@pytest.mark.parametrize("kind", [Silent, Lossless])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_body_that_fires_nothing_is_guarded(backend: Subject, kind: type[lc.Phase], value: float) -> None:
    guard = lc.StopOnNaNLoss()
    learner = make_learner(backend.mlp(W), data=(spoiled(1, value), None), phases=[kind()], callbacks=[guard])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = learner.fit(1)
    assert result.stopped_by == "StopOnNaNLoss" and "step 2" in result.reason
    backend.close(backend.weights(learner), trained(1))


class Measured(lc.TrainingPhase):
    """Trains nothing."""

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        """Compute the loss, take no gradient."""
        state.loss = learner.loss_fn(learner.model(state.xs), state.ys)


def test_a_body_without_an_update_is_stopped(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), data=(spoiled(1), None), phases=[Measured()], callbacks=[lc.StopOnNaNLoss()])
    assert "loss" in learner.fit(1).reason


class Two(lc.AbstractTrainingPhase):
    """Updates one layer, then the other."""

    data_key = "training"

    def __init__(self, bad: str) -> None:
        self.bad = bad

    def unpack(self, batch: Any) -> dict[str, Any]:
        """A pair, and the factor that is NaN in one step."""
        xs, ys, factor = batch
        return {"xs": xs, "ys": ys, "factor": factor}

    def step(self, learner: Any, handle: Any, state: Any) -> None:
        """The gradients of one loss, one of them spoiled."""
        for name in ("hidden", "out"):
            handle_of = getattr(learner.params, name)

            def objective() -> Any:
                state.loss = lc.losses.mse(learner.model(state.xs), state.ys)
                return state.loss

            grads = learner.gradient(objective, handle_of)
            if name == self.bad:
                grads = learner.tree.scale(grads, state.factor)
            learner.update(grads, handle_of)


@pytest.mark.parametrize("bad", ["hidden", "out"])
def test_with_several_optimizers_the_reason_says_what_was_updated(backend: Subject, bad: str) -> None:
    data = [(*pair, np.array(np.nan if n == 1 else 1.0)) for n, pair in enumerate(PAIRS)]
    optimizers = {"hidden": lc.SGD(0.1), "out": lc.Adam(0.01)}
    learners = []
    for phase, rows in ((Two(""), data[:1]), (Two(bad), data)):
        guard = [lc.StopOnNaNLoss()]
        learners.append(
            make_learner(backend.mlp(W), optimizer=optimizers, data=(rows, None), phases=[phase], callbacks=guard)
        )
        result = learners[-1].fit(1)
    before, after = (backend.weights(learner) for learner in learners)
    assert result.stopped_by == "StopOnNaNLoss" and "step 2" in result.reason
    assert ("updates before it in that step were made" in result.reason) is (bad == "out")
    assert is_finite(learners[1])
    for name in W:
        differs = bad == "out" and name.startswith("hidden")
        assert bool(np.abs(before[name] - after[name]).max() > 1e-9) is differs, name


@pytest.mark.parametrize("at", [2, 3])
def test_accumulation_applies_no_bad_mean(backend: Subject, at: int) -> None:
    callbacks = [lc.GradientAccumulation(2), lc.StopOnNaNLoss()]
    learner = make_learner(backend.mlp(W), data=(rooted(at), None), phases=[Rooted()], callbacks=callbacks)
    first, same = rooted(-1)[:2], [lc.GradientAccumulation(2)]
    other = make_learner(backend.mlp(W), data=(first, None), phases=[Rooted()], callbacks=same)
    other.fit(1)
    assert learner.fit(1).stopped_by == "StopOnNaNLoss"
    backend.close(backend.weights(learner), backend.weights(other))
    mean = learner.backend.tree_leaves(learner.shared.accumulated)
    assert all(np.isfinite(learner.to_host(leaf)).all() for leaf in mean)


def test_what_an_epoch_left_is_guarded(backend: Subject) -> None:
    callbacks = [lc.GradientAccumulation(4), lc.StopOnNaNLoss()]
    data = (pair for pair in rooted(1)[:3])  # without a length
    learner = make_learner(backend.mlp(W), data=(data, None), phases=[Rooted()], callbacks=callbacks)
    assert "GradientAccumulation" in learner.fit(1).reason
    backend.close(backend.weights(learner), W)


class Unscaling(lc.Callback):
    """Withholds the steps whose gradient overflows, as a loss scaling does."""

    writes = ("step.apply",)

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
    def skip(self, learner: Any, phase: Any) -> None:
        """Forbid the update where a gradient is not finite."""
        learner.step.apply = learner.tree.all_finite(learner.step.grads)

    traced_reads = ("step.grads",)


def test_a_step_that_another_callback_skips_stops_nothing(backend: Subject) -> None:
    callbacks = [lc.StopOnNaNLoss(), Unscaling()]
    learner = make_learner(backend.mlp(W), data=(rooted(1), None), phases=[Rooted()], callbacks=callbacks)
    assert learner.fit(1).status == "completed"
    assert is_finite(learner)


class Scaling(lc.Callback):
    """Makes the loss infinite for the gradient, and puts it back."""

    writes = ("step.loss",)

    @lc.on(lc.BackwardEnd, lc.AbstractTrainingPhase, traced=True)
    def put_back(self, learner: Any, phase: Any) -> None:
        """A loss that is finite again."""
        learner.step.loss = learner.xp.where(learner.xp.isfinite(learner.step.loss), learner.step.loss, 0.0)


@pytest.mark.parametrize("module", ["a_project", "zebra"])
def test_a_writer_of_the_loss_comes_before_the_guard(
    backend: Subject, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scaling, "__module__", module)
    data = [(*pair, np.array(1.0)) for pair in spoiled(1)]
    learner = make_learner(
        backend.mlp(W), data=(data, None), phases=[Rooted()], callbacks=[lc.StopOnNaNLoss(), Scaling(), Unscaling()]
    )
    order = [type(callback).__name__ for callback in learner.callbacks]
    assert order.index("Scaling") < order.index("StopOnNaNLoss")
    assert learner.fit(1).status == "completed"


def test_statistics_stay_finite_where_the_loss_does(backend: Subject) -> None:
    """A normalisation by an infinite variance gives zeros."""
    weights = norm_weights()

    class Aside(lc.TrainingPhase):
        def step(self, learner: Any, handle: Any, state: Any) -> None:
            learner.model(state.xs)  # moves the statistics, and has no part in the loss
            state.loss = learner.xp.mean(state.ys * state.ys)

    good, (x, y) = batches(2), batches(1, seed=5)[0]
    bad = (np.where(np.arange(x.size).reshape(x.shape) == 4, np.nan, x), y)
    means = []
    for data in (good, [*good, bad, *good]):
        callbacks = [lc.StopOnNaNLoss()]
        learner = make_learner(backend.batch_norm(weights), data=(data, None), phases=[Aside()], callbacks=callbacks)
        result = learner.fit(1)
        means.append(backend.weights(learner))
    assert "statistics" in result.reason and "step 3" in result.reason
    backend.close(means[0], means[1])


def test_an_optimizer_takes_no_rate_that_is_not_finite(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    with pytest.raises(ValueError, match="learning_rate"):
        learner.hyper.learning_rate = np.nan
    assert learner.hyper.learning_rate == pytest.approx(0.1)


def test_weights_that_are_not_finite_take_no_place_of_a_checkpoint(backend: Subject, tmp_path: Path) -> None:
    keeper = lc.Checkpointer(tmp_path, keep_top_k=1)
    learner = make_learner(backend.mlp(W), data=(PAIRS, None), callbacks=[lc.Recorder(), lc.Metrics(), keeper])
    learner.fit(1)
    good = keeper.last
    weights = learner.export_weights()
    learner.import_weights({name: value * np.nan for name, value in weights.items()})
    with pytest.warns(UserWarning, match="the checkpoints of before stay"):
        learner.fit(1)
    assert keeper.paths() == [good]
    with pytest.warns(UserWarning, match="NaN or infinite"):
        learner.save(tmp_path / "mine.safetensors")
    with pytest.raises(lc.errors.NotFiniteError):
        learner.save(tmp_path / "another.safetensors", only_finite=True)
    assert not (tmp_path / "another.safetensors").exists()
