"""Run every test: ``python tests/all.py [pytest options]``.

Each framework has pytest processes of its own, since several in one take longer to import than to test. The process of
NumPy also runs the tests of the core and the examples in docstrings. Tests of another framework's adapter are named
after it, ``test_torch*.py``. The last line adds everything up.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = "numpy"
FRAMEWORKS = (CORE, "torch", "jax", "tensorflow")
COMPILED = "random_bodies"


def selections(framework: str) -> list[list[str]]:
    """What pytest shall run in each process of a framework.

    Compiled programs take memory maps as long as their process lives, and a process may have so many: the random step
    bodies, which are compiled for every case, have one of their own.
    """
    conformance = ["--pyargs", "loopcore.testing.conformance", "--backend", framework]
    examples = str(ROOT / "tests" / "test_examples.py")  # with the models of each framework
    named = {name: sorted(map(str, (ROOT / "tests").glob(f"test_{name}*.py"))) for name in FRAMEWORKS}
    if framework != CORE:
        rest = [examples, *conformance, "-k", f"not {COMPILED}"]
        return [named[framework], rest, [*conformance, "-k", COMPILED]]
    others = [f"--ignore={path}" for name in FRAMEWORKS if name != CORE for path in named[name]]
    return [["--doctest-modules", "loopcore", "tests", *others, *conformance]]


def run(selection: list[str], options: list[str]) -> Counter[str]:
    """Run one process; its counts, where a process that broke counts as a failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options, *selection]
        code = subprocess.run(command, cwd=ROOT).returncode
        counts = read(report) if report.exists() else Counter[str]()
    counts["failed"] += bool(code and not counts["failed"])
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
    total: Counter[str] = Counter()
    for framework in FRAMEWORKS:
        start = time.monotonic()
        counts = sum((run(selection, options) for selection in selections(framework)), Counter[str]())
        total += counts
        seconds = time.monotonic() - start
        print(f"{framework}: {', '.join(f'{counts[k]} {k}' for k in sorted(counts))} in {seconds:.0f} s\n", flush=True)
    print(f"{total['passed']} passed, {total['failed']} failed")
    return int(total["failed"] > 0 or total["passed"] == 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
