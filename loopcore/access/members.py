"""A callback of a learner with the views it is called with."""

from __future__ import annotations

from typing import NamedTuple

from loopcore.access.learner_view import View, make_view
from loopcore.access.lent_containers import LentContainers
from loopcore.backend.protocol import Backend
from loopcore.callback import Callback
from loopcore.protocols import LearnerParts


class GuardedCallback(NamedTuple):
    """A callback of a learner with its two guarded views.

    Attributes:
        callback: itself.
        view, traced_view: for its host handlers, and for its traced ones.
        loans: containers that its host handlers got to see.
        backend: of the learner.
    """

    callback: Callback
    view: View
    traced_view: View
    loans: LentContainers
    backend: Backend


def make_member(learner: LearnerParts, callback: Callback) -> GuardedCallback:
    """Make the two views of a callback, for its host handlers and for its traced ones."""
    loans = LentContainers(learner)
    view, traced_view = make_view(learner, callback, loans), make_view(learner, callback, None)
    return GuardedCallback(callback, view, traced_view, loans, learner.backend)
