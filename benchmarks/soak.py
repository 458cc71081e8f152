"""A million steps: does anything grow, and does a step leave anything behind?

    python -m benchmarks.soak --json benchmarks/results/soak.json

The first part runs with the default callbacks and the garbage collector as it is, and reads the resident memory of
the process. The second runs with the collector off: each batch must be gone when the next step begins, by reference
counts alone, so no cycle may hold one. Linux only (it reads /proc/self/statm).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

import loopcore as lc

EPOCH = 10_000  # steps
MEBIBYTE = 2**20
GROWTH = 1.0  # MiB at most
OBJECTS = 100  # more objects known to the collector at most


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the first part")
    parser.add_argument("--steps-without-gc", type=int, default=100_000, help="of the second part")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        parts = {
            "default callbacks": soak(nothing, options.steps, min(100_000, options.steps // 10)),
            "without the collector": without_collector(nothing, options.steps_without_gc),
        }
    show(parts)
    if options.json:
        content = {"benchmark": "soak", "python": platform.python_version(), "numpy": np.__version__, "parts": parts}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(part["met"] for part in parts.values()) else 1


def soak(nothing: IO[str], steps: int, warm: int) -> dict[str, Any]:
    """Run ``steps`` steps; memory and objects are compared with those after ``warm`` steps."""
    learner = make_learner(nothing)
    phase = lc.TrainingPhase()
    began = time.perf_counter()
    run_steps(learner, phase, warm)
    gc.collect()
    first, objects = resident(), len(gc.get_objects())
    curve = []
    for _ in range(10):
        run_steps(learner, phase, (steps - warm) // 10)
        curve.append(round((resident() - first) / MEBIBYTE, 3))
    gc.collect()
    grown, more = round((resident() - first) / MEBIBYTE, 3), len(gc.get_objects()) - objects
    return {
        "steps": learner.shared.history[phase].steps,
        "warm_up_steps": warm,
        "growth_mib": grown,
        "growth_mib_by_tenth": curve,
        "growth_mib_allowed": GROWTH,
        "objects_more": more,
        "objects_more_allowed": OBJECTS,
        "us_per_step": round((time.perf_counter() - began) / steps * 1e6, 1),
        "met": max(grown, *curve) <= GROWTH and more <= OBJECTS,
    }


def without_collector(nothing: IO[str], steps: int) -> dict[str, Any]:
    """Run ``steps`` steps with the collector off; every batch must be dead when the next step begins."""
    watch = BatchWatch()
    learner = make_learner(nothing, watch)
    phase = lc.TrainingPhase()
    warm = steps // 10
    run_steps(learner, phase, warm)
    gc.collect()
    with collector_off():
        first, objects = resident(), len(gc.get_objects())
        run_steps(learner, phase, steps - warm)
        grown, more = round((resident() - first) / MEBIBYTE, 3), len(gc.get_objects()) - objects
        unreachable = gc.collect()
    return {
        "steps": steps,
        "warm_up_steps": warm,
        "growth_mib": grown,
        "growth_mib_allowed": GROWTH,
        "objects_more": more,
        "objects_more_allowed": OBJECTS,
        "objects_in_cycles": unreachable,
        "batches_watched": watch.seen,
        "batches_alive_at_next_step": watch.alive,
        "met": grown <= GROWTH and more <= OBJECTS and watch.alive == 0,
    }


class BatchWatch(lc.Callback):
    """Counts steps that begin while an array of the step before is still alive."""

    reads = ("step.xs", "step.ys")

    def __init__(self) -> None:
        self.seen = self.alive = 0
        self._before: tuple[weakref.ref[Any], ...] = ()

    @lc.on(lc.StepBegin)
    def begin(self, learner: Any, phase: lc.Phase) -> None:
        """Look at the batch of the step before, then remember this one."""
        self.alive += any(array() is not None for array in self._before)
        self.seen += bool(self._before)
        self._before = (weakref.ref(learner.step.xs), weakref.ref(learner.step.ys))


class FreshBatches:
    """Batches that are new arrays each time, and that nothing else holds."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for index in range(self._count):
            yield np.full((4, 2), index % 7, np.float32), np.arange(4) % 3


def make_learner(nothing: IO[str], *callbacks: lc.Callback) -> lc.Learner:
    """A linear model with three classes, the default callbacks and accuracy; everything printed goes to ``nothing``."""
    weights = {"w": np.ones((2, 3), np.float32) / 4, "b": np.zeros(3, np.float32)}
    printers = (lc.ProgressPrinter(file=nothing), lc.MetricsPrinter(file=nothing))
    return lc.Learner(
        (lambda params, xs: xs @ params["w"] + params["b"], weights),
        lc.losses.cross_entropy,
        lc.Adam(1e-3),
        callbacks=[lc.Metrics(lc.accuracy), *printers, *callbacks],
    )


def run_steps(learner: lc.Learner, phase: lc.Phase, steps: int) -> None:
    """Run steps in epochs of 10,000, and one shorter one for the rest."""
    for start in range(0, steps, EPOCH):
        learner.run_epoch(phase, FreshBatches(min(EPOCH, steps - start)))


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def collector_off() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def show(parts: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    for name, part in parts.items():
        table = Table(title=f"{name}: {'met' if part['met'] else 'missed'}", title_justify="left")
        table.add_column("what")
        table.add_column("value", justify="right")
        for key, value in part.items():
            table.add_row(key.replace("_", " "), str(value))
        Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
