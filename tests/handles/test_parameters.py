"""Weights by their paths: what does not fit is named; a docstring says how FluxTraining.jl failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loopcore as lc
from loopcore import errors
from loopcore.testing import toy_learner
from tests.refusals import refused


def test_weights_that_do_not_fit_name_every_mismatch_and_write_nothing() -> None:
    params = {"a": np.zeros(2), "b": np.zeros((2, 3)), "c": np.zeros(1), "d": np.zeros(1)}
    learner = toy_learner(model=(lambda p, xs: xs * p["c"], params))
    wrong = {"a": np.ones(2), "b": np.ones((3, 2)), "c": np.array(["x"]), "e": np.ones(1)}
    error = refused(errors.WeightsError, "nothing was loaded", action=lambda: learner.import_weights(wrong))
    listed = [line.strip() for line in str(error).splitlines()[1:]]
    assert listed == [
        "e: the model has no such weight",
        "d: missing",
        "b: the model has shape [2, 3], the value [3, 2]",
        "c: the model has dtype float64, the value <U1",
    ]
    assert all(not value.any() for value in learner.export_weights().values())
    refused(errors.WeightsError, "dict from path to array", action=lambda: learner.import_weights([1]))  # type: ignore[arg-type]
    two, other = {"c": np.ones(2)}, {"z": np.ones(1)}
    refused(errors.WeightsError, "shape [1]", "[2]", action=lambda: setattr(learner.params.c, "value", two))
    refused(errors.WeightsError, "structure", "['z']", action=lambda: setattr(learner.params, "value", other))
    refused(errors.WeightsError, "a NoneType", action=lambda: learner.update(None))
    refused(errors.GradientError, "'c'", "(3,)", action=lambda: learner.update({"c": np.ones(3)}, learner.params.c))


def test_names_that_are_not_there() -> None:
    learner = toy_learner()
    learner.fit(1)
    refused(errors.UnknownMetricError, "history has no 'acc'. It has: loss", action=lambda: learner.history["acc"])
    refused(AttributeError, "no params 'v' here; there are: w", action=lambda: learner.params.v)
    refused(AttributeError, "no model 'critic'", "learner.model.native", action=lambda: learner.model.critic)
    refused(AttributeError, "nothing wrote shared.x yet", "history", action=lambda: learner.shared.x)
    refused(errors.UnknownModelError, "no backend 'torhc'", "torch", action=lambda: lc.use("torhc"))


@pytest.mark.parametrize("optimizer", [lc.SGD(0.1), lc.Momentum(0.1), lc.Adam(0.1), lc.AdamW(0.1)], ids=repr)
def test_params_are_the_parameters_whatever_the_optimizer(optimizer: Any) -> None:  # L-9
    """``params`` was the parameters or the state of the optimizer, depending on the type of the latter."""
    learner, twin = toy_learner(optimizer=optimizer), toy_learner(optimizer=optimizer)
    learner.fit(1)
    assert list(learner.params.value) == ["w"] and learner.params.value["w"].shape == (1,)
    assert set(learner.export_weights()) == {"w"}
    learner.fit(1)
    twin.fit(2)
    np.testing.assert_array_equal(learner.params.value["w"], twin.params.value["w"])
