"""The three cancels at each of the nine events: which events follow, what is counted, which updates happen."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, run, train
from loopcore.testing.conformance.subject import Subject

STEP = (lc.StepBegin, lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd, lc.StepEnd)
CANCELS = {
    "step": lc.CancelStepException,
    "epoch": lc.CancelEpochException,
    "fit": lc.CancelFittingException,
}
PAIRS = batches(3)


class Row(NamedTuple):
    """How the scopes end. The cancel comes in the second of three training steps; one validation step follows."""

    step: str = "completed"
    epoch: str = "completed"
    fit: str = "completed"


SKIPPED, CUT = "skipped", "cancelled"
ROWS: dict[tuple[type[lc.Event], str], Row] = {
    (lc.StepBegin, "step"): Row(step=SKIPPED),
    (lc.LossBegin, "step"): Row(step=CUT),
    (lc.BackwardBegin, "step"): Row(step=CUT),
    (lc.BackwardEnd, "step"): Row(step=CUT),
    (lc.StepEnd, "step"): Row(),  # the step is over already
    (lc.StepBegin, "epoch"): Row(step=SKIPPED, epoch=CUT),
    (lc.LossBegin, "epoch"): Row(step=CUT, epoch=CUT),
    (lc.BackwardBegin, "epoch"): Row(step=CUT, epoch=CUT),
    (lc.BackwardEnd, "epoch"): Row(step=CUT, epoch=CUT),
    (lc.StepEnd, "epoch"): Row(epoch=CUT),
    (lc.EpochBegin, "epoch"): Row(epoch=SKIPPED),
    (lc.EpochEnd, "epoch"): Row(),
    (lc.StepBegin, "fit"): Row(step=SKIPPED, epoch=CUT, fit=CUT),
    (lc.LossBegin, "fit"): Row(step=CUT, epoch=CUT, fit=CUT),
    (lc.BackwardBegin, "fit"): Row(step=CUT, epoch=CUT, fit=CUT),
    (lc.BackwardEnd, "fit"): Row(step=CUT, epoch=CUT, fit=CUT),
    (lc.StepEnd, "fit"): Row(epoch=CUT, fit=CUT),
    (lc.EpochBegin, "fit"): Row(epoch=SKIPPED, fit=CUT),
    (lc.EpochEnd, "fit"): Row(fit=CUT),
    (lc.FitBegin, "fit"): Row(fit=CUT),
    (lc.FitEnd, "fit"): Row(),
}
WRONG_SCOPE = [
    (event, kind)
    for kind, events in {
        "step": (lc.EpochBegin, lc.EpochEnd, lc.FitBegin, lc.FitEnd),
        "epoch": (lc.FitBegin, lc.FitEnd),
    }.items()
    for event in events
]


def raising(event: type[lc.Event], kind: str, **options: Any) -> At:
    def cancel(learner: Any, phase: Any) -> None:
        raise CANCELS[kind](f"at {event.__name__}")

    phase = None if event in (lc.FitBegin, lc.FitEnd) else lc.TrainingPhase
    return At(event, cancel, phase, only=1 if event in STEP else 0, **options)


def _names(case: Any) -> str:
    return case if isinstance(case, str) else case.__name__


@pytest.mark.parametrize(("event", "kind"), ROWS, ids=_names)
def test_what_follows_a_cancel(backend: Subject, event: type[lc.Event], kind: str) -> None:
    row = ROWS[event, kind]
    trace, weights = lc.testing.Trace(), mlp_weights()
    learner = make_learner(
        backend.mlp(weights),
        data=(PAIRS, batches(1)),
        callbacks=[raising(event, kind), trace, lc.Recorder()],
    )
    result = learner.fit(1)
    assert trace.events == _expected_trace(event, row)

    stopped = kind == "fit" and row.fit == CUT
    assert (result.status, result.reason) == (("stopped", f"at {event.__name__}") if stopped else ("completed", ""))
    assert result.stopped_by == ("At" if stopped else None)
    assert result.epochs == (1 if (row.epoch, row.fit) == ("completed", "completed") else 0)

    steps = _completed_steps(event, row)
    counts = learner.shared.history["training"]
    assert counts.steps == len(steps)
    assert counts.epochs == (row.epoch == "completed" and event is not lc.FitBegin)
    backend.close(backend.weights(learner), _trained(weights, steps))

    learner.callbacks.remove(*[callback for callback in learner.callbacks if isinstance(callback, At)])
    assert learner.fit(1).status == "completed"


def _completed_steps(event: type[lc.Event], row: Row) -> list[int]:
    if event is lc.FitBegin or row.epoch == SKIPPED:
        return []
    if row.epoch == CUT:
        return [0, 1] if row.step == "completed" else [0]
    return [0, 1, 2] if row.step == "completed" else [0, 2]


def _trained(weights: dict[str, Any], steps: list[int]) -> dict[str, Any]:
    expected = dict(weights)
    optimizer = oracle.Optimizer(oracle.sgd(0.1), expected)
    for step in steps:
        optimizer.update(oracle.mse_gradient(expected, *PAIRS[step]))
    return expected


def _expected_trace(event: type[lc.Event], row: Row) -> list[Any]:
    def step(outcome: str, upto: type[lc.Event] = lc.StepEnd) -> list[Any]:
        fired = STEP[: STEP.index(upto) + 1] if upto is not lc.StepEnd else STEP[:-1]
        return [(name.__name__, "training", None) for name in fired] + [("StepEnd", "training", outcome)]

    training: list[Any] = []
    if row.epoch != SKIPPED:
        training = step("completed") + (step(row.step, event) if event in STEP else step("completed"))
        training += step("completed") if row.epoch == "completed" else []
    rounds = [("EpochBegin", "training", None), *training, ("EpochEnd", "training", row.epoch)]
    if row.fit == "completed" or event is lc.FitEnd:
        rounds += [
            ("EpochBegin", "validation", None),
            *[(name, "validation", None) for name in ("StepBegin", "LossBegin")],
            ("StepEnd", "validation", "completed"),
            ("EpochEnd", "validation", "completed"),
        ]
    return [("FitBegin", None, None), *(rounds if event is not lc.FitBegin else []), ("FitEnd", None, row.fit)]


@pytest.mark.parametrize(("event", "kind"), WRONG_SCOPE, ids=_names)
def test_a_cancel_of_a_scope_that_is_not_open_is_an_error(backend: Subject, event: type[lc.Event], kind: str) -> None:
    trace = lc.testing.Trace()
    callback = raising(event, kind)
    learner = make_learner(backend.mlp(mlp_weights()), data=(PAIRS, None), callbacks=[callback, trace])
    with pytest.raises(lc.errors.CancelScopeError, match=f"raised by At.*no {kind} is open"):
        learner.fit(1)
    names = [name for name, _, _ in trace.events]
    for scope in ("Fit", "Epoch", "Step"):
        assert names.count(f"{scope}Begin") == names.count(f"{scope}End")
    learner.callbacks.remove(callback)
    assert learner.fit(1).status == "completed"


@pytest.mark.parametrize(("kind", "epoch", "steps"), [("step", "completed", 2), ("epoch", CUT, 1), ("fit", CUT, 1)])
def test_cancels_from_a_body(backend: Subject, kind: str, epoch: str, steps: int) -> None:
    class Stubborn(lc.TrainingPhase):
        compile = False

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.heard = learner.shared.heard = getattr(learner.shared, "heard", 0) + 1
            if state.heard == 2:
                raise CANCELS[kind]("from the body")
            super().step(learner, handle, state)

    learner = make_learner(backend.mlp(mlp_weights()), data=(PAIRS, None), phases=[Stubborn()])
    result = learner.fit(1)
    assert result.status == ("stopped" if kind == "fit" else "completed")
    assert result.stopped_by is None
    assert learner.epoch is not None
    assert (learner.epoch.outcome, learner.epoch.completed) == (epoch, steps)


def test_a_cancelled_step_keeps_what_was_done(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))
        state.after = state.xs + 1.0
        handle(lc.LossBegin())
        learner.minimize(lambda: lc.losses.mse(learner.model(state.xs), state.ys))

    weights, (x, y) = mlp_weights(), PAIRS[0]
    cancel = At(lc.LossBegin, lambda *_: _raise(lc.CancelStepException()))
    learner = make_learner(backend.mlp(weights), callbacks=[cancel])
    state = run(learner, body, xs=x, ys=y)
    assert state.outcome == "cancelled"
    backend.close(learner.to_host(state.after), x + 1)
    backend.close(backend.weights(learner), _trained(weights, [0]))


def test_a_step_cancelled_at_its_begin_has_no_loss_and_does_not_count(backend: Subject) -> None:
    learner = make_learner(
        backend.mlp(mlp_weights()),
        data=(PAIRS, None),
        callbacks=[lc.Metrics(), At(lc.StepBegin, lambda *_: _raise(lc.CancelStepException()))],
    )
    learner.fit(1)
    assert learner.step.outcome == "skipped"
    assert learner.history["loss"] == [None]


def test_a_cancel_in_validation_leaves_training_alone(backend: Subject) -> None:
    cancel = At(lc.LossBegin, lambda *_: _raise(lc.CancelEpochException()), lc.ValidationPhase, only=0)
    learner = make_learner(
        backend.mlp(mlp_weights()), data=(PAIRS, PAIRS), callbacks=[cancel, lc.Recorder(), lc.Metrics()]
    )
    learner.fit(2)
    history = learner.shared.history
    assert (history["training"].epochs, history["validation"].epochs) == (2, 1)
    assert len(learner.history["loss"]) == 2 and [value is None for value in learner.history["val_loss"]] == [
        True,
        False,
    ]


def test_other_errors_close_every_scope_and_leave_the_learner_usable(backend: Subject) -> None:
    trace, weights = lc.testing.Trace(), mlp_weights()
    fault = At(lc.BackwardBegin, lambda *_: _raise(ValueError("broken")), only=1)
    learner = make_learner(backend.mlp(weights), data=(PAIRS, None), callbacks=[fault, trace])
    with pytest.raises(ValueError, match="broken") as excinfo:
        learner.fit(1)
    assert any("At at BackwardBegin" in note for note in excinfo.value.__notes__)
    assert [outcome for name, _, outcome in trace.events if name in ("EpochEnd", "FitEnd")] == ["failed", "failed"]
    backend.close(backend.weights(learner), _trained(weights, [0]))
    train(learner, PAIRS[1:])
    backend.close(backend.weights(learner), _trained(weights, [0, 1, 2]))


def _raise(error: Exception) -> None:
    raise error
