"""Hyperparameters are found by their names."""

from __future__ import annotations

import loopcore as lc
from loopcore.testing import toy_learner
from tests.refusals import refused


def test_typos_in_hyperparameters() -> None:
    learner = toy_learner(hyper={"kl_weight": 0.5})
    words: tuple[str, ...] = ("no hyperparameter 'kl_weigth'", "there are: kl_weight, learning_rate")
    refused(AttributeError, *words, action=lambda: learner.hyper.kl_weigth)
    refused(AttributeError, "'learning_rat'", action=lambda: setattr(learner.hyper, "learning_rat", 0.5))
    refused(AttributeError, "'w.learning_rate'", action=lambda: learner.hyper["w.learning_rate"])
    refused(TypeError, "'kl_weight' is a number, not 'x'", action=lambda: setattr(learner.hyper, "kl_weight", "x"))
    refused(TypeError, "SGD(learning_rate='x')", "learner.hyper.learning_rate", action=lambda: lc.SGD("x"))  # type: ignore[arg-type]
    refused(ValueError, "SGD(learning_rate=-1)", "must not be negative", action=lambda: lc.SGD(-1))
    assert (learner.hyper.kl_weight, learner.hyper.learning_rate) == (0.5, 0.1)
