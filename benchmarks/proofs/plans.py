"""Fused, split and eager steps compute the same: random bodies with random handlers.

    python -m benchmarks.proofs.plans --backend jax --json benchmarks/proofs/plans.json

Each case is a random body (one or several gradients, nested ones, two models, a loop of updates, values in locals)
with random host and traced handlers that read and rewrite step values. It runs by the plan that follows from its
handlers, and again eagerly; weights, the values that handlers saw and the order of the events have to agree.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from loopcore.testing.conformance.plans import make_case, run_case
from loopcore.testing.conformance.subject import subject

TOLERANCE = 1e-4  # relative to the largest entry
SHARE = 100  # cases of one process: compiled programs stay in memory as long as it lives


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proofs.plans", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first case; the tests have 0 to 99")
    parser.add_argument("--processes", type=int, default=1, help="at a time")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    last = options.first + options.cases
    seeds = [range(first, min(first + SHARE, last)) for first in range(options.first, last, SHARE)]
    bodies, cuts, failed, worst = Counter[str](), 0, list[int](), 0.0
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        for found in pool.map(partial(prove, options.backend), seeds):
            bodies += found[0]
            cuts, failed, worst = cuts + found[1], failed + found[2], max(worst, found[3])
    result = {
        "proof": "plans",
        "backend": options.backend,
        "cases": options.cases,
        "first_seed": options.first,
        "by_body": dict(sorted(bodies.items())),
        "host_handlers_called_within_steps": cuts,
        "tolerance": TOLERANCE,
        "largest_difference": float(f"{worst:.3g}"),
        "failed": failed,
        "seconds": round(time.monotonic() - began),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("numpy", options.backend)},
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(bool(failed))


def prove(name: str, seeds: Sequence[int]) -> tuple[Counter[str], int, list[int], float]:
    """Run some cases: how many of each body, how many host handlers were called, which failed, and how far off."""
    warnings.simplefilter("ignore")  # handlers of events that a body does not fire, values replaced in objectives
    backend = subject(name)
    bodies, cuts, failed, worst = Counter[str](), 0, list[int](), 0.0
    for seed in seeds:
        case = make_case(seed)
        weights, seen = run_case(backend, case)
        expected, heard = run_case(backend, case, compile=False)
        off = max(distance(weights, expected), distance(seen, heard))
        worst = max(worst, off)
        bodies[case.body] += 1
        cuts += sum(entry[0] not in ("step", "StepBegin", "StepEnd") for entry in seen)
        if off > TOLERANCE:
            failed.append(seed)
            print(f"case {seed} differs by {off:.2g}: {case}", file=sys.stderr)
    return bodies, cuts, failed, worst


def distance(mine: Any, others: Any) -> float:
    """Largest difference relative to the largest entry; infinite where the structure differs."""
    if isinstance(others, dict):
        if mine.keys() != others.keys():
            return float("inf")
        return max((distance(mine[name], others[name]) for name in others), default=0.0)
    if isinstance(others, (list, tuple)):
        if len(mine) != len(others):
            return float("inf")
        return max((distance(a, b) for a, b in zip(mine, others, strict=True)), default=0.0)
    if not isinstance(others, np.ndarray):
        return 0.0 if mine == others else float("inf")
    scale = max(1.0, float(np.max(np.abs(others), initial=0.0)))
    return float(np.max(np.abs(mine - others), initial=0.0)) / scale


if __name__ == "__main__":
    sys.exit(main())
