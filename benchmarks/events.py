"""What the machinery costs by itself: an event nobody hears, guarded reads and writes, and the import.

    python -m benchmarks.events --json benchmarks/results/events.json

Times are medians of repeats, each long enough for the clock; the cost of the empty loop is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET_UNHEARD = 150.0  # nanoseconds
IMPORTS = "import time; a = time.perf_counter(); import numpy; b = time.perf_counter(); import loopcore; " + (
    "print(b - a, time.perf_counter() - b)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="of each measurement; the median counts")
    parser.add_argument("--imports", type=int, default=7, help="fresh interpreters")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    nanoseconds = measure_calls(options.repeats)
    milliseconds = measure_import(options.imports)
    show(nanoseconds, milliseconds)
    if options.json:
        content = {
            "benchmark": "events",
            "cpu_count": os.cpu_count(),
            "python": platform.python_version(),
            "nanoseconds": nanoseconds,
            "target_unheard_event": TARGET_UNHEARD,
            "import_milliseconds": milliseconds,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def measure_calls(repeats: int) -> dict[str, float]:
    """Nanoseconds of one call each."""
    names = _names()
    loop = _nanoseconds("pass", names, repeats)
    statements = {
        "handle(LossBegin()) nobody hears": "handle(LossBegin())",
        "LossBegin() alone": "LossBegin()",
        "handle(LossBegin()) one host handler": "heard(LossBegin())",
        "learner.shared.x unguarded": "learner.shared.x",
        "view.shared.x": "view.shared.x",
        "view.shared.x = 1": "view.shared.x = 1",
        "learner.step.loss unguarded": "learner.step.loss",
        "view.step.loss": "view.step.loss",
        "view.step.note = 1": "view.step.note = 1",
        "view.hyper.learning_rate": "view.hyper.learning_rate",
        "view.epoch": "view.epoch",
    }
    return {what: round(_nanoseconds(code, names, repeats) - loop, 1) for what, code in statements.items()}


def _names() -> dict[str, Any]:
    """What the statements see: a learner after one step, and the guarded view of one of its callbacks."""
    import loopcore as lc

    class Probe(lc.Callback):
        reads = ("step.loss", "hyper.learning_rate")
        writes = ("shared.x", "step.note")

        def setup(self, learner: Any) -> None:
            self.view = learner
            learner.shared.x = 0

    class Listener(lc.Callback):
        @lc.on(lc.LossBegin)
        def hear(self, learner: Any, phase: Any) -> None:
            """Do nothing."""

    probe, phase = Probe(), lc.TrainingPhase()
    learner = lc.testing.toy_learner(callbacks=[probe], default_callbacks=False)
    other = lc.testing.toy_learner(callbacks=[Listener()], default_callbacks=False)
    learner.run_step(phase, learner.data["training"][0])
    with lc.run_epoch(learner, phase) as handle:
        pass
    with lc.run_epoch(other, phase) as heard:
        pass
    return {"handle": handle, "heard": heard, "LossBegin": lc.LossBegin, "learner": learner, "view": probe.view}


def _nanoseconds(code: str, names: dict[str, Any], repeats: int) -> float:
    locals_first = "; ".join(f"{name} = names[{name!r}]" for name in names)  # as fast as in a function
    timer = timeit.Timer(code, locals_first, globals={"names": names})
    number = 100_000
    return statistics.median(timer.repeat(repeats, number)) / number * 1e9


def measure_import(count: int) -> dict[str, Any]:
    """Milliseconds of ``import loopcore`` in fresh interpreters, and the part of NumPy."""
    numpy_first: list[float] = []
    own: list[float] = []
    for _ in range(count + 1):
        done = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True)
        first, rest = map(float, done.stdout.split())
        numpy_first.append(first * 1e3)
        own.append(rest * 1e3)
    totals = [first + rest for first, rest in zip(numpy_first[1:], own[1:], strict=True)]  # the first warmed the disk
    return {
        "total": round(statistics.median(totals), 1),
        "numpy": round(statistics.median(numpy_first[1:]), 1),
        "the rest": round(statistics.median(own[1:]), 1),
        "interpreters": count,
    }


def show(nanoseconds: dict[str, float], milliseconds: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="calls", title_justify="left")
    table.add_column("what")
    table.add_column("ns", justify="right")
    table.add_column("target", justify="right")
    for index, (what, time) in enumerate(nanoseconds.items()):
        met = f"< {TARGET_UNHEARD:.0f} {'met' if time < TARGET_UNHEARD else 'missed'}" if index == 0 else ""
        table.add_row(what, f"{time:.0f}", met)
    imports = Table(title=f"import loopcore, median of {milliseconds['interpreters']}", title_justify="left")
    imports.add_column("part")
    imports.add_column("ms", justify="right")
    for part in ("total", "numpy", "the rest"):
        imports.add_row(part, f"{milliseconds[part]:.0f}")
    console = Console(width=100)
    console.print(table)
    console.print(imports)


if __name__ == "__main__":
    sys.exit(main())
