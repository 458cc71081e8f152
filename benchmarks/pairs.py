"""What a model that belongs to no framework costs beside the same network as a module of the framework.

    python -m benchmarks.pairs --backend torch --json benchmarks/results/pairs_torch.json

The variants are those of `benchmarks.overhead`, measured the same way; the ratios are to loopcore without callbacks on
an ``nn.Module``, or on a Keras model. All have `loopcore.Adam`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import overhead
from benchmarks.models import loopcore_loops
from benchmarks.models.bench import Bench, Size

MODULE = "loopcore bare"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backend", choices=("torch", "tensorflow"), default="torch")
    parser.add_argument("--size", choices=("small", "mid", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="blocks of each variant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(overhead.CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    options.allocator, options.only = "keep", ""
    if sys.platform == "linux" and not overhead.ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **overhead.ALLOCATOR})
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    results: dict[str, Any] = {}
    for size in overhead.SIZES:
        if options.size not in (size.name, "both"):
            continue
        bench = variants(options.backend, size, options.threads)
        limits = {f"{MODULE}, pair": 1.02}
        results[size.name] = overhead.measure(
            bench, size, options.rounds or size.rounds, limits, overhead.CLOCKS[options.clock]
        )
        overhead.show(options.backend, size, results[size.name], options.threads)
    if options.json:
        report = {**overhead.report(options, results), "benchmark": "pairs", "yardstick": MODULE}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def variants(backend: str, size: Size, threads: int) -> Bench:
    """loopcore without and with callbacks, on a module and on a pair; the first one twice."""
    import loopcore as lc

    module: Any = importlib.import_module(f"benchmarks.models.{backend}_loops")
    bench: Bench = module.bench(size, threads, "raw")
    assert bench.model is not None
    lc.use(backend)

    def adam(model: Any) -> lc.Adam:
        return lc.Adam(1e-5)

    given = (lc.losses.cross_entropy, adam)
    modules = loopcore_loops.variants(bench.model, *given)
    again = loopcore_loops.variants(bench.model, *given, " again")[:1]
    pairs = loopcore_loops.variants(lambda: mlp(size.widths), *given, ", pair")
    return Bench(bench.batches, [*modules, *again, *pairs])


def mlp(widths: tuple[int, ...]) -> Any:
    """``(apply_fn, params)`` of an MLP, as its users write it."""
    import loopcore as lc

    draw = np.random.default_rng(0)
    params = [
        {"w": draw.normal(0, n**-0.5, (n, m)).astype(np.float32), "b": np.zeros(m, np.float32)}
        for n, m in pairwise(widths)
    ]

    def apply_fn(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = lc.xp.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return apply_fn, params


if __name__ == "__main__":
    sys.exit(main())
