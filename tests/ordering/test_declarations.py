"""Paths and other declarations of callbacks, and what is malformed among them."""

from __future__ import annotations

from typing import Any

import pytest

from loopcore.callback import Callback
from loopcore.errors import CallbackError
from loopcore.ordering import ROOTS, order_callbacks, overlaps
from tests.ordering.cases import failure, make, names, ordered


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("step", "step", True),
        ("step", "step.loss", True),
        ("step.loss", "step", True),
        ("shared.a", "shared.a.b.c", True),
        ("step.loss", "step.loss_scale", False),
        ("step.a", "step.b", False),
        ("step", "steps", False),
        ("shared.a.b", "shared.ab", False),
    ],
)
def test_overlaps(a: str, b: str, expected: bool) -> None:
    assert overlaps(a, b) is expected
    assert overlaps(b, a) is expected


@pytest.mark.parametrize("attribute", ["reads", "traced_reads", "writes", "carries"])
@pytest.mark.parametrize("path", ["", ".", "loss", "step.", ".step", "step..loss", "step.0", "step.a b", "Step.loss"])
def test_a_malformed_path_is_named_with_the_allowed_roots(attribute: str, path: str) -> None:
    text = failure(CallbackError, make("Odd", **{attribute: ("step.loss", path)}), make("Fine"))
    assert f'Odd.{attribute} holds "{path}"' in text
    assert ", ".join(ROOTS) in text


@pytest.mark.parametrize("root", ROOTS)
def test_each_root_is_a_path(root: str) -> None:
    assert ordered(make("A", writes=(root,)), make("B", reads=(root + ".deep.er",))) == ["A", "B"]


def test_a_string_is_no_tuple_of_paths() -> None:
    text = failure(CallbackError, make("A", reads="step.loss"))
    assert text == 'A.reads is "step.loss": write a tuple, reads = ("step.loss",)'


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"reads": ["step.loss"]}, 'A.reads is a list: write a tuple, reads = ("step.loss",)'),
        ({"writes": None}, 'A.writes is a NoneType: write a tuple, writes = ("step.loss",)'),
        ({"reads": (3,)}, 'A.reads holds a int: write for instance reads = ("step.loss",)'),
        ({"run_after": Callback}, "A.run_after is the class Callback: write a tuple, run_after = (Callback,)"),
        ({"requires": "Recorder"}, 'A.requires is "Recorder": write a tuple, requires = (Recorder,)'),
        ({"run_before": ("B",)}, 'A.run_before holds "B": write for instance run_before = (Recorder,)'),
        ({"run_after": (Callback(),)}, "A.run_after holds a Callback: write for instance run_after = (Recorder,)"),
    ],
)
def test_a_malformed_declaration_says_what_to_write(declared: dict[str, Any], expected: str) -> None:
    assert failure(CallbackError, make("A", **declared), make("B")) == expected


def test_of_several_malformed_declarations_the_reported_one_does_not_depend_on_the_list() -> None:
    bad = [make("C", reads="step"), make("A", reads=("x",)), make("B", run_after=("x",)), make("A", reads=("w",))]
    assert 'A.reads holds "w"' in failure(CallbackError, *bad)


def test_declarations_may_be_properties_and_are_evaluated_once() -> None:
    seen: list[str] = []

    class Lazy(Callback):
        @property
        def writes(self) -> tuple[str, ...]:  # type: ignore[override]
            seen.append("writes")
            return ("shared.a",)

        @property
        def run_before(self) -> tuple[type[Callback], ...]:  # type: ignore[override]
            seen.append("run_before")
            return (Reader,)

    class Reader(Callback):
        reads = ("shared.a",)

    assert names(order_callbacks([Reader(), Lazy()])) == ["Lazy", "Reader"]
    assert sorted(seen) == ["run_before", "writes"]
