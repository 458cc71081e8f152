"""What a step costs beside the loop an expert writes by hand in the same framework.

    python -m benchmarks.overhead --backend torch --json benchmarks/results/overhead_torch.json

All variants train the same model on the same batches in one process. They take turns in short blocks of steps, in an
order that rotates, and each block is divided by the block of the hand-written loop of the same round: whatever slows
the machine down for a while slows both. The table shows the median of these ratios with its 95 % interval. The row
``raw again`` is the hand-written loop a second time, and shows how far from 1 chance alone takes a ratio. Variants with
NumPy batches are divided by ``raw, NumPy batches``, the hand-written loop that is fed the same ones.

On Linux the process is started with an allocator that keeps freed memory. glibc otherwise hands the top of its heap
back to the system whenever 8 MB of it are free, and arrays of some megabytes then page-fault anew at every step, or
not, as the layout of the heap will have it: up to a tenth of a step of the mid MLP, in the hand-written loop as in any
other. ``--allocator system`` leaves it as it is; the column ``faults`` counts the page faults of a step.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.models.bench import Bench, Size, Variant

Clock = Callable[[], float]
PACKAGES = (
    *("loopcore", "numpy", "autograd", "torch", "jax", "optax", "tensorflow-cpu", "keras"),
    *("pytorch-ignite", "lightning", "skorch"),
)
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}  # read when a process starts
SIZES = (Size("small", (64, 128, 10), 64, 200, 100), Size("mid", (784, 1024, 1024, 10), 256, 10, 100))
BACKENDS = {name: f"benchmarks.models.{name}_loops" for name in ("torch", "jax", "tensorflow", "numpy")}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_PLACES = ("BackwardEnd", "LossBegin", "BackwardBegin", "all three")
LISTENERS = tuple(f"{kind} at {name}" for kind in ("listener", "writer") for name in _PLACES)
TARGETS = {
    ("torch", "small"): {"loopcore bare": 1.03, "loopcore default": 1.12},
    ("torch", "mid"): {"loopcore bare": 1.01, "loopcore default": 1.02},
    ("jax", "small"): {
        "loopcore bare": 1.05,
        "loopcore default": 1.20,
        "loopcore bare, NumPy batches": 1.15,
        "loopcore default, NumPy batches": 1.30,
        **dict(zip(LISTENERS, (3, 4, 4, 4) * 2, strict=True)),
    },
    ("jax", "mid"): {
        **{"loopcore bare": 1.01, "loopcore default": 1.02},
        **{"loopcore bare, NumPy batches": 1.01, "loopcore default, NumPy batches": 1.02},
        **dict(zip(LISTENERS, (1.25, 1.2, 1.2, 1.2) * 2, strict=True)),
    },
    ("tensorflow", "small"): {"loopcore bare": 1.03, "loopcore default": 1.15},
    ("tensorflow", "mid"): {"loopcore bare": 1.01, "loopcore default": 1.02},
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.allocator == "keep" and sys.platform == "linux" and not ALLOCATOR.items() <= os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # read when the framework is imported
    module = importlib.import_module(BACKENDS[options.backend])
    results: dict[str, Any] = {}
    for size in SIZES:
        if options.size not in (size.name, "both"):
            continue
        rounds = options.rounds or (size.rounds // 10 if options.quick else size.rounds)
        bench: Bench = module.bench(size, options.threads, options.only)
        for reason in bench.absent:
            print(f"left out: {reason}", file=sys.stderr)
        targets = TARGETS.get((options.backend, size.name), {})
        results[size.name] = measure(bench, size, rounds, targets, CLOCKS[options.clock])
        show(options.backend, size, results[size.name], options.threads)
    if options.json:
        write(options.json, report(options, results))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="torch")
    parser.add_argument("--size", choices=[*(size.name for size in SIZES), "both"], default="both")
    parser.add_argument("--threads", type=int, default=1, help="of the framework; default 1")
    parser.add_argument("--rounds", type=int, help="blocks of each variant")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: where others use the machine too")
    parser.add_argument("--allocator", choices=("keep", "system"), default="keep", help="keep: freed memory, see above")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds: a look, not a result")
    parser.add_argument("--only", default="", help="only variants whose name contains this (and the raw loop)")
    parser.add_argument("--json", type=Path, help="where to write the results")
    return parser.parse_args(arguments)


def measure(bench: Bench, size: Size, rounds: int, targets: dict[str, float], clock: Clock) -> dict[str, Any]:
    """Run all variants in turn; medians of the ratios to the first one, or to the one that a variant names."""
    block = [bench.batches[index % len(bench.batches)] for index in range(size.block)]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in bench.variants}
    faults = dict.fromkeys(seconds, 0)
    with ExitStack() as stack:
        for variant in bench.variants:
            stack.callback(variant.close)
            variant.block(block)
            variant.block(block)
        gc.collect()
        for order in rotations(bench.variants, rounds):
            for variant in order:
                before, began = page_faults(), clock()
                variant.block(block)
                seconds[variant.name].append(clock() - began)
                faults[variant.name] += page_faults() - before
    first = bench.variants[0].name
    against = {variant.name: variant.against or first for variant in bench.variants}
    rows: dict[str, dict[str, Any]] = {}
    for name, taken in seconds.items():
        rows[name] = summary(taken, seconds[against[name]], size.block)
        if against[name] != first:
            rows[name]["against"] = against[name]
        rows[name]["page_faults_per_step"] = round(faults[name] / (rounds * size.block), 1)
        if name in targets:
            rows[name]["target"] = targets[name]
    return {
        "widths": size.widths,
        "batch": size.batch,
        "rounds": rounds,
        "steps_per_block": size.block,
        "variants": rows,
        "left_out": list(bench.absent),
    }


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def rotations(variants: Sequence[Variant], rounds: int) -> Iterator[Sequence[Variant]]:
    """Each round starts one variant later; every other time around the order is reversed, so that neighbours change."""
    for index in range(rounds):
        first = index % len(variants)
        order = [*variants[first:], *variants[:first]]
        yield order if (index // len(variants)) % 2 == 0 else order[::-1]


def summary(taken: Sequence[float], yardstick: Sequence[float], steps: int) -> dict[str, Any]:
    """Median ratio with its 95 % interval (order statistics), and microseconds a step."""
    ratios = sorted(mine / raw for mine, raw in zip(taken, yardstick, strict=True))
    reach = 0.98 * math.sqrt(len(ratios))
    low = ratios[max(0, math.floor(len(ratios) / 2 - reach))]
    high = ratios[min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach))]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95": [round(low, 4), round(high, 4)],
        "us_per_step": round(statistics.median(taken) / steps * 1e6, 2),
        "us_per_step_best": round(min(taken) / steps * 1e6, 2),
    }


def show(backend: str, size: Size, result: dict[str, Any], threads: int) -> None:
    from rich.console import Console
    from rich.table import Table

    shape = "-".join(map(str, size.widths))
    table = Table(
        title=f"{backend}, {size.name} MLP {shape}, batch {size.batch}, {threads} thread(s)", title_justify="left"
    )
    for name in ("variant", "ratio", "95 %", "target", "us a step", "best", "faults"):
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for name, row in result["variants"].items():
        low, high = row["ratio_95"]
        target = row.get("target")
        met = "" if target is None else f"<= {target} {'met' if row['ratio'] <= target else 'missed'}"
        times = (f"{row['us_per_step']:.1f}", f"{row['us_per_step_best']:.1f}", f"{row['page_faults_per_step']:.0f}")
        table.add_row(name, f"{row['ratio']:.3f}", f"{low:.3f}-{high:.3f}", met, *times)
    Console(width=120).print(table)


def report(options: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "overhead",
        "backend": options.backend,
        "threads": options.threads,
        "clock": options.clock,
        "allocator": options.allocator,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": dict(versions()),
        "sizes": results,
    }


def versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            if package in sys.modules:
                yield package, str(sys.modules[package].__version__)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
