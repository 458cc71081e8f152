"""Every public name is documented: in words, by an example that doctest runs, and in the reference."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from doctest import DocTestFinder
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import loopcore as lc

MODULES = (lc, lc.criteria, lc.data, lc.loggers, lc.losses, lc.schedules, lc.testing)
NAMES = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
CODE = [full for full, value in NAMES.items() if inspect.isclass(value) or inspect.isfunction(value)]
CLASSES = [full for full in CODE if inspect.isclass(NAMES[full])]
DOCUMENTED = (FunctionType, property, cached_property, staticmethod, classmethod)
CONSTANTS = {
    *("loopcore.NO_CONFLICT", "loopcore.UNRESOLVABLE", "loopcore.LearningRate", "loopcore.WeightDecay"),
}
WITHOUT_EXAMPLE: dict[str, str] = {}  # full name -> why an example would say nothing; each of them must still lack one
REFERENCE = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
MET_ON_A_LEARNER = re.findall(r"^\.\. autoclass:: (loopcore[\w.]*)$", REFERENCE, re.MULTILINE)


def words(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").strip()


def examples(value: Any) -> int:
    """How many examples doctest finds in the docstring of a class or function itself, from its module."""
    full = f"{value.__module__}.{value.__qualname__}"
    found = DocTestFinder().find(importlib.import_module(value.__module__))
    return sum(len(test.examples) for test in found if test.name == full)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class has from this package."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "loopcore":
            for name, value in vars(base).items():
                if not name.startswith("_") and isinstance(value, DOCUMENTED):
                    yield f"{base.__qualname__}.{name}", value


def test_the_names_are_those_of_seven_modules() -> None:
    assert {type(value) for full, value in NAMES.items() if full not in {*CODE, *CONSTANTS}} == {ModuleType}
    assert len(CODE) > 50


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_public_is_left_out(module: ModuleType) -> None:
    """What a star import would give is what can be found by looking."""
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    }
    assert own - set(module.__all__) == ({"predictions_first"} if module is lc.losses else set())


@pytest.mark.parametrize("full", [full for full in NAMES if full not in CONSTANTS])
def test_it_says_what_it_is(full: str) -> None:
    first = (NAMES[full].__doc__ or "").strip().partition("\n")[0]  # its own, not that of a base
    assert len(first) > 10 and first.rstrip("`").endswith((".", ":", "?")), first


@pytest.mark.parametrize("full", sorted({*CLASSES, *MET_ON_A_LEARNER}))
def test_its_methods_say_what_they_do(full: str) -> None:
    module, _, name = full.rpartition(".")
    cls = NAMES.get(full) or getattr(importlib.import_module(module), name)
    assert words(cls) and [name for name, member in members(cls) if len(words(member)) < 5] == []


@pytest.mark.parametrize("full", CODE)
def test_it_has_an_example(full: str) -> None:
    assert bool(examples(NAMES[full])) is (full not in WITHOUT_EXAMPLE)
    assert bool(re.search(r"^Example:$", words(NAMES[full]), re.MULTILINE)) is (full not in WITHOUT_EXAMPLE)


@pytest.mark.parametrize("full", [full for full in NAMES if not inspect.ismodule(NAMES[full])])
def test_it_is_in_the_reference(full: str) -> None:
    directive = r"^\.\. (?:auto(?:class|function|exception)|py:data):: "
    assert len(re.findall(rf"{directive}{re.escape(full)}$", REFERENCE, re.MULTILINE)) == 1


def test_the_reference_names_nothing_that_is_gone() -> None:
    for full in re.findall(r"^\.\. (?:auto\w+|py:data):: (loopcore[\w.]*)$", REFERENCE, re.MULTILINE):
        module, _, name = full.rpartition(".")
        assert full in {module.__name__ for module in (*MODULES, lc.errors)} or hasattr(
            importlib.import_module(module), name
        ), full


class Undocumented(lc.Callback):
    def method(self) -> None: ...


def test_a_class_without_documentation_would_be_noticed() -> None:
    assert Undocumented.__doc__ is None
    assert examples(Undocumented) == 0 < examples(lc.Callback)
    wordless = type("Wordless", (), {"__module__": "loopcore.x", "method": lambda self: None, "value": property(len)})
    assert {name for name, member in members(wordless) if not words(member)} == {"Wordless.method"}
    assert [name for name, _ in members(Undocumented)] == [name for name, _ in members(lc.Callback)]
