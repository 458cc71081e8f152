"""The table of write-a-backend.md names every method of the protocol, and every module of the conformance suite."""

from __future__ import annotations

import re
from inspect import getmro
from pathlib import Path
from types import FunctionType

from loopcore.backend.protocol import Backend, CompilingBackend, Extras, RandomBackend
from loopcore.testing import conformance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "write-a-backend.md"
TITLE = "### Which module tests which method"
PROTOCOLS = (Backend, CompilingBackend, Extras, RandomBackend)


def section() -> str:
    """The section of the page, up to its last line that names a module."""
    return PAGE.read_text(encoding="utf-8").partition(f"\n{TITLE}\n")[2].partition("\nA backend whose framework")[0]


def rows() -> list[tuple[set[str], str]]:
    """The methods of each row of the table, and its other column."""
    lines = [line.strip("| ").split(" | ") for line in section().splitlines() if line.startswith("| `")]
    return [(in_code(methods), modules) for methods, modules in lines]


def in_code(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`(\w+)`", text))


def modules() -> set[str]:
    """The modules of the suite that have tests."""
    return {path.stem for path in Path(conformance.__path__[0]).glob("test_*.py")}


def test_every_method_of_the_protocol_is_in_the_table() -> None:
    methods = {
        name
        for protocol in PROTOCOLS
        for base in getmro(protocol)  # the parts that it is the sum of
        for name, value in vars(base).items()
        if isinstance(value, FunctionType | property | staticmethod) and not name.startswith("_")
    }
    attributes = {"xp", "losses", "random", "transfers"}
    assert set[str]().union(*(names for names, _ in rows())) == methods | attributes


def test_each_row_names_modules_of_the_suite() -> None:
    for names, column in rows():
        assert in_code(column) <= modules(), names
        assert in_code(column) or column.startswith("tests of your own"), names


def test_every_module_of_the_suite_is_named() -> None:
    assert {name for name in in_code(section()) if name.startswith("test_")} == modules()
