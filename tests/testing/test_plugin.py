"""The pytest plugin, from outside: pytest runs in a process and a folder of its own."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

# Hides packages from a process as if they were not installed, and runs pytest in it.
RUN = """
import importlib.machinery as machinery, sys

blocked, find = {blocked!r}, machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in blocked else find(name, *rest)
)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
SUITE = "loopcore.testing.conformance"
BOTH = "def test_name(backend):\n    assert backend.name in ('numpy', 'torch')\n"
Blocked = tuple[str, ...]
ALL = ("torch", "jax", "tensorflow")  # every framework but NumPy


class Done(NamedTuple):
    """How a pytest process ended."""

    code: int
    text: str

    @property
    def counts(self) -> Counter[str]:
        """``2 passed, 1 skipped in 0.1s`` -> counts."""
        last = self.text.strip().splitlines()[-1]
        return Counter({word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0])})


Inner = Callable[..., Done]


@pytest.fixture
def inner(tmp_path: Path) -> Inner:
    """Run pytest on the command line ``arguments`` in an empty folder, with the given text as ``test_own.py`` in it."""

    def run(*arguments: str, own: str = "", blocked: Blocked = (), require: str = "") -> Done:
        if own:
            (tmp_path / "test_own.py").write_text(own, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPCORE", "PYTEST"))}
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        if require:
            environment["LOOPCORE_REQUIRE_BACKENDS"] = require
        code = RUN.format(blocked=blocked)
        command = [sys.executable, "-c", code, "-q", "-rs", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        return Done(done.returncode, done.stdout + done.stderr)

    return run


def ids(done: Done) -> set[str]:
    return set(re.findall(r"\[(\w+)", done.text))


# -- which backends are tested


@pytest.mark.parametrize("options", [("--backend", "numpy"), ("--backend=numpy",)], ids=["two words", "one word"])
def test_the_backend_that_was_asked_for_is_tested(inner: Inner, options: tuple[str, ...]) -> None:
    done = inner("--pyargs", f"{SUITE}.test_tree", *options)
    assert done.code == 0 and set(done.counts) == {"passed"} and done.counts["passed"] > 10


@pytest.mark.parametrize("options", [("--backend", "numpy,torch"), ("--backend", "numpy", "--backend", "torch")])
def test_several_backends(inner: Inner, options: tuple[str, ...]) -> None:
    assert ids(inner("--pyargs", f"{SUITE}.test_state", "--collect-only", *options)) == {"numpy", "torch"}


def test_the_whole_suite_is_collected(inner: Inner) -> None:
    done = inner("--pyargs", SUITE, "--backend", "numpy", "--backend", "jax", "--collect-only")
    folder = ROOT / "loopcore" / "testing" / "conformance"
    files = {path.name for path in folder.glob("test_*.py")} if folder.is_dir() else set()
    assert done.code == 0 and files <= set(re.findall(r"(test_\w+\.py)::", done.text))


@pytest.mark.parametrize(("option", "require"), [("tensorflw", ""), ("", "tensorflw"), ("numpy", "tensorflw")])
def test_a_name_that_is_no_backend_is_an_error(inner: Inner, option: str, require: str) -> None:
    chosen = ["--backend", option] if option else []
    done = inner("--pyargs", f"{SUITE}.test_tree", *chosen, require=require)
    assert done.code != 0 and "passed" not in done.counts
    assert "there is no backend 'tensorflw'; known are jax, numpy, tensorflow, torch" in done.text


# -- a framework that is not installed


def test_without_its_framework_a_backend_is_skipped_and_says_so(inner: Inner) -> None:
    done = inner("--pyargs", f"{SUITE}.test_tree", "--backend", "torch", blocked=("torch",))
    assert done.code == 0 and set(done.counts) == {"skipped"} and done.counts["skipped"] > 10
    assert "the torch backend needs torch, which is not installed: pip install 'loopcore[torch]'" in done.text


def test_without_its_framework_a_backend_is_not_among_the_installed(inner: Inner) -> None:
    done = inner("--pyargs", f"{SUITE}.test_state", "--collect-only", blocked=ALL)
    assert ids(done) == {"numpy"}


@pytest.mark.parametrize("options", [(), ("--backend", "torch")], ids=["all", "asked"])
def test_a_required_backend_without_its_framework_is_an_error(inner: Inner, options: tuple[str, ...]) -> None:
    done = inner("--pyargs", f"{SUITE}.test_tree", *options, blocked=ALL, require="numpy, torch")
    assert done.code == 1 and done.counts["errors"] > 10 and "skipped" not in done.counts
    assert done.counts["passed"] == (0 if options else done.counts["errors"])
    assert "loopcore[torch]" in done.text and "(LOOPCORE_REQUIRE_BACKENDS names it)" in done.text


def test_what_is_required_and_there_is_tested(inner: Inner) -> None:
    done = inner("--pyargs", f"{SUITE}.test_tree", "--backend", "numpy", require="numpy")
    assert done.code == 0 and set(done.counts) == {"passed"}


@pytest.mark.parametrize("framework", [*ALL, "numpy"])
def test_all_tests_require_the_framework_of_each_process(framework: str) -> None:
    settings: Callable[..., dict[str, str]] = runpy.run_path(str(ROOT / "tests" / "all.py"))["settings"]
    assert settings(framework, "cache")["LOOPCORE_REQUIRE_BACKENDS"] == framework


# -- tests of somebody else


def test_other_tests_are_left_alone(inner: Inner) -> None:
    """Neither the option nor a wrong variable reaches those who do not use the fixture."""
    plain = "def test_plain():\n    pass\n"
    assert inner("test_own.py", own=plain, require="tensorflw").counts == {"passed": 1}
    done = inner("test_own.py", "--backend", "x", own=plain)
    assert done.code == 4 and "unrecognized arguments: --backend" in done.text


def test_the_option_stays_free_for_everybody_else(inner: Inner, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--backend')\n")
    own = "def test_theirs(request):\n    assert request.config.getoption('backend') == 'agg'\n"
    assert inner("test_own.py", "--backend", "agg", own=own).counts == {"passed": 1}


def test_the_fixture_serves_tests_of_ones_own(inner: Inner) -> None:
    own = (
        "import pytest\nfrom loopcore.testing.conformance.problems import make_learner, mlp_weights\n"
        "def test_weights(backend, witness):\n"
        "    learner = make_learner(backend.mlp(mlp_weights()))\n"
        "    assert learner.backend.name == backend.name and witness.name == 'numpy'\n"
        "    backend.close(backend.weights(learner), mlp_weights())\n"
        "    with pytest.raises(AssertionError):\n"
        "        backend.close(backend.weights(learner), mlp_weights(1))\n"
    )
    done = inner("test_own.py", "-rp", own=own, blocked=ALL)
    assert done.code == 0 and done.counts == {"passed": 1} and "test_own.py::test_weights[numpy]" in done.text


def test_a_known_gap_must_fail(inner: Inner) -> None:
    """As an expected failure with its reason; a gap that closed fails the run."""
    own = (
        "from loopcore.testing.conformance.subject import KNOWN_GAPS\n"
        "KNOWN_GAPS['numpy', 'test_open'] = KNOWN_GAPS['numpy', 'test_closed'] = 'upstream bug 7'\n"
        "def test_open(backend):\n    assert backend.name == ''\n"
        "def test_closed(backend):\n    assert backend.name == 'numpy'\n"
    )
    done = inner("test_own.py", "-rxX", own=own, blocked=ALL)
    assert done.code == 1 and done.counts == {"xfailed": 1, "failed": 1}
    assert "[XPASS(strict)] upstream bug 7" in done.text and re.search(
        r"XFAIL .*test_open\[numpy\] - upstream", done.text
    )


# -- an adapter of somebody else

ADAPTER = """
import loopcore_numpy


class Model:
    def __init__(self, inner):
        self.inner = inner


class Backend(loopcore_numpy.Backend):
    name = "toy"

    @staticmethod
    def recognises(model):
        return isinstance(model, Model)

    def bind(self, models):
        super().bind({name: model.inner for name, model in models.items()})

    def native(self, name):
        return Model(super().native(name))
"""
NATIVE = """
from loopcore_numpy import testing
from loopcore_numpy.testing import arrays, batch_norm_correction, dtypes, is_plain, neutral
from loopcore_toy import Model


def wrapped(make):
    return lambda *args: Model(make(*args))


linear, mlp, batch_norm = map(wrapped, (testing.linear, testing.mlp, testing.batch_norm))
dropout, structured = map(wrapped, (testing.dropout, testing.structured))
"""


def offer(folder: Path, native: str | None) -> None:
    """What pip would leave of a package with an adapter: the package, and its entry point."""
    package, info = folder / "loopcore_toy", folder / "loopcore_toy-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(ADAPTER)
    if native is not None:
        (package / "testing.py").write_text(native)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loopcore-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[loopcore.backends]\ntoy = loopcore_toy:Backend\n")


def test_an_adapter_of_another_package_takes_part(inner: Inner, tmp_path: Path) -> None:
    offer(tmp_path, NATIVE)
    done = inner("--pyargs", f"{SUITE}.test_trajectory", "--backend", "toy", require="toy")
    assert done.code == 0 and set(done.counts) == {"passed"} and done.counts["passed"] > 10
    assert ids(inner("--pyargs", f"{SUITE}.test_state", "--collect-only", blocked=ALL)) == {"numpy", "toy"}


def test_a_broken_adapter_of_another_package_is_noticed(inner: Inner, tmp_path: Path) -> None:
    """The suite can fail: an optimizer that does one step too few."""
    lazy = "\n    def update(self, grads, apply):\n        return apply\n"
    offer(tmp_path, NATIVE)
    (tmp_path / "loopcore_toy" / "__init__.py").write_text(ADAPTER + lazy)
    done = inner("--pyargs", f"{SUITE}.test_trajectory", "--backend", "toy")
    assert done.code == 1 and done.counts["failed"] >= 9


@pytest.mark.parametrize(
    ("native", "said"),
    [
        (None, "write the module loopcore_toy.testing with the functions of"),
        (NATIVE.replace("dropout, structured", "dropout, other"), "loopcore_toy.testing has no structured"),
    ],
    ids=["no module", "a part is missing"],
)
def test_what_an_adapter_lacks_is_named(inner: Inner, tmp_path: Path, native: str | None, said: str) -> None:
    offer(tmp_path, native)
    done = inner("--pyargs", f"{SUITE}.test_tree", "--backend", "toy", "-k", "test_map and not path")
    assert done.code == 1 and done.counts["error"] == 1 and "passed" not in done.counts and said in done.text
