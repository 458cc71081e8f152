"""A look at the data and one step of each phase, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optree

from loopcore.backend.protocol import Tree
from loopcore.callback import Callback, on
from loopcore.callbacks.metrics import Metrics, try_metric
from loopcore.callbacks.unguarded import unguarded
from loopcore.errors import SanityError
from loopcore.events import FitBegin
from loopcore.phases.base import Phase
from loopcore.protocols import LearnerView
from loopcore.state import State


class SanityCheck(Callback):
    """Before the first fit: take a batch of each phase, run a step on it, put both back, and say all that is wrong.

    It looks for batches that are not finite or whose parts differ in length, for steps that fail, for losses that are
    not finite, and for metrics that fail or whose values are neither numbers nor arrays. Nothing is consumed and
    nothing is trained, see `Learner.peek` and `Learner.rehearse`. Phases without data, and those with an ``epoch`` of
    their own, are left out. It costs one eager step a phase, once.

    Reads: data, model, params, buffers
    Handles: FitBegin

    Raises:
        SanityError: when the fit begins; says what is wrong in each phase, and goes on from the first error itself.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> batch = np.ones((4, 1)), np.ones((3, 1))
        >>> try:
        ...     lc.testing.toy_learner(callbacks=[lc.SanityCheck()], data=([batch], None)).fit(1)
        ... except lc.errors.SanityError as error:
        ...     print(str(error).splitlines()[0])
        the parts of a batch of phase 'training' differ in length: xs (4, 1), ys (3, 1)
    """

    reads = ("data", "model", "params", "buffers")

    _is_done = False

    @on(FitBegin)
    def check(self, learner: LearnerView, phase: None) -> None:
        """Try a batch, a step and the metrics of each phase, until all of it has worked once."""
        if self._is_done:
            return
        problems: list[str] = []
        errors: list[Exception] = []
        for checked_phase in learner.phases:
            # A loop of the user's own may feed its steps with what no batch of the data is.
            if checked_phase.data_key in learner.data and type(checked_phase).epoch is Phase.epoch:
                self._check_phase(learner, checked_phase, problems, errors)
        if problems:
            raise SanityError("\n".join(problems)) from (errors[0] if errors else None)
        self._is_done = True

    def _check_phase(self, learner: LearnerView, phase: Phase, problems: list[str], errors: list[Exception]) -> None:
        doing = f"reading a batch of phase {phase.name!r}"
        try:
            batch = learner.peek(phase)
            problems += _problems_of(learner, phase.unpack(batch), phase.name)
            doing = f"a step of phase {phase.name!r}"
            # Eagerly, and without callbacks: what fails here is the body itself.
            state = learner.rehearse(phase, batch)
            loss = state.__dict__.get("loss")
        except Exception as error:
            problems.append(f"{doing} fails: {type(error).__name__}: {error}")
            errors.append(error)
        else:
            if loss is not None and not np.all(np.isfinite(learner.to_host(loss))):
                problems.append(f"the loss of the first step of phase {phase.name!r} is {learner.to_host(loss)}")
            self._check_metrics(learner, phase, state, problems, errors)

    def _check_metrics(
        self, learner: LearnerView, phase: Phase, state: State, problems: list[str], errors: list[Exception]
    ) -> None:
        for member in unguarded(learner).callbacks:  # no view shows the callbacks; nothing is done to them
            callback = member.identity()
            for metric in callback.metrics if isinstance(callback, Metrics) else ():
                try:
                    try_metric(metric, phase, state, learner)
                except Exception as error:
                    problems.append(
                        f"metric {metric.name!r} fails in phase {phase.name!r}: {type(error).__name__}: {error}"
                    )
                    errors.append(error)


def _problems_of(learner: LearnerView, parts: Mapping[str, Any], phase: str) -> list[str]:
    problems: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    tree: Tree = dict(parts)
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    named_leaves = [(".".join(map(str, path)), leaf) for path, leaf in zip(paths, leaves, strict=True)]
    leaves_by_name = [pair for path, part in named_leaves for pair in _inner(learner, path, part)]
    for name, leaf in leaves_by_name:
        shape = getattr(leaf, "shape", ())
        if len(shape):
            shapes[name] = tuple(int(size) for size in shape)
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            problems.append(f"{name} of a batch of phase {phase!r} has values that are NaN or infinite")
    if len({shape[0] for shape in shapes.values()}) > 1:
        lengths = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        problems.append(f"the parts of a batch of phase {phase!r} differ in length: {lengths}")
    return problems


def _inner(learner: LearnerView, name: str, leaf: Tree) -> list[tuple[str, Tree]]:
    """What is in a tree of a class that only the framework knows as one; anything else is itself."""
    leaves: list[Tree] = []
    learner.tree.map(leaves.append, leaf)
    is_leaf = len(leaves) == 1 and leaves[0] is leaf
    return [(name, leaf)] if is_leaf else [(f"{name}.{number}", part) for number, part in enumerate(leaves)]
