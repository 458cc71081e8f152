"""The examples belong to no framework, are as short as they say, and at a small scale do what they say."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loopcore as lc
from examples import common, custom_step
from loopcore.testing.plugin import chosen

EXAMPLES = Path(common.__file__).parent
LOOPS = sorted(EXAMPLES.glob("*.py"))
FRAMEWORKS = {"torch", "jax", "jaxlib", "flax", "optax", "tensorflow", "keras", "autograd"}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a backend runs on every one that is installed, or on those of ``--backend``."""
    if "native" in metafunc.fixturenames:
        metafunc.parametrize("native", chosen(metafunc.config), indirect=True)


@pytest.fixture
def native(request: pytest.FixtureRequest) -> Any:
    """The native models of one framework."""
    return common.models(request.param)


def last(learner: lc.Learner, name: str) -> float:
    """The last epoch's value of a metric."""
    return float(learner.history[name][-1] or 0.0)


def plan_of(learner: lc.Learner) -> list[str]:
    """How the steps of each phase ran, as `Learner.explain` says."""
    return re.findall(r"^  plan: (\w+)", learner.explain(), re.MULTILINE)


# ---- one text for every framework


def alien(source: str) -> list[str]:
    """What makes a source depend on a framework: its imports, and choices by the name of a backend."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.partition(".")[0] in FRAMEWORKS]
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Match)):
            test = ast.unparse(node.subject if isinstance(node, ast.Match) else node.test)
            found += [f"if {test}"] if re.search(r"backend|framework|" + "|".join(sorted(FRAMEWORKS)), test) else []
    return found


@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.name)
def test_a_loop_imports_no_framework_and_asks_for_no_backend(path: Path) -> None:
    assert alien(path.read_text(encoding="utf-8")) == []


def test_a_dependence_on_a_framework_is_noticed() -> None:
    assert alien("import torch.nn as nn\nfrom jax import numpy") == ["import torch.nn", "import jax"]
    assert alien("x = 1 if learner.backend.name == 'jax' else 2") == ["if learner.backend.name == 'jax'"]
    assert alien("import numpy\nif epochs > 3: pass") == []


# ---- the custom step of Keras's guide


def code_lines(*parts: Any) -> int:
    """Lines with code of these functions and classes: not blank, no comment, no docstring, no import."""
    return sum(lines_of(inspect.getsource(part)) for part in parts)


def lines_of(source: str) -> int:
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        doc = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        gone = [node.body[0]] if doc else []  # type: ignore[attr-defined]
        gone += [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        for one in gone:
            skipped.update(range(one.lineno, (one.end_lineno or one.lineno) + 1))
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in NO_CODE]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - skipped)


def test_lines_are_counted_as_the_example_says() -> None:
    assert (
        lines_of(
            '"""Doc\n\nof two."""\nimport a\n\n# words\nx = f(\n    1,\n)  # words\n\ndef g():\n    "doc"\n    y = 2\n'
        )
        == 5
    )
    assert lines_of('text = """a\n\nb"""\n') == 3


def test_the_custom_step_is_as_short_as_it_says() -> None:
    step, whole = re.findall(r"the step is (\d+) lines, and (\d+) with", " ".join(str(custom_step.__doc__).split()))[0]
    assert code_lines(custom_step.CustomStep) == int(step)
    assert code_lines(custom_step.CustomStep, custom_step.train) == int(whole) < 20


def test_the_custom_step_fits(native: Any) -> None:
    data = common.diabetes()
    learner = custom_step.train(native.regressor(10), lc.data.batches(data, 32, shuffle=True), 20)
    assert list(learner.history) == ["loss", "mae"] and len(learner.history["mae"]) == 20
    assert last(learner, "mae") < 0.6
    assert plan_of(learner) == ["fused" if learner.backend.compiles else "eager"]
    np.testing.assert_allclose(np.mean(np.abs(data["y"])), 0.85, atol=0.01)
