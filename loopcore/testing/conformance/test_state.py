"""Which values of a step outlive it, and what an absent one says."""

from __future__ import annotations

from typing import Any

import pytest

import loopcore as lc
from loopcore.testing.conformance import oracle
from loopcore.testing.conformance.problems import At, batches, make_learner, mlp_weights, run
from loopcore.testing.conformance.subject import Subject

(X, Y), (X2, Y2) = batches(2)
W = mlp_weights()


def forgetful(backend: Subject, **options: Any) -> lc.Learner:
    return make_learner(backend.mlp(W), **{"reads": (), **options})


def kept(state: Any) -> set[str]:
    return set(vars(state))


def test_only_the_loss_and_the_outcome_outlive_a_step(backend: Subject) -> None:
    learner = forgetful(backend)
    state = learner.run_step(lc.TrainingPhase(), (X, Y))
    assert kept(state) == {"loss"}
    assert (state.outcome, learner.step) == ("completed", state)
    backend.close(learner.to_host(state.loss), oracle.mse(oracle.mlp(W, X), Y))


def test_a_value_that_was_dropped_says_which_line_to_add(backend: Subject) -> None:
    state = forgetful(backend).run_step(lc.TrainingPhase(), (X, Y))
    with pytest.raises(AttributeError, match=r'reads = \("step\.y_pred",\)'):
        _ = state.y_pred


def test_a_value_that_never_was_says_which_there_are(backend: Subject) -> None:
    state = forgetful(backend).run_step(lc.TrainingPhase(), (X, Y))
    with pytest.raises(AttributeError, match=r"no value 'y_perd'.*it has loss"):
        _ = state.y_perd


def test_who_may_ask_for_a_value(backend: Subject) -> None:
    class Asking(lc.TrainingPhase):
        reads = ("step.y_pred",)

    note = At(lc.StepEnd, lambda learner, _: learner.step.y_pred, lc.TrainingPhase, reads=("step.y_pred",))
    states = {
        "the learner": forgetful(backend, reads=("step.y_pred",)).run_step(lc.TrainingPhase(), (X, Y)),
        "the phase": forgetful(backend).run_step(Asking(), (X, Y)),
        "the caller": forgetful(backend).run_step(lc.TrainingPhase(), (X, Y), reads=("step.y_pred",)),
        "a callback": forgetful(backend, callbacks=[note]).run_step(lc.TrainingPhase(), (X, Y)),
    }
    learner = forgetful(backend)
    for asker, state in states.items():
        assert kept(state) == {"loss", "y_pred"}, asker
        backend.close(learner.to_host(state.y_pred), oracle.mlp(W, X))
        assert backend.native.is_plain(state.y_pred)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("step", {"xs", "ys", "y_pred", "loss", "grads"}),
        ("step.grads.out.bias", {"loss", "grads"}),
        ("step.outcome", {"loss"}),
        ("shared.history", {"loss"}),
    ],
)
def test_the_learner_and_the_caller_ask_in_the_same_words(backend: Subject, path: str, names: set[str]) -> None:
    phase = lc.TrainingPhase()
    state = forgetful(backend, reads=(path,)).run_step(phase, (X, Y))
    learner = forgetful(backend)
    states = [learner.run_step(phase, (X, Y), reads=reads) for reads in ((), (path,), (), (path,))]
    assert kept(state) == kept(states[1]) == kept(states[3]) == names
    assert kept(states[0]) == kept(states[2]) == {"loss"}


def test_kept_values_are_not_changed_by_later_steps(backend: Subject) -> None:
    learner = make_learner(backend.mlp(W))
    first = learner.run_step(lc.TrainingPhase(), (X, Y))
    learner.run_step(lc.TrainingPhase(), (X2, Y2))
    backend.close(learner.to_host([first.xs, first.ys, first.y_pred])[2], oracle.mlp(W, X))
    backend.close(learner.to_host(first.xs), X)


def test_a_value_may_have_any_name(backend: Subject) -> None:
    def body(learner: Any, handle: Any, state: Any) -> None:
        state.values = state.items * 2.0
        state.keys, state.get, state.update = state.values, state.values, state.values
        state.nested = {"a": [state.values, (state.values,)], "none": None}

    learner = make_learner(backend.mlp(W))
    state = run(learner, body, items=X)
    backend.close(learner.to_host(state.update), 2 * X)
    backend.close(learner.to_host(state.nested)["a"][1][0], 2 * X)


@pytest.mark.parametrize("name", ["outcome", "apply", "updated"])
def test_a_batch_may_not_use_the_names_of_the_loop(backend: Subject, name: str) -> None:
    with pytest.raises(lc.errors.DataError, match=name):
        make_learner(backend.mlp(W)).run_step(lc.TrainingPhase(), {"xs": X, "ys": Y, name: X})


def test_an_undeclared_access_is_an_error_that_names_the_path(backend: Subject) -> None:
    peek = At(lc.StepEnd, lambda learner, _: learner.step.y_pred, lc.TrainingPhase)
    learner = make_learner(backend.mlp(W), callbacks=[peek])
    with pytest.raises(lc.AccessError, match=r"step\.y_pred"):
        learner.run_step(lc.TrainingPhase(), (X, Y))
