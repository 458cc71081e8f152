"""The loopcore variants, the same for every backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import loopcore as lc
from benchmarks.models.bench import Block, Variant


def variants(
    model: Callable[[], Any], loss_fn: Callable[..., Any], optimizer: Callable[[Any], Any], label: str = ""
) -> list[Variant]:
    """``loopcore bare`` has no callbacks; ``loopcore default`` the default ones with accuracy, printing into nothing.

    Args:
        model: makes the model with its first weights.
        loss_fn: the native loss.
        optimizer: makes the optimizer of a model.
        label: what the names of the variants end in.
    """
    nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stays open as long as the printers
    callbacks = [lc.Metrics(lc.accuracy), lc.ProgressPrinter(file=nothing), lc.MetricsPrinter(file=nothing)]
    bare_model, default_model = model(), model()
    bare = lc.Learner(bare_model, loss_fn, optimizer(bare_model), default_callbacks=False)
    default = lc.Learner(default_model, loss_fn, optimizer(default_model), callbacks=callbacks)
    return [
        Variant(f"loopcore bare{label}", epoch_of(bare)),
        Variant(f"loopcore default{label}", epoch_of(default), nothing.close),
    ]


def listeners(
    model: Callable[[], Any], loss_fn: Callable[..., Any], optimizer: Callable[[Any], Any], *, writes: bool = False
) -> list[Variant]:
    """No callbacks but one that listens on the host within the step, and does nothing.

    Args:
        model, loss_fn, optimizer: as of `variants`.
        writes: whether it says that it writes a value of its own, so that the step is cut where that is for writers.
    """
    inner = (lc.LossBegin, lc.BackwardBegin, lc.BackwardEnd)
    found: list[Variant] = []
    for events in ((lc.BackwardEnd,), (lc.LossBegin,), (lc.BackwardBegin,), inner):
        listening = [
            lc.FunctionCallback(lambda learner, phase: None, event, writes=(f"step.{event.__name__}",) * writes)
            for event in events
        ]
        made = model()
        learner = lc.Learner(made, loss_fn, optimizer(made), callbacks=listening, default_callbacks=False)
        name = events[0].__name__ if len(events) == 1 else "all three"
        found.append(Variant(f"{'writer' if writes else 'listener'} at {name}", epoch_of(learner)))
    return found


def fed(batches: Sequence[Any], yardstick: Variant, others: Sequence[Variant]) -> list[Variant]:
    """Variants that are fed other batches, and divided by one of them.

    Args:
        batches: what they get in turn.
        yardstick: what the others are divided by.
        others: with the same batches.
    """

    def block_of(variant: Variant) -> Block:
        return lambda block: variant.block([batches[index % len(batches)] for index in range(len(block))])

    return [
        Variant(one.name, block_of(one), one.close, "" if one is yardstick else yardstick.name)
        for one in (yardstick, *others)
    ]


def epoch_of(learner: lc.Learner) -> Block:
    """One epoch of training steps on a block of batches."""
    phase = lc.TrainingPhase()

    def run(block: Sequence[Any]) -> None:
        learner.run_epoch(phase, block)
        learner.to_host(learner.step.loss)  # steps may run on after they were started

    return run
