"""A callback of a learner with the views it is called with."""

from __future__ import annotations

from typing import NamedTuple

from loopcore.access.learner_view import View, make_view
from loopcore.callback import Callback
from loopcore.protocols import LearnerParts


class GuardedCallback(NamedTuple):
    """A callback of a learner with its two guarded views."""

    callback: Callback
    view: View
    traced_view: View


def make_member(learner: LearnerParts, callback: Callback) -> GuardedCallback:
    """Make the two views of a callback, for its host handlers and for its traced ones."""
    return GuardedCallback(
        callback, make_view(learner, callback, traced=False), make_view(learner, callback, traced=True)
    )
