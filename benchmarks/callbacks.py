"""What each callback that works on the device adds to a step.

    python -m benchmarks.callbacks --backend jax --json benchmarks/results/callbacks_jax.json

The variants are those of `benchmarks.overhead`, measured the same way; the ratios are to loopcore without callbacks. An
accumulating step updates once in four, so it is faster than one that always does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import overhead
from benchmarks.models.bench import Bench, Variant
from benchmarks.models.loopcore_loops import epoch_of

BACKENDS = ("torch", "jax", "tensorflow")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callbacks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, default="jax")
    parser.add_argument("--size", choices=("small", "mid", "both"), default="mid")
    parser.add_argument("--rounds", type=int, help="blocks of each variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(overhead.CLOCKS), default="wall")
    parser.add_argument("--only", default="", help="only variants whose name contains this")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    options.allocator = "keep"
    if sys.platform == "linux" and not overhead.ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **overhead.ALLOCATOR})
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    limits = dict.fromkeys(LIMITED, 1.03) if options.backend != "torch" else {}  # an eager step fuses nothing
    results: dict[str, Any] = {}
    for size in overhead.SIZES:
        if options.size not in (size.name, "both"):
            continue
        bench = variants(options.backend, size, options.threads, options.only)
        results[size.name] = overhead.measure(
            bench, size, options.rounds or size.rounds, limits, overhead.CLOCKS[options.clock]
        )
        overhead.show(options.backend, size, results[size.name], options.threads)
    if options.json:
        report = {**overhead.report(options, results), "benchmark": "callbacks", "yardstick": "loopcore bare"}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def callbacks(classes: int) -> dict[str, list[Any]]:
    """Makers of the callbacks of each variant."""
    import loopcore as lc

    return {
        "bare again": [],
        "GradientClipping(norm)": [lc.GradientClipping(norm=1.0)],
        "GradientClipping(value)": [lc.GradientClipping(value=1.0)],
        "AveragedWeights": [lc.AveragedWeights()],
        "GradientAccumulation(4)": [lc.GradientAccumulation(4)],
        "MixUp": [lc.MixUp(0.2, classes=classes)],
        "LabelSmoothing": [lc.LabelSmoothing(0.1, classes=classes)],
        "all": [
            *(lc.GradientClipping(norm=1.0), lc.AveragedWeights(), lc.GradientAccumulation(4)),
            *(lc.MixUp(0.2, classes=classes), lc.LabelSmoothing(0.1)),
        ],
    }


LIMITED = ("GradientClipping(norm)", "GradientClipping(value)", "AveragedWeights", "GradientAccumulation(4)")
LIMITED = (*LIMITED, "MixUp", "LabelSmoothing")


def variants(backend: str, size: Any, threads: int, only: str) -> Bench:
    """Loopcore without callbacks, and with each."""
    import loopcore as lc

    module: Any = importlib.import_module(f"benchmarks.models.{backend}_loops")
    bench: Bench = module.bench(size, threads, "raw")
    found: list[Variant] = []
    assert bench.model is not None
    for name, given in {"loopcore bare": [], **callbacks(size.widths[-1])}.items():
        if only in name or "bare" in name:  # all with one optimizer
            options: dict[str, Any] = {"callbacks": given, "default_callbacks": False}
            learner = lc.Learner(bench.model(), lc.losses.cross_entropy, lc.Adam(1e-5), **options)
            found.append(Variant(name, epoch_of(learner)))
    return Bench(bench.batches, found)


if __name__ == "__main__":
    sys.exit(main())
