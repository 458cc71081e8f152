"""Every public name is documented: in words, with its arguments, by an example that runs, and in the reference."""

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

MODULES = (lc, lc.criteria, lc.data, lc.errors, lc.loggers, lc.losses, lc.schedules, lc.testing)


def names_of(module: ModuleType) -> list[str]:
    """What a module offers: its ``__all__``, or every class of the errors, where all are public."""
    if module is not lc.errors:
        return list(module.__all__)
    return [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]


NAMES = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in names_of(module)}
CODE = [full for full, value in NAMES.items() if inspect.isclass(value) or inspect.isfunction(value)]
CLASSES = [full for full in CODE if inspect.isclass(NAMES[full])]
FUNCTIONS = [full for full in CODE if inspect.isfunction(NAMES[full])]
THOROUGH = (lc.data, lc.errors, lc.schedules)  # here classes and methods have a section for their arguments, too
DOCUMENTED = (FunctionType, property, cached_property, staticmethod, classmethod)
CONSTANTS = {
    *("loopcore.NO_CONFLICT", "loopcore.UNRESOLVABLE", "loopcore.LearningRate", "loopcore.WeightDecay"),
}
OBJECTS = {"loopcore.xp", "loopcore.tree", "loopcore.random"}  # one of each, with functions as a module has
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


def arguments(documented: Any) -> list[str]:
    """Names of the arguments of a class, function or method, as a call writes them."""
    if inspect.isclass(documented):
        return arguments(documented.__init__) if "__init__" in vars(documented) else []
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(documented).parameters.values()
    return [stars.get(each.kind, "") + each.name for each in parameters if each.name not in ("self", "cls")]


def described(documented: Any) -> list[str]:
    """Names in the ``Args:`` section of a docstring, where one entry may have several."""
    section = re.search(r"^Args:\n((?:(?: .*)?\n)+)", words(documented) + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\S[^:\n]*):", section[1] if section else "", re.MULTILINE)
    return [name for entry in entries for name in entry.split(", ")]


def test_the_names_are_those_of_eight_modules() -> None:
    assert {type(value) for full, value in NAMES.items() if full not in {*CODE, *CONSTANTS, *OBJECTS}} == {ModuleType}
    assert set(NAMES) >= OBJECTS and all(examples(type(NAMES[full])) for full in OBJECTS)
    assert len(CODE) > 50 and "loopcore.errors.TraceError" in CODE


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
    assert own <= set(names_of(module))


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


@pytest.mark.parametrize("full", FUNCTIONS)
def test_a_function_describes_its_arguments(full: str) -> None:
    assert described(NAMES[full]) == arguments(NAMES[full])


@pytest.mark.parametrize("full", [full for full in CLASSES if full.startswith(tuple(m.__name__ for m in THOROUGH))])
def test_a_class_and_its_methods_describe_their_arguments(full: str) -> None:
    methods = [member for _, member in members(NAMES[full]) if inspect.isfunction(member)]
    for documented in (NAMES[full], *methods):
        assert described(documented) == arguments(documented), documented


IN_MODULE = [full for full in NAMES if full.startswith("loopcore.errors.")]  # which the reference has as a whole


@pytest.mark.parametrize(
    "full", [full for full in NAMES if not inspect.ismodule(NAMES[full]) and full not in IN_MODULE]
)
def test_it_is_in_the_reference(full: str) -> None:
    directive = r"^\.\. (?:auto(?:class|function|exception)|py:data):: "
    assert len(re.findall(rf"{directive}{re.escape(full)}$", REFERENCE, re.MULTILINE)) == 1


def test_the_errors_are_in_the_reference() -> None:
    """Those of the top level by themselves, see above, and all others by their module."""
    options = re.search(r"^\.\. automodule:: loopcore\.errors\n((?:   :.*\n)+)", REFERENCE, re.MULTILINE)
    assert options and ":members:\n" in options[1]
    by_themselves = re.findall(r"\w+", options[1].partition(":exclude-members:")[2])
    assert sorted(by_themselves) == sorted(set(lc.__all__) & set(names_of(lc.errors)))


def test_the_reference_names_nothing_that_is_gone() -> None:
    for full in re.findall(r"^\.\. (?:auto\w+|py:data):: (loopcore[\w.]*)$", REFERENCE, re.MULTILINE):
        module, _, name = full.rpartition(".")
        known = {module.__name__ for module in MODULES}
        assert full in known or hasattr(importlib.import_module(module), name), full


class Undocumented(lc.Callback):
    def method(self) -> None: ...


def half_described(samples: int, *more: int, **options: int) -> None:
    """Two of three.

    Args:
        samples: how many: at least 1,
            or none.
        **options: any.

    Returns:
        nothing: at all.
    """


def test_a_class_without_documentation_would_be_noticed() -> None:
    assert Undocumented.__doc__ is None
    assert examples(Undocumented) == 0 < examples(lc.Callback)
    wordless = type("Wordless", (), {"__module__": "loopcore.x", "method": lambda self: None, "value": property(len)})
    assert {name for name, member in members(wordless) if not words(member)} == {"Wordless.method"}
    assert [name for name, _ in members(Undocumented)] == [name for name, _ in members(lc.Callback)]


def test_an_argument_without_a_description_would_be_noticed() -> None:
    assert arguments(half_described) == ["samples", "*more", "**options"]
    assert described(half_described) == ["samples", "**options"]
    assert arguments(lc.errors.CycleError) == ["message", "cycle"] and arguments(lc.errors.DataError) == []
    assert described(Undocumented.method) == arguments(Undocumented.method) == []
