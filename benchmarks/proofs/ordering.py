"""Prove the order of callbacks on random sets, and leave the counts in ``ordering.json`` beside this file.

Every set is compared with the oracle of ``tests/ordering/test_random_sets.py``: up to six callbacks with all
permutations, larger ones with a naive selection. Each is ordered again from other orders of its list. A reported cycle
must consist of edges that the oracle has too, and be a shortest one. As many sets run in interpreters with other hash
seeds.

Usage: python benchmarks/proofs/ordering.py [--sets 100000]
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

SEED = 20_240_601
SHUFFLES = 5
HASH_SEEDS = 20
HASHED_SETS = 100_000
HERE = Path(__file__).resolve().parent


def prove(tests: Any, sets: int) -> dict[str, Any]:
    """Check random sets. The counts are of sets that agree: an AssertionError names the first that does not.

    Args:
        tests: the module with the generator and the oracle.
        sets: how many.
    """
    outcomes: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    list_orders = 0
    for number in range(sets):
        rng = Random(f"{SEED}-{number}")
        case = tests.random_case(rng)
        try:
            outcome = tests.check(case, rng, SHUFFLES)
        except AssertionError as error:
            error.add_note(f"set {number} of seed {SEED}")
            raise
        outcomes[outcome] += 1
        list_orders += SHUFFLES
        if outcome in ("ordered", "CycleError"):  # the oracle rejects the other sets before it looks for an order
            compared["all permutations" if len(case.callbacks) <= 6 else "naive selection"] += 1
        else:
            compared["the expected error alone"] += 1
    return {
        "sets": sets,
        "outcomes": dict(sorted(outcomes.items())),
        "cycles_verified": outcomes["CycleError"],
        "compared_with": dict(sorted(compared.items())),
        "other_list_orders_compared": list_orders,
    }


def hash_seeds(tests: Any) -> dict[str, Any]:
    """Compare what comes out between interpreters with other PYTHONHASHSEEDs."""
    found = {tests.digest(SEED, HASHED_SETS), *tests.digests(SEED, HASHED_SETS, range(HASH_SEEDS))}
    assert len(found) == 1, found
    return {"sets": HASHED_SETS, "hash_seeds": HASH_SEEDS, "different_results": len(found), "sha256": found.pop()}


def main() -> None:
    """Run the proof and write the JSON."""
    parser = argparse.ArgumentParser(description="Prove the order of callbacks on random sets.")
    parser.add_argument("--sets", type=int, default=100_000)
    sets = parser.parse_args().sets
    sys.path.insert(0, str(HERE.parents[1]))
    tests = importlib.import_module("tests.ordering.test_random_sets")
    start = time.perf_counter()
    report: dict[str, Any] = {
        "seed": SEED,
        "versions": {"python": platform.python_version(), "implementation": platform.python_implementation()},
        **prove(tests, sets),
        "hash": hash_seeds(tests),
    }
    report["seconds"] = round(time.perf_counter() - start, 1)
    (HERE / "ordering.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
