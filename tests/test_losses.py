"""Losses take targets of the shape of the predictions."""

from __future__ import annotations

import numpy as np

from loopcore import errors
from loopcore.testing import toy_learner
from tests.refusals import refused

XS = np.ones((4, 1))


def test_targets_of_another_shape_do_not_broadcast() -> None:
    learner = toy_learner(data=([(XS, np.ones(4))], None))
    refused(errors.LossError, "shape (4, 1)", "shape (4,)", "expand_dims", action=lambda: learner.fit(1))
