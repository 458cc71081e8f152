"""The documentation runs: every Python block is executed, and the output that is printed below it is what comes out."""

from __future__ import annotations

import io
import pkgutil
import re
from contextlib import redirect_stdout
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path
from typing import Any

import pytest

import loopcore as lc
from loopcore.backend import Backend, registry

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = ("carrying-weights.md",)  # frameworks/test_agree.py runs it: it needs several frameworks
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


def exists(dotted: str) -> bool:
    """Whether a path such as ``loopcore.data.batches`` leads to something, by modules and then by attributes."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


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


TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / name for name in ELSEWHERE)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_a_page_names_no_module_and_no_file_that_is_gone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    dotted = set(re.findall(r"(?<=[`<~ ])loopcore(?:\.\w+)+(?=[`>(]|$)", text, re.MULTILINE)) - {"loopcore.backends"}
    files = re.findall(r"(?<=`)(?:loopcore|backends|tests|tools|benchmarks|examples)/[\w./]*(?:\.py|/)(?=`)", text)
    assert [name for name in sorted(dotted) if not exists(name)] == []
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_folder_of_the_core_is_in_the_guide() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)/` \|", guide, re.MULTILINE))
    assert listed == {path.parent.name for path in (ROOT / "loopcore").glob("*/__init__.py")}


def test_the_changelog_says_nothing_twice() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = [" ".join(entry.split()) for entry in re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)]
    assert entries and len(entries) == len(set(entries))
    for version in text.split("\n## ")[1:]:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert len(sections) == len(set(sections)) and set(sections) <= {"Added", "Changed", "Fixed", "Removed"}


def test_the_readme_begins_with_what_explain_and_a_conflict_print() -> None:
    """That they are what is printed is tested above, where all blocks of the page run."""
    before_install = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[0]
    explained, conflict = (block[3] for block in BLOCK.finditer(before_install) if block[1] == "text")
    assert len([line for line in explained.splitlines() if line and line != "..."]) >= 10
    assert "callbacks, in the order in which they run:" in explained and "  plan: " in explained
    assert "nothing says which runs first" in conflict


def test_the_readme_has_short_lines_but_for_its_commands() -> None:
    text = re.sub(r"^```bash\n.*?^```$", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 120] == []


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
