"""Values stand at the round and step at which they were measured, on every backend alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import DataError
from loopcore.testing.conformance.problems import make_learner, mlp_weights, ragged
from loopcore.testing.conformance.subject import Subject

(X, Y), (X2, Y2) = ragged(5, 3)
W = mlp_weights()


class EverySecond(lc.Callback):
    """Validates in even rounds only."""

    @lc.on(lc.EpochBegin, lc.AbstractValidationPhase)
    def skip(self, learner: Any, phase: Any) -> None:
        if (learner.epoch.round or 0) % 2:
            raise lc.CancelEpochException("not in this round")


def test_rounds_without_a_value_are_gaps_and_a_resumed_run_goes_on(backend: Subject, tmp_path: Path) -> None:
    def learner_and_logger() -> tuple[lc.Learner, Any]:
        logger = lc.loggers.MemoryLogger()
        callbacks = [lc.Recorder(), lc.Metrics(), EverySecond(), lc.LogMetrics(logger)]
        return make_learner(backend.mlp(W), callbacks=callbacks, data=([(X, Y)] * 2, [(X2, Y2)])), logger

    (reference, _), (first, _), (second, logger) = learner_and_logger(), learner_and_logger(), learner_and_logger()
    reference.fit(4)
    first.fit(2)
    first.predict(X)
    assert first.run_epoch(lc.ValidationPhase(), [(X, Y)]).round is None
    second.load(first.save(tmp_path / "x"))
    second.fit(2)
    for key in ("loss", "val_loss"):
        gaps = [value is None for value in reference.history[key]]
        assert [value is None for value in second.history[key]] == gaps
        assert gaps == ([False] * 4 if key == "loss" else [True, False, True, False])
    backend.close(second.history["loss"], reference.history["loss"])
    backend.close(second.history["val_loss"][1::2], reference.history["val_loss"][1::2])
    assert [step for step, _ in logger.entries["loss"]] == [3, 4]
    assert [step for step, _ in logger.entries["val_loss"]] == [4]
    assert second.history.step_numbers("loss") == list(range(1, 9))


def test_a_stopped_epoch_says_what_it_completed_and_steps_keep_their_numbers(backend: Subject) -> None:
    class Cancels(lc.Callback):
        @lc.on(lc.StepBegin, lc.TrainingPhase)
        def cancel(self, learner: Any, phase: Any) -> None:
            if learner.attempt == 1:
                raise lc.CancelStepException("not this one")
            if learner.attempt == 4:
                raise lc.CancelFittingException("enough")

    callbacks = [lc.Recorder(), lc.Metrics(), Cancels()]
    learner = make_learner(backend.mlp(W), callbacks=callbacks, data=([(X, Y), (X2, Y2)] * 3, None))
    assert learner.fit(2).status == "stopped"
    steps, weights = learner.history.steps("loss"), [len(X), len(X), len(X2)]
    assert learner.history.step_numbers("loss") == [1, 2, 3]
    backend.close(learner.history["loss"], [np.average(steps, weights=weights)])


def test_a_metric_with_an_array_is_kept_and_logged_as_it_is(backend: Subject) -> None:
    class ByColumn:
        """An object whose value is an array of the framework."""

        def reset(self) -> None:
            self.total: Any = 0.0

        def update(self, y_pred: Any, ys: Any) -> None:
            self.total = self.total + y_pred * 0 + 1.0

        def compute(self) -> Any:
            return self.total

    logger = lc.loggers.MemoryLogger()
    metrics = lc.Metrics(ByColumn())
    learner = make_learner(backend.mlp(W), callbacks=[metrics, lc.LogMetrics(logger)], data=([(X, Y)] * 2, None))
    learner.fit(1)
    values: Any = learner.history["ByColumn"]
    backend.close(values, [np.full(np.shape(values[0]), 2.0)])
    assert np.shape(values[0])[0] == len(X)
    backend.close(logger.entries["ByColumn"][0][1], values[0])


def test_an_array_without_dimensions_is_a_number_to_a_logger(backend: Subject) -> None:
    logger = lc.loggers.MemoryLogger()
    learner = make_learner(backend.mlp(W), reads=("step.loss",))
    loss = learner.run_step(lc.ValidationPhase(), (X, Y)).loss
    logger.log("loss", loss, 1)
    logger.log("loss", lc.loggers.Value(loss), 2)
    assert [type(value) for _, value in logger.entries["loss"]] == [float, float]
    backend.close([value for _, value in logger.entries["loss"]], [learner.to_host(loss)] * 2)


def test_a_batch_of_several_lengths_asks_for_its_weight(backend: Subject) -> None:
    class Parts(lc.AbstractValidationPhase):
        data_key = "validation"

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.loss = learner.xp.mean((learner.model(state.inputs) - state.targets) ** 2)
            if hasattr(state, "samples"):
                state.weight = learner.xp.sum(state.samples)

    def parts(x: Any, y: Any, **more: Any) -> dict[str, Any]:
        return {**more, "inputs": x, "targets": y}

    def measured(data: Any) -> Any:
        learner = make_learner(backend.mlp(W), callbacks=[lc.Metrics()], data=(None, data), phases=[Parts()])
        learner.fit(1)
        return learner.history["val_loss"]

    same = measured([parts(X, Y), parts(X2, Y2)])
    weighted_batches = [parts(x, y, samples=np.full(1, float(len(x)), np.float32)) for x, y in ((X, Y), (X2, Y2))]
    backend.close(measured(weighted_batches), same)
    index = np.zeros(1, np.float32)
    alike = [parts(X, Y, index=index), parts(X, Y + 1.0, index=index)]
    backend.close(measured(alike), np.mean([measured([batch]) for batch in alike], axis=0))
    with pytest.raises(DataError, match=r"a batch before it: .*state\.weight"):
        measured([parts(X, Y, index=index), parts(X2, Y2, index=index)])


def test_counts_go_on_beyond_what_a_float_counts(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W), callbacks=[lc.AveragedWeights(None)], data=([(X, Y)] * 3, None))
    learner.fit(1)
    learner.shared.averaged_updates = learner.xp.full_like(learner.shared.averaged_updates, 2.0**24)
    learner.fit(1)
    assert int(learner.to_host(learner.shared.averaged_updates)) == 2**24 + 3
