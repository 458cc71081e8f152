"""Whether a change costs speed: two checkouts, measured in turn.

    git worktree add ../before v0.1
    python -m benchmarks.checkouts --before ../before --backend torch

Each checkout has a process of its own, which trains the variants of `benchmarks.overhead` as that checkout has them.
The two take turns block by block, so that whatever slows the machine down for a while slows both; only one runs at a
time. The table shows the median of after/before with its 95 % interval for each variant. The hand-written loop is the
same in both: its row shows how far from 1 chance takes a ratio, with two processes that lay out memory differently.
``--pairs`` starts that many pairs of processes one after the other, which averages that out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import overhead

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("raw", "loopcore bare", "loopcore default")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    results: dict[str, Any] = {}
    for size in overhead.SIZES:
        if options.size not in (size.name, "both"):
            continue
        rounds = options.rounds or size.rounds
        seconds: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.pairs):
            measure(options, size.name, rounds // options.pairs, seconds)
        rows = {
            name: overhead.summary([after for _, after in both], [before for before, _ in both], size.block)
            for name, both in seconds.items()
        }
        results[size.name] = {"rounds": rounds, "pairs": options.pairs, "variants": rows}
        for name, row in rows.items():
            low, high = row["ratio_95"]
            print(f"{options.backend} {size.name:5} {name:32} {row['ratio']:.3f}  {low:.3f}-{high:.3f}", flush=True)
    if options.json:
        overhead.write(options.json, {**overhead.report(options, results), "benchmark": "checkouts"})
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkouts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="default: this one")
    parser.add_argument("--backend", choices=sorted(overhead.BACKENDS), default="torch")
    parser.add_argument("--size", choices=("small", "mid", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="blocks of each variant, over all pairs")
    parser.add_argument("--pairs", type=int, default=3, help="of processes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(overhead.CLOCKS), default="wall")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="by their names in benchmarks.overhead")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args(arguments)
    options.allocator = "keep"
    return options


def measure(options: argparse.Namespace, size: str, rounds: int, seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Let one pair of processes take turns."""
    before, after = (start(options, checkout, size) for checkout in (options.before, options.after))
    names = [name for name in before.names if name in after.names]
    for number in range(rounds):
        for name in names:
            first, second = (before, after) if number % 2 else (after, before)
            taken = {first: first.block(name)}
            taken[second] = second.block(name)
            seconds.setdefault(name, []).append((taken[before], taken[after]))
    for worker in (before, after):
        worker.process.communicate("", timeout=60)


class Worker:
    """The process of a checkout: it is told the name of a variant, runs a block of it and says the seconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.names: list[str] = json.loads(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit("a checkout's process ended: what it printed is above")
        return line

    def block(self, name: str) -> float:
        """Run a block of a variant."""
        if self.process.stdin:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        return float(self._line())


def start(options: argparse.Namespace, checkout: Path, size: str) -> Worker:
    paths = [str(checkout.resolve()), str(checkout.resolve() / "backends")]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
    environment = {**os.environ, **overhead.ALLOCATOR, **threads, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", __file__, options.backend, size, str(options.threads), options.clock]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, *options.variants], env=environment, cwd=checkout, stdin=pipe, stdout=pipe, text=True
    )
    return Worker(process)


def work(backend: str, size: str, threads: str, name_of_clock: str, *wanted: str) -> None:
    """What the process of a checkout does."""
    answers, sys.stdout = sys.stdout, sys.stderr
    of_size = next(one for one in overhead.SIZES if one.name == size)
    bench = importlib.import_module(overhead.BACKENDS[backend]).bench(of_size, int(threads), "")
    blocks = {variant.name: variant.block for variant in bench.variants if variant.name in wanted}
    batches = [bench.batches[index % len(bench.batches)] for index in range(of_size.block)]
    clock = overhead.CLOCKS[name_of_clock]
    for block in blocks.values():
        block(batches)
        block(batches)
    print(json.dumps(list(blocks)), file=answers, flush=True)
    for line in sys.stdin:
        began = clock()
        blocks[line.rstrip("\n")](batches)
        print(clock() - began, file=answers, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in overhead.BACKENDS:
        work(*sys.argv[1:])
    else:
        sys.exit(main())
