"""The documentation runs: every Python block is executed, and the output that is printed below it is what comes out."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest

import loopcore as lc
from loopcore import registry
from loopcore.backend import Backend

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = ("carrying-weights.md",)  # test_frameworks_agree.py runs it: it needs several frameworks
PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ELSEWHERE)]
BLOCK = re.compile(r"^```(python|text)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, name: str, frameworks: tuple[str, ...] = ()) -> int:
    """Execute the Python blocks of a page in one namespace; returns how many. A text block is the output before it.

    A block that says `python torch` runs where that framework is among those asked for.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed, count = "", 0
    for block in BLOCK.finditer(text):
        language, framework, content = block.groups()
        if framework and framework not in frameworks:
            continue
        line = text.count("\n", 0, block.start(3))
        if language == "text":
            assert matches(content, printed), f"{name}:{line} shows\n{content}\nbut this was printed:\n{printed}"
            continue
        with redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * line + content, name, "exec"), namespace)  # tracebacks have the lines of the page
        printed, count = out.getvalue(), count + 1
    return count


def matches(expected: str, printed: str) -> bool:
    """Compare as doctest does, but for line breaks, which make long messages readable, and for seconds."""
    expected, printed = (re.sub(r"\d+\.\d s\b", "0.0 s", text) for text in (expected, printed))
    return OutputChecker().check_output(expected, printed, NORMALIZE_WHITESPACE | ELLIPSIS)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_python_block_of_a_page_runs(path: Path) -> None:
    count = run(path.read_text(encoding="utf-8"), str(path))
    assert count or path.name == "reference.md"


def test_a_wrong_output_is_noticed() -> None:
    with pytest.raises(AssertionError, match="shows"):
        run("```python\nprint(1)\n```\n\n```text\n2\n```\n", "page")
    with pytest.raises(ZeroDivisionError):
        run("```python\n1 / 0\n```\n", "page")
    assert run("```python torch\n1 / 0\n```\n\n```text torch\n2\n```\n", "page") == 0
    with pytest.raises(ZeroDivisionError):
        run("```python torch\n1 / 0\n```\n", "page", frameworks=("torch",))
    assert run("```python\nprint('epoch 1: 0.3 s')\n```\n\n```text\nepoch 1: 0.1 s\n```\n", "page") == 1


@pytest.mark.parametrize("name", lc.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"\bloopcore\.{name}\b", page("reference.md"))


@pytest.mark.parametrize("module", [lc.data, lc.testing], ids=lambda module: module.__name__)
def test_every_name_of_a_public_module_is_in_the_reference(module: Any) -> None:
    absent = [name for name in module.__all__ if not re.search(rf"\b{module.__name__}\.{name}\b", page("reference.md"))]
    assert not absent


def test_every_loss_is_in_the_reference() -> None:
    losses = [name for name in dir(registry.load("numpy").losses) if not name.startswith("_")]
    assert losses
    assert not [name for name in losses if f"loopcore.losses.{name}\n" not in page("reference.md")]


def test_every_method_of_the_protocol_is_on_its_page() -> None:
    listed = set(re.findall(r"automethod:: loopcore\.backend\.Backend\.(\w+)", page("write-a-backend.md")))
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert listed == methods


def test_the_list_of_array_functions_is_the_one_that_exists() -> None:
    section = page("write-a-phase.md").partition("## Array functions")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| (.*) \|$", section, re.MULTILINE)
    listed = {name.partition(".")[0] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert listed == {name for name in dir(lc.testing.toy_learner().xp) if not name.startswith("_")}
