"""What a learner has without being given it."""

from __future__ import annotations

from typing import Any

import loopcore as lc
from loopcore.testing import toy_learner


def kinds(learner: lc.Learner) -> list[str]:
    return [type(callback.identity()).__name__ for callback in learner.callbacks]


class MyMetrics(lc.Metrics):
    """A subclass of a default callback."""


class OwnHistory(lc.Callback):
    """Another writer of the history than the Recorder."""

    writes = ("shared.history",)

    def setup(self, learner: Any) -> None:
        learner.shared.history = {}


def test_a_default_is_not_added_beside_one_like_it() -> None:  # L-6
    """Defaults were matched by exact type: a throttled or subclassed one got a second default beside it."""
    throttled = lc.throttle(lc.Metrics(lc.Metric("loss", "again")), lc.StepEnd, every=2)
    assert kinds(toy_learner([throttled])).count("Metrics") == 1
    assert "Metrics" not in kinds(toy_learner([MyMetrics()]))
    assert "Recorder" not in kinds(toy_learner([OwnHistory()]))
    assert len(toy_learner([lc.Recorder(), lc.Metrics(), lc.StopOnNaNLoss()]).callbacks) == len(toy_learner().callbacks)
