"""Run the tests: ``python tests/all.py [--all | --rest] [pytest options]``.

It runs the quick tier, some tests of each file on each backend; ``--rest`` runs what that leaves out, and ``--all``
every test. `tests.tier` says which tests are in the quick tier.

Each framework has pytest processes of its own, since several in one take longer to import than to test; as many run at
once as there are cores, at most four. The process of NumPy also runs the tests of the core and the examples in
docstrings. Tests of another framework's adapter are in a folder named after it, ``tests/torch_adapter/``; those that
need several frameworks, in ``tests/frameworks/``, have a process too. The last line adds everything up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = "numpy"
SEVERAL = "frameworks"
FRAMEWORKS = ("jax", "tensorflow", "torch", CORE, SEVERAL)  # what takes longest comes first
COMPILING = ("jax", "tensorflow")
KERAS = ("torch", "jax")  # where the suite is run again, with models of Keras; those of TensorFlow are of Keras anyway
COMPILED = "random_bodies"
SLOW = "test_gradient or test_handlers or test_update or test_loop_cancel or test_callbacks_each"  # half the time
MODELS = "test_gradient or test_models or test_forward or test_loop_carry or test_trajectory"


def selections(framework: str, tier: str = "all") -> list[list[str]]:
    """What pytest shall run in each process of a framework.

    The quick tier of a framework fits into fewer processes, of which each has to import it.
    Compiled programs take memory maps as long as their process lives, and a process may have so many: the random step
    bodies, which are compiled for every case, have one of their own.
    """
    folders = {name: str(ROOT / "tests" / (name if name == SEVERAL else f"{name}_adapter")) for name in FRAMEWORKS}
    conformance = ["--pyargs", "loopcore.testing.conformance", "--backend", framework]
    examples = str(ROOT / "tests" / "test_examples.py")  # with the models of each framework
    if framework == SEVERAL:
        return [[folders[framework]]]
    part = ["-k", MODELS] if framework in COMPILING else []  # where nothing is compiled, all of it takes half a minute
    neutral = [*conformance, "--models", "neutral", *part]  # once more, with models that belong to no framework
    if framework == CORE:
        others = [f"--ignore={folder}" for name, folder in folders.items() if name != CORE]
        others.append(f"--ignore={ROOT / 'tests' / 'keras_adapter'}")  # what the tests of several frameworks import
        return [["--doctest-modules", "loopcore", "tests", *others, *conformance], neutral]
    slow = [*conformance, "-k", f"({SLOW}) and not {COMPILED}"]
    rest = [examples, *conformance, "-k", f"not ({SLOW} or {COMPILED})"]
    keras = [[*conformance, "--models", "loopcore_keras", "-k", f"({MODELS}) and not (split or eager)"]]
    compiled = [[*conformance, "-k", COMPILED]] if framework in COMPILING else []
    suite = [[examples, *conformance]] if tier == "quick" else [slow, rest, *compiled]
    return [*suite, neutral, [folders[framework]], *(keras if framework in KERAS else [])]


def settings(framework: str, cache: str) -> dict[str, str]:
    """Environment variables of a framework's processes."""
    return {
        "KERAS_BACKEND": "tensorflow" if framework in (CORE, SEVERAL) else framework,
        "LOOPCORE_REQUIRE_BACKENDS": "" if framework == SEVERAL else framework,  # where it is absent, tests fail
        # Many tests compile the same small programs, which takes JAX two thirds of its time.
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run(framework: str, selection: list[str], options: list[str], cache: str) -> Counter[str]:
    """Run one process and print what it said; its counts, where a process that broke counts as a failure."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options, *selection]
        environment = {**os.environ, **settings(framework, cache)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        counts = read(report) if report.exists() else Counter[str]()
    counts["failed"] += bool(done.returncode and not counts["failed"])
    shown = " ".join(part.removeprefix(f"{ROOT}/") for part in selection if not part.startswith("--ignore"))
    print(f"== {framework}: {shown}\n{done.stdout.rstrip()}\n({time.monotonic() - start:.0f} s)\n", flush=True)
    return counts


def read(report: Path) -> Counter[str]:
    """The counts of a JUnit report."""
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(report).iter("testsuite"):
        tests, failures, errors, skipped = (
            int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
        )
        counts += Counter(passed=tests - failures - errors - skipped, failed=failures + errors, skipped=skipped)
    return counts


def main(options: list[str]) -> int:
    """Run all processes; returns the exit code."""
    tier = "all" if "--all" in options else "rest" if "--rest" in options else "quick"
    options = [*(option for option in options if option not in ("--all", "--rest")), "-p", "tests.tier", "--tier", tier]
    jobs = [(framework, selection) for framework in FRAMEWORKS for selection in selections(framework, tier)]
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda job: run(job[0], job[1], options, cache), jobs))
    for framework in FRAMEWORKS:
        counts = sum((count for (name, _), count in zip(jobs, found, strict=True) if name == framework), Counter[str]())
        print(f"{framework}: {', '.join(f'{counts[k]} {k}' for k in sorted(counts))}")
    total = sum(found, Counter[str]())
    print(f"{total['passed']} passed, {total['failed']} failed")
    return int(total["failed"] > 0 or total["passed"] == 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
