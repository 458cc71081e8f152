"""What a learner remembers and how it predicts."""

from __future__ import annotations

import doctest
import inspect
import io
import sys
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore.errors import DataError, UnknownMetricError
from loopcore.testing import Trace, toy_learner

XS = np.ones((4, 1))
BATCH = (XS, XS)


def test_predict_leaves_no_trace_in_the_history() -> None:
    """Labels may come with the data: no metric is computed from them."""
    metrics = lc.Metrics(lc.Metric(lc.losses.mae, "mae"), lc.Metric(lc.losses.mae, "whole", over="epoch"))
    learner = toy_learner([metrics])
    learner.fit(1)
    before = dict(learner.history)
    assert list(before) == ["loss", "mae", "whole"]
    learner.predict([{"xs": XS, "ys": XS}, {"xs": XS, "ys": XS}])
    learner.predict(XS)
    assert dict(learner.history) == before
    assert [phase for phase in learner.shared.metrics_step] == ["training"]
    counts = learner.shared.history["prediction"]
    assert (counts.epochs, counts.steps) == (2, 3)


def test_a_metric_made_for_predictions_is_kept() -> None:
    spread = lc.Metric(lambda y_pred: y_pred.max(), "top", ("y_pred",), phase=lc.PredictionPhase)
    learner = toy_learner([lc.Metrics(spread)])
    learner.predict(XS)
    assert dict(learner.history) == {"prediction_top": [0.0]}


def test_predict_prints_nothing_in_a_pipe() -> None:
    out = io.StringIO()

    class PredictsAtBothEnds(lc.Callback):
        @lc.on(lc.FitBegin)
        @lc.on(lc.FitEnd)
        def look(self, learner: Any, phase: Any) -> None:
            learner.predict(XS)

    printers = [lc.ProgressPrinter(file=out), lc.MetricsPrinter(file=out)]
    learner = toy_learner([*printers, PredictsAtBothEnds()], steps=2)
    learner.predict(XS)
    assert out.getvalue() == ""
    learner.fit(1)
    learner.predict(XS)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and lines[0].startswith("epoch 1: training 2 steps")
    assert lines[1:] == [" epoch     loss", "     1     0.82"]


def test_a_phase_without_a_loss_has_none_in_the_history() -> None:
    class Forward(lc.AbstractValidationPhase):
        data_key = "training"

        @property
        def name(self) -> str:
            return "forward"

        def unpack(self, batch: Any) -> Any:
            return {"xs": batch[0]}

        def step(self, learner: Any, handle: Any, state: Any) -> None:
            state.y_pred = learner.model(state.xs)

    learner = toy_learner(phases=[lc.TrainingPhase(), Forward()])
    learner.fit(2)
    assert list(learner.history) == ["loss"] and learner.shared.history["forward"].epochs == 2


def test_an_unknown_metric_is_named_in_plain_words() -> None:
    learner = toy_learner([lc.Metrics(lc.Metric(lc.losses.mae, "mae"))], data=([BATCH], [BATCH]))
    empty = "history has no 'loss': it is empty until an epoch has ended"
    with pytest.raises(UnknownMetricError) as caught:
        learner.history["loss"]
    assert str(caught.value) == empty
    learner.fit(1)
    with pytest.raises(UnknownMetricError) as caught:
        learner.history["val_los"]
    assert (
        str(caught.value) == "history has no 'val_los'. Did you mean 'val_loss'? It has: loss, mae, val_loss, val_mae"
    )
    with pytest.raises(UnknownMetricError) as caught:
        learner.history.steps("zzz")
    assert str(caught.value) == "history has no 'zzz'. It has: loss, mae, val_loss, val_mae"
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, lc.LoopcoreError)
    assert learner.history.get("val_los") is None and "val_los" not in learner.history


class SkipsAndLooks(lc.Callback):
    """Withholds updates, and updates by itself at the end of the step."""

    writes = ("step.apply", "params", "optimizer")

    @lc.on(lc.StepBegin)
    def skip(self, learner: Any, phase: Any) -> None:
        learner.step.apply = False

    @lc.on(lc.StepEnd)
    def update(self, learner: Any, phase: Any) -> None:
        learner.update({"w": np.ones(1)})


def test_apply_counts_while_its_step_runs_and_not_after() -> None:
    trace = Trace()
    learner = toy_learner([SkipsAndLooks(), trace], steps=2)
    learner.fit(1)
    assert learner.params.value["w"].item() == 0.0 and learner.step.updated is False
    learner.update({"w": np.ones(1)})
    np.testing.assert_allclose(learner.params.value["w"], [-0.1], rtol=1e-15)
    learner.update({"w": np.ones(1)}, when=False)
    np.testing.assert_allclose(learner.params.value["w"], [-0.1], rtol=1e-15)
    learner.minimize(lambda: learner.xp.sum(learner.model(XS)))
    np.testing.assert_allclose(learner.params.value["w"], [-0.5], rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("callbacks", ("before fit or between two", "requires", "shared")),
        ("backend", ("learner.xp", "learner.tree")),
        ("result", ("FitEnd", "event.outcome")),
        ("runs", ("learner.epoch", "learner.step")),
        ("typo", ("learner.typo", "step", "shared", "run_epoch")),
    ],
)
def test_what_a_callback_cannot_reach_says_what_to_do(name: str, words: tuple[str, ...]) -> None:
    errors: list[str] = []

    def reach(learner: Any, phase: Any) -> None:
        with pytest.raises(AttributeError) as caught:
            getattr(learner, name)
        errors.append(str(caught.value))

    toy_learner([lc.FunctionCallback(reach, lc.EpochEnd)]).fit(1)
    assert f"a callback cannot reach learner.{name}" in errors[0]
    assert [word for word in words if word not in errors[0]] == []


def test_a_model_without_an_optimizer_is_no_part_of_the_parameters() -> None:
    def model() -> Any:
        return (lambda params, x: x @ params["w"]), {"w": np.ones((2, 2))}

    learner = lc.Learner({"student": model(), "teacher": model()}, optimizer={"student": lc.SGD(0.1)})
    assert list(learner.params.value) == ["student"] and learner.frozen == ("teacher.w",)
    assert learner.params.teacher.value["w"].shape == (2, 2), "by its name it is there"


def test_data_is_assigned_as_it_is_given() -> None:
    learner = lc.testing.toy_learner(steps=2)
    pairs = list(learner.data["training"])
    learner.data = (pairs, None)
    assert learner.data == {"training": pairs} and learner.fit(1).status == "completed"
    with pytest.raises(lc.errors.DataError, match="is ambiguous"):
        learner.data = pairs


def test_no_seed_draws_one() -> None:
    seeds = {lc.testing.toy_learner(seed=None).seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_data_are_assigned_as_they_are_passed() -> None:
    learner = toy_learner(data=([BATCH], None))
    learner.data = ([BATCH] * 3, None)
    learner.fit(1)
    assert learner.shared.history["training"].steps == 3
    with pytest.raises(DataError, match="ambiguous"):
        learner.data = [BATCH]


@pytest.mark.parametrize("verb", ["fit", "run_step", "minimize", "save", "import_weights", "gradient"])
def test_python_names_the_learner_where_a_verb_is_called_wrongly(verb: str) -> None:
    with pytest.raises(TypeError, match=rf"^Learner\.{verb}\(\) missing"):
        getattr(toy_learner(), verb)()


def test_a_verb_is_documented_as_the_learners() -> None:
    assert str(inspect.signature(lc.Learner.fit)) == "(self, epochs: 'int') -> 'FitResult'"


def test_the_examples_of_all_verbs_are_run() -> None:
    modules = {sys.modules[base.__module__] for base in inspect.getmro(lc.Learner)[:-1]}
    examples = [test.name for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]
    verbs = [
        name for name, member in inspect.getmembers(lc.Learner) if ">>>" in (getattr(member, "__doc__", None) or "")
    ]
    assert len(verbs) > 10
    assert {name.rpartition(".")[2] for name in examples} >= set(verbs)
