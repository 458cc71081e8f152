"""``learner.explain()``: the order of the callbacks and why, and how each phase runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from loopcore._utils.text import clean
from loopcore.backend.protocol import Extras
from loopcore.callback import name_of
from loopcore.execution.captured_arrays import baked_in
from loopcore.protocols import LearnerParts

if TYPE_CHECKING:
    from loopcore.execution.plan import Plan


def explain(learner: LearnerParts) -> str:
    """The text of `Learner.explain`."""
    lines = [f"backend {learner.backend.name}, seed {learner.seed}", "", "trained:"]
    lines += [f"  {prefix or 'all'}: {', '.join(paths)}" for prefix, paths in learner.trained] or ["  nothing"]
    if learner.frozen:
        lines += [f"frozen: {', '.join(learner.frozen)}"]
    parts = cast(Extras, learner.backend).eval_parts() if hasattr(learner.backend, "eval_parts") else ()
    if parts:
        lines += [f"in evaluation mode while others train: {', '.join(parts)}"]
    lines += ["", "callbacks, in the order in which they run:"]
    lines += [f"  {index}. {name_of(callback)}" for index, callback in enumerate(learner.callbacks, 1)] or ["  none"]
    lines += [f"     {name_of(e.before)} before {name_of(e.after)}: {e.reason}" for e in learner.callbacks.edges]
    for phase in learner.phases:
        plan = learner.runs.runner_of(phase).plan
        lines += ["", f"phase {phase.name} ({type(phase).__name__})", *_plan_lines(plan)]
        if plan.kind != "eager":
            lines += [f"  kept as it is now: {text}" for text in baked_in(learner, phase, learner.callbacks)]
    return "\n".join(clean(line, limit=None) for line in lines)


def _plan_lines(plan: Plan) -> list[str]:
    lines = [f"  plan: {plan.kind} ({plan.why})"]
    word = "would be cut at" if plan.kind == "eager" else "cut at"
    for event, names in plan.cuts:
        only = " (writes nothing, so the program goes on)" if plan.looks.issuperset(names) else ""
        lines += [f"  {word} {event}: {', '.join(names)}{only}"]
    lines += [f"  kept after a step: {_who(plan.kept)}"]
    if plan.deferred:
        lines += [f"  for later: {_who(plan.deferred)}"]
    if plan.carried:
        lines += [f"  carried: {', '.join(plan.carried)}"]
    return lines


def _who(names: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{'all' if name == '*' else name} ({', '.join(readers)})" for name, readers in names.items())
