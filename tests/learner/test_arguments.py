"""What a Learner is made of: wrong models, optimizers, losses and data are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.errors import DataError, NoDataError
from loopcore.testing import Trace, toy_learner
from tests.conftest import ROOT
from tests.refusals import refused

XS = np.ones((4, 1))
BATCH = (XS, XS)
NUMBERS = "but parameters are arrays of floats, such as np.array([1.0, 2.0])"
NESTED = {"a": np.ones(1), "b": {"c": (np.ones(2), 3.0)}}
ON_NUMPY = {"backend": "numpy"}


class Strange:
    """Of no framework."""


class Distance(lc.TrainingPhase):
    """Another phase with the same name."""


def forward(params: Any, xs: Any) -> Any:
    return xs * params["w"]


@pytest.mark.parametrize(
    ("kind", "words", "arguments"),
    [
        (errors.UnknownModelError, ("knows the model of type", "Strange", "(apply_fn, params)"), {"model": Strange()}),
        (errors.UnknownModelError, ("the model 'critic'", "Strange"), {"model": {"critic": Strange()}}),
        (errors.UnknownModelError, ("of 'w.0': it is the number 1", NUMBERS), {"model": (forward, {"w": [1, 2]})}),
        (errors.UnknownModelError, ("the model 'w' cannot be used because of '0'", NUMBERS), {"model": {"w": [1.5]}}),
        (errors.UnknownModelError, ("of 'param': it is the number 0.5", NUMBERS), {"model": (forward, 0.5)}),
        (errors.UnknownModelError, ("of 'm.b.c.1': it is", NUMBERS), {"model": {"m": (forward, NESTED)}}),
        (errors.UnknownModelError, ("'w.0'", NUMBERS), {"model": (forward, {"w": [1]}), **ON_NUMPY}),
        (errors.UnknownModelError, ("because of 'w'", "int64"), {"model": (forward, {"w": np.array([1, 2])})}),
        (errors.UnknownModelError, ("no backend 'numpi'", "known are", "numpy"), {"backend": "numpi"}),
        (errors.OptimizerError, ("Strange cannot train a NumPy model", "lc.Adam(1e-3)"), {"optimizer": Strange()}),
        (errors.OptimizerError, ("optimizer=Adam is a class: write Adam(...)",), {"optimizer": lc.Adam}),
        (errors.OptimizerError, ("'head' trains no parameter", "begin with: w"), {"optimizer": {"head": lc.Adam()}}),
        (errors.LossError, ("loss_fn='mse' cannot be called", "lc.losses.mse"), {"loss_fn": "mse"}),
        (errors.LossError, ("loss_fn=Strange is a class: write Strange()",), {"loss_fn": Strange}),
        (errors.DataError, ("data=list is ambiguous", "data=(train, valid)", '{"training": train}'), {"data": [BATCH]}),
        (errors.DataError, ("3 were given: use a dict",), {"data": ([BATCH],) * 3}),
        (errors.DataError, ("the training data", "cannot be iterated: pass batches"), {"data": (5, None)}),
        (errors.DataError, ("the validation data", "cannot be iterated"), {"data": ([BATCH], "abc")}),
        (errors.BackendError, ("not on 'cuda:0'", "leave device out"), {"device": "cuda:0"}),
        (TypeError, ("named by identifiers", "'my model'"), {"model": {"my model": (forward, {"w": np.ones(1)})}}),
        (TypeError, ("Learner({}) has no model",), {"model": {}}),
        (TypeError, ("not <class", "write TrainingPhase()"), {"phases": [lc.TrainingPhase]}),
        (TypeError, ("a phase is an instance", "'training'"), {"phases": ["training"]}),
        (TypeError, ("phases are named 'training'", "override name"), {"phases": [lc.TrainingPhase(), Distance()]}),
        (TypeError, ("Learner has reads='step.y_pred'", 'reads=("step.y_pred",)'), {"reads": "step.y_pred"}),
        (TypeError, ("reads=('y_pred',)", 'reads=("step.y_pred",)'), {"reads": ("y_pred",)}),
        (ValueError, ("seed is a whole number", "not 'x'"), {"seed": "x"}),
        (ValueError, ("seed is a whole number", "not 2.5"), {"seed": 2.5}),
        (ValueError, ('compile is "auto", True or False', "on the numpy backend", "'yes'"), {"compile": "yes"}),
        (ValueError, ('compile is "auto", True or False', "not 'xla'"), {"compile": "xla"}),
        (ValueError, ('compile is "auto", True or False', "not 1"), {"compile": 1}),
        (ValueError, ('compile is "auto", True or False', "not ['auto']"), {"compile": ["auto"]}),
        (ValueError, ("'learning_rate'", "is the name of an optimizer's own"), {"hyper": {"learning_rate": 0.1}}),
        (TypeError, ("hyper 'kl' is a number, not 'much'",), {"hyper": {"kl": "much"}}),
        (TypeError, ("hyper=['kl'] is no mapping", 'hyper={"kl_weight": 0.5}'), {"hyper": ["kl"]}),
        (TypeError, ("hyper=[] is no mapping",), {"hyper": []}),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_learner_refuses(kind: type[BaseException], words: tuple[str, ...], arguments: dict[str, Any]) -> None:
    refused(kind, *words, action=lambda: toy_learner(**arguments))


@pytest.mark.parametrize(
    ("loss", "kind", "words"),
    [
        (lambda y_pred, ys: (y_pred - ys) ** 2, errors.LossError, ("shape (4, 1)", "scalar", 'reduction="mean"')),
        (lambda y_pred, ys: None, errors.LossError, ("returned nothing", "return state.loss")),
        (lambda y_pred, ys: "low", errors.LossError, ("returned a str", "return state.loss")),
        (lambda y_pred, ys: (ys**2).mean(), errors.GradientError, ("depends on none of 'w'", "learner.model(...)")),
    ],
    ids=["array", "nothing", "text", "constant"],
)
def test_a_loss_that_is_no_scalar(loss: Any, kind: type[BaseException], words: tuple[str, ...]) -> None:
    learner = toy_learner(loss_fn=loss)
    refused(kind, *words, action=lambda: learner.fit(1))
    assert learner.params.value["w"].item() == 0.0


def test_a_learner_without_optimizer_or_loss() -> None:
    trace = Trace()
    bare, lost = toy_learner([trace], optimizer=None), toy_learner(loss_fn=None)
    refused(errors.OptimizerError, "nothing is trained", "optimizer=lc.Adam(1e-3)", action=lambda: bare.fit(1))
    refused(errors.LossError, "this learner has no loss", "lc.losses.cross_entropy", action=lambda: lost.fit(1))
    assert trace.events == []
    refused(errors.GradientError, "holds no parameters", action=lambda: bare.run_step(lc.TrainingPhase(), BATCH))


@pytest.mark.parametrize(
    "action",
    [
        lambda learner, phase: learner.run_step(phase, BATCH),
        lambda learner, phase: learner.rehearse(phase, BATCH),
        lambda learner, phase: learner.run_epoch(phase, [BATCH]),
        lambda learner, phase: lc.run_epoch(learner, phase).__enter__(),
        lambda learner, phase: lc.run_step(lambda handle, state: None, learner, phase),
    ],
    ids=["step", "rehearsal", "epoch", "open epoch", "body"],
)
def test_a_phase_class_in_place_of_a_phase(action: Callable[..., Any]) -> None:
    learner = toy_learner()
    refused(TypeError, "a phase is an", "write TrainingPhase()", action=lambda: action(learner, lc.TrainingPhase))
    assert learner.fit(1).status == "completed"


def test_a_phase_with_the_names_of_validation() -> None:
    phase = type("Validates", (lc.ValidationPhase,), {"name": "val"})()
    words: tuple[str, ...] = ("Validates", "'val'", "another name")
    refused(ValueError, *words, action=lambda: toy_learner(phases=[phase]))


def test_data_is_not_taken_apart_by_position() -> None:  # L-1
    """Data in a 1-tuple was taken apart by position: a missing comma made its first batches (train, valid)."""
    alone = toy_learner(data=([BATCH, BATCH],))
    assert list(alone.data) == ["training"] and len(alone.data["training"]) == 2
    named = toy_learner(data={"validation": [BATCH], "training": [BATCH] * 3})
    named.fit(1)
    assert (named.shared.history["training"].steps, named.shared.history["validation"].steps) == (3, 1)
    with pytest.raises(DataError, match=r'write data=\(train, valid\).*data=\{"training": train\}'):
        toy_learner(data=[BATCH, BATCH])
    with pytest.raises(DataError, match=r"a pair \(train, valid\), but 3 were given: use a dict"):
        toy_learner(data=([BATCH], [BATCH], [BATCH]))


def test_a_learner_needs_no_data_and_no_test_file_is_forgotten() -> None:  # L-2
    """A Learner without data could not be made, and the test that needs it was in a file that never ran."""
    learner = toy_learner(data=(), optimizer=None, loss_fn=None)
    assert learner.predict([np.ones((2, 1))]).shape == (2, 1)
    with pytest.raises(NoDataError, match=r"phase 'training' runs on data 'training', which the learner does not have"):
        learner.fit(1)
    here = ROOT / "tests"
    strays = [str(path.relative_to(here)) for path in here.rglob("*.py") if not path.name.startswith("test_")]
    imported = [
        "callbacks/clock.py",
        "data/loaders.py",
        "fixtures/make_checkpoints.py",
        "frameworks/networks.py",
        "frameworks/one_script.py",
        "jax_adapter/calls.py",
        "keras_adapter/models.py",
        "keras_adapter/whole.py",
        "loggers/runs.py",
        "loop/cancels.py",
        "nasty.py",
        "numpy_adapter/calls.py",
        "old_checkpoints.py",
        "ordering/cases.py",
        "refusals.py",
        "tensorflow_adapter/calls.py",
        "tier.py",
        "torch_adapter/calls.py",
    ]  # by files that are collected, but for make_checkpoints.py
    found = [path for path in strays if Path(path).name != "__init__.py"]
    assert sorted(found) == sorted(["all.py", "conftest.py", *imported]), "pytest collects test_*.py only"
