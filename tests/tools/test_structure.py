"""The measures of ``tools/structure.py``, on a package small enough to count by hand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

TOOL = runpy.run_path(str(ROOT / "tools" / "structure.py"))
FILES = {
    "loopcore/__init__.py": '"""The package."""\n\nfrom loopcore.shop import Shop\n',
    "loopcore/shop.py": '''"""Two lines
of documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopcore.errors import ShopError

if TYPE_CHECKING:
    from loopcore.goods.apples import Apple


class Shop:
    def sell(self, apple: Apple, price: Any) -> Any:  # for cash
        """Sell one.

        No longer than it is fresh.
        """
        if apple._sold:
            raise ShopError
        self._income = price
        return self._count(Shop()._income)
''',
    "loopcore/errors.py": "class ShopError(Exception): ...\n",
    "loopcore/goods/__init__.py": "from .apples import Apple\n",
    "loopcore/goods/apples.py": """class Apple:
    def __init__(self) -> None:
        self._sold = False

    def taste(self, *rest: int) -> str:
        from ..shop import Shop

        first, *others = rest
        found, _ = Shop(), first
        return str(found)
""",
    "loopcore/goods/pears.py": "from loopcore.goods.apples import Apple as _Apple\nfrom loopcore import errors, shop\n",
    "loopcore/testing/__init__.py": "",
    "loopcore/testing/conformance/__init__.py": "from loopcore.testing.conformance.suite import one\n",
    "loopcore/testing/conformance/suite.py": "from loopcore.testing.conformance import suite\none = suite._secret\n",
    "backends/loopcore_numpy/__init__.py": "",
    "backends/loopcore_numpy/adapter.py": "# a comment\ndef run(apple):\n    return apple._sold\n",
    "pyproject.toml": """
[[tool.importlinter.contracts]]
type = "forbidden"
[[tool.importlinter.contracts]]
type = "layers"
containers = ["loopcore"]
layers = ["(shop) : orders", "goods", "errors"]
""",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def measures(root: Path) -> dict[str, Any]:
    return {row.title: row for row in TOOL["measures"](root)}


def test_imports_are_counted_wherever_they_stand(root: Path) -> None:
    rows = measures(root)
    assert rows["largest circle of loopcore"].value == 2  # shop and apples: one arrow for types, one in a function
    assert rows["largest circle of loopcore"].remark == "loopcore.goods.apples, loopcore.shop; 1 in all"
    assert rows["largest circle of loopcore_numpy"].value == 0
    assert rows["circles of rooms"].value == 1
    assert rows["largest fan-out"][1:3] == (3, "loopcore.goods.pears")


def test_an_arrow_against_the_layers(root: Path) -> None:
    upward = measures(root)["upward arrows between rooms"]
    assert upward.value == 1 and upward.remark == "of 5: goods -> shop" and not upward.is_missed
    (root / "pyproject.toml").write_text("", encoding="utf-8")
    upward = measures(root)["upward arrows between rooms"]
    assert upward.remark == "no layers contract" and upward.is_missed


def test_what_lies_at_the_top(root: Path) -> None:
    rows = measures(root)
    assert rows["files at the top"].value == 2 and rows["files and folders at the top"].value == 4


def test_what_belongs_to_another_module(root: Path) -> None:
    rows = measures(root)
    assert rows["private accesses, core"][1:3] == (1, "_sold 1")
    assert rows["private accesses, adapters"].value == 1


def test_what_the_text_is_made_of(root: Path) -> None:
    rows = measures(root)
    assert rows["Any per 100 code lines, core"].remark == "2 in 24"
    assert rows["comment lines per 100 code lines, core"].value == pytest.approx(100 / 24)
    assert rows["comment lines per 100 code lines, adapters"].value == 50
    assert rows["lines of a file, median, core"].remark == "of 7; nine in ten up to 23, the longest 23"
    assert rows["functions over 40 lines, core"].remark == "of 3; nine in ten up to 6, the longest 6"


def test_a_name_that_names_nothing(root: Path) -> None:
    vague = measures(root)["vague names, %"]
    assert vague.remark == "2 of 10: found 1, one 1"  # *rest and *others are counted, and plain
    assert vague.value == 20 and vague.is_missed


def test_the_check_fails_where_an_aim_is_missed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TOOL["main"].__globals__, "ROOT", root)
    for options, code in (([], 0), (["--check"], 1)):
        monkeypatch.setattr(sys, "argv", ["structure.py", *options])
        assert TOOL["main"]() == code
        assert "0.3 MISSED" in capsys.readouterr().out


def test_every_place_of_such_a_name_is_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TOOL["main"].__globals__, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["structure.py", "--names"])
    assert TOOL["main"]() == 0
    places = ["loopcore/goods/apples.py:9: found", "loopcore/testing/conformance/suite.py:2: one"]
    assert capsys.readouterr().out.splitlines() == places
