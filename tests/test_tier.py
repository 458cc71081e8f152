"""The quick tier has something of every file and every value; what it leaves out is the rest."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.tier import HALVES, LONG, PLAN, SAMPLES, chosen, files

HERE = Path(__file__).parent
SUITE = HERE.parent / "loopcore" / "testing" / "conformance"
PLANS = ("mine", "mine-split", "mine-eager")
SELECTIONS: Callable[..., list[list[str]]] = runpy.run_path(str(HERE / "all.py"))["selections"]


def cases(name: str, **values: range) -> list[tuple[str, dict[str, str]]]:
    """A test function in every plan, with every combination of its parameters."""
    return [
        (f"a.py::{name}[{plan}-{numbers}]", {PLAN: plan, **dict(zip(values, map(str, numbers), strict=True))})
        for plan in PLANS
        for numbers in product(*values.values())
    ]


def picked(tests: list[tuple[str, dict[str, str]]]) -> list[dict[str, str]]:
    return [tests[place][1] for place in sorted(chosen(tests))]


def test_a_function_without_parameters_runs_in_one_plan() -> None:
    assert len(picked(cases("test_one"))) == 1
    assert {picked(cases(f"test_{number}"))[0][PLAN] for number in range(20)} == set(PLANS)


def test_every_value_of_each_parameter_runs_but_not_every_combination() -> None:
    found = picked(cases("test_one", event=range(5), size=range(4)))
    assert {one["event"] for one in found} == set("01234") and {one["size"] for one in found} == set("0123")
    assert {one[PLAN] for one in found} == set(PLANS) and len(found) <= 8 < 5 * 4 * 3


def test_of_some_parameters_other_values_run_in_each_function() -> None:
    found = [picked(cases(f"test_{number}", kind=range(30))) for number in range(20)]
    assert {len(one) for one in found} == {SAMPLES["kind"]}
    assert {values["kind"] for one in found for values in one} == set(map(str, range(30)))


def test_each_backend_that_compiles_runs_one_half() -> None:
    names = [f"a.py::test_{number}" for number in range(40)]
    jax, tensorflow = (chosen([(name, {PLAN: f"'{one}'"}) for name in names]) for one in HALVES)
    assert jax.isdisjoint(tensorflow) and len(jax | tensorflow) == 40 and 10 < len(jax) < 30


def test_with_other_models_one_case_is_enough() -> None:
    assert len(chosen(cases("test_one", event=range(5)), again=True)) == 1


def test_what_is_chosen_of_a_function_does_not_depend_on_the_others() -> None:
    """Each tier may run in processes of its own."""
    one, other = cases("test_one", event=range(7), seed=range(30)), cases("test_other", size=range(3))
    both = {tests[place][0] for tests in (one, other) for place in chosen(tests)}
    assert {[*other, *one][place][0] for place in chosen([*other, *one])} == both


def test_what_takes_long_is_there() -> None:
    defined = "".join(path.read_text(encoding="utf-8") for path in (*HERE.rglob("test_*.py"), *SUITE.glob("test_*.py")))
    assert set(re.findall(r"^def (test_\w+)", defined, re.MULTILINE)) >= LONG


@pytest.mark.parametrize("framework", ["jax", "tensorflow", "torch", "numpy", "frameworks"])
def test_each_tier_of_a_framework_has_its_files(framework: str) -> None:
    """And no process but those of the suite may be left out of the quick tier."""
    quick, everything = ({tuple(one) for one in SELECTIONS(framework, tier)} for tier in ("quick", "rest"))
    assert {path for one in quick for path in one} >= {
        path for one in everything for path in one if path.startswith(str(HERE))
    }
    suite = {one for one in everything - quick if "loopcore.testing.conformance" in one}
    assert everything - quick == suite and len(quick - everything) == (1 if suite else 0)


def test_both_tiers_are_all_tests_and_the_quick_one_has_every_file() -> None:
    """The plugin refuses a quick tier without a test of some file, on every backend."""
    code = """
import sys, pytest
class Collected:
    def pytest_collection_finish(self, session):
        print(*("::" + item.nodeid for item in session.items), sep="\\n")
for tier in ("quick", "rest", "all"):
    print("tier", tier)
    pytest.main(["--collect-only", "-qq", "-p", "tests.tier", "--tier", tier, *sys.argv[1:]], [Collected()])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", code, "--pyargs", "loopcore.testing.conformance", "--backend", "numpy"]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=100)
    quick, rest, everything = (re.findall(r"^::(.+)$", part, re.MULTILINE) for part in done.stdout.split("tier ")[1:])
    assert sorted(quick + rest) == sorted(everything) and len(everything) > 1000
    assert len(files(everything)) > 30 and files(quick) == files(everything)


def test_a_quick_tier_that_forgets_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_forgotten.py").write_text(f"def {min(LONG)}():\n    pass\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tier", "--tier", "quick", "test_forgotten.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode and "the quick tier has no test of test_forgotten.py" in done.stdout + done.stderr
