"""The defects of FluxTraining.jl's dependency graph, one test for each that concerns the order of callbacks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import combinations, permutations
from random import Random
from typing import Any

import pytest

from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, Resolution, RunFirst
from loopcore.errors import ConflictError, CycleError, MissingRequirementError, MissingWriterError
from loopcore.ordering import order_callbacks
from tests.conftest import ROOT


class Recorder(Callback):
    """Writes the history."""

    writes = ("shared.history",)


class LossPrinter(Callback):
    """Reads the history."""

    reads = ("step.loss", "shared.history")


def make(name: str, **declared: Any) -> Callback:
    callback: Callback = type(name, (Callback,), declared)()
    return callback


def names(*callbacks: Callback) -> list[str]:
    return [type(callback).__name__ for callback in order_callbacks(callbacks).callbacks]


def either_way(a: Callback, b: Callback) -> list[str]:
    """Names in order, after checking that the mirrored list gives the same."""
    assert names(a, b) == names(b, a)
    return names(a, b)


def test_a_cycle_is_found_at_construction_and_named() -> None:  # G-1
    """Cycles were not checked at construction, and the error at the first event named nobody."""
    printer = make("Printer", reads=("shared.history",), writes=("shared.text",))
    recorder = make("Keeper", reads=("shared.text",), writes=("shared.history",))
    with pytest.raises(CycleError) as caught:
        order_callbacks([printer, make("Bystander"), recorder])
    assert caught.value.cycle == (recorder, printer)
    assert "Keeper before Printer: Keeper writes shared.history, Printer reads it" in str(caught.value)
    assert "Printer before Keeper: Printer writes shared.text, Keeper reads it" in str(caught.value)
    assert "Bystander" not in str(caught.value)


def test_a_read_that_nobody_writes_is_an_error_at_once() -> None:  # G-2
    """Reads of shared state that nobody writes ended in a KeyError in the middle of training."""
    with pytest.raises(MissingWriterError) as caught:
        order_callbacks([LossPrinter()])
    assert str(caught.value) == "LossPrinter reads shared.history, nothing writes it: add Recorder()"
    assert names(LossPrinter(), Recorder()) == ["Recorder", "LossPrinter"]


@pytest.mark.parametrize("who", ["A", "B"])
def test_no_conflict_holds_in_both_orders_of_the_arguments(who: str) -> None:  # G-3
    """A NoConflict defined for one order of the arguments failed on the mirrored pair."""

    def resolve(self: Callback, other: Callback) -> Resolution | None:
        return NO_CONFLICT if type(self).__name__ == who else None

    a = make("A", writes=("shared.x",), resolve_conflict=resolve)
    b = make("B", writes=("shared.x",), resolve_conflict=resolve)
    assert either_way(a, b) == ["A", "B"]
    assert order_callbacks([b, a]).edges == ()


def test_answers_that_disagree_are_an_error() -> None:
    """Both argument orders were asked, but contradicting answers were never noticed."""

    def insist(self: Callback, other: Callback) -> RunFirst:
        return RunFirst(self)

    a = make("A", writes=("shared.x",), resolve_conflict=insist)
    b = make("B", writes=("shared.x",), resolve_conflict=insist)
    for listed in ([a, b], [b, a]):
        with pytest.raises(ConflictError, match=r"A first but B\.resolve_conflict says B first"):
            order_callbacks(listed)


@pytest.mark.parametrize("kind", ["self", "other", "no conflict", "unresolvable", "no opinion"])
def test_two_writers_run_as_one_of_them_resolves_it(kind: str) -> None:  # G-4
    """RunFirst between two writers had never worked: objects were passed where indices belong."""

    def resolve(self: Callback, other: Callback) -> Any:
        answers = {"self": RunFirst(self), "other": RunFirst(other), "no conflict": NO_CONFLICT}
        return {**answers, "unresolvable": UNRESOLVABLE, "no opinion": None}[kind]

    m = make("M", writes=("shared.x",), resolve_conflict=resolve)
    for other in (make("A", writes=("shared.x",)), make("Z", writes=("shared.x",))):
        name = type(other).__name__
        if kind in ("unresolvable", "no opinion"):
            with pytest.raises(ConflictError, match=r"both write shared\.x"):
                order_callbacks([m, other])
        else:
            expected = {"self": ["M", name], "other": [name, "M"], "no conflict": sorted(["M", name])}
            assert either_way(m, other) == expected[kind]


@pytest.mark.parametrize("kind", ["self", "other", "no conflict", "unresolvable", "no opinion"])
@pytest.mark.parametrize("asked", ["writer", "reader"])
def test_a_writer_and_a_reader_run_as_one_of_them_resolves_it(kind: str, asked: str) -> None:  # G-5
    """Between a writer and a reader, Unresolvable and NoConflict were ignored."""

    def resolve(self: Callback, other: Callback) -> Any:
        answers = {"self": RunFirst(self), "other": RunFirst(other), "no conflict": NO_CONFLICT}
        return {**answers, "unresolvable": UNRESOLVABLE, "no opinion": None}[kind]

    writer = make("Writer", writes=("shared.x",), **({"resolve_conflict": resolve} if asked == "writer" else {}))
    reader = make("Reader", reads=("shared.x",), **({"resolve_conflict": resolve} if asked == "reader" else {}))
    if kind == "unresolvable":
        with pytest.raises(ConflictError, match=r"Writer writes shared\.x, Reader reads it"):
            order_callbacks([writer, reader])
        return
    reader_first = kind == "no conflict" or (kind == "self") == (asked == "reader")
    if kind == "no opinion":
        reader_first = False
    assert either_way(writer, reader) == (["Reader", "Writer"] if reader_first else ["Writer", "Reader"])
    assert len(order_callbacks([writer, reader]).edges) == (kind != "no conflict")


def test_a_reader_may_run_before_the_writer() -> None:  # G-6
    """A reader declared to run before the writer it reads from made an instant cycle."""
    reader = make("Zero", reads=("shared.history",), run_before=(Recorder,))
    assert either_way(reader, Recorder()) == ["Zero", "Recorder"]
    assert [edge.reason for edge in order_callbacks([reader, Recorder()]).edges] == ["Zero.run_before names Recorder"]


def test_a_callback_may_run_after_all_others() -> None:  # G-7
    """A callback that runs after all callbacks ran after itself, which is a cycle."""
    last = [make("A", run_after=(Callback,)), make("B", run_after=(Callback,))]
    first = [make("Y", run_before=(Callback,)), make("Z", run_before=(Callback,))]
    assert names(last[0]) == ["A"]
    for listed in permutations([*last, make("M"), *first]):
        assert names(*listed) == ["Y", "Z", "M", "A", "B"]


def test_an_absent_target_is_an_error_only_where_it_is_required() -> None:  # G-8
    """Absent targets of runafter were ignored, whether the callback could do without them or not."""
    assert names(make("Soft", run_after=(Recorder,))) == ["Soft"]
    with pytest.raises(MissingRequirementError, match=r"^Hard requires Recorder: add Recorder\(\)$"):
        order_callbacks([make("Hard", requires=(Recorder,))])
    assert names(make("Hard", requires=(Recorder,)), Recorder()) == ["Recorder", "Hard"]


def test_unrelated_callbacks_run_by_name_and_twins_as_they_are_listed() -> None:  # G-9
    """Unrelated callbacks ran in the reverse order of the list, although the docs said that it does not matter."""
    callbacks = [make(name, reads=("step.loss",)) for name in "DACB"]
    for listed in permutations([*callbacks, Recorder()]):
        assert names(*listed) == ["A", "B", "C", "D", "Recorder"]
    twins = [LossPrinter(), LossPrinter(), LossPrinter()]
    for printers in permutations(twins):
        assert order_callbacks([printers[0], Recorder(), *printers[1:]]).callbacks[1:] == printers


def test_the_hash_seed_does_not_matter() -> None:
    """Unrelated callbacks ran in an order nobody chose; sets and dicts must not choose it either."""
    code = "from tests.ordering.test_defects import many; print(many())"
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == str(many())


def many() -> list[str]:
    """Names, in order, of forty callbacks that write and read each other's paths."""
    rng = Random(0)
    paths = [f"shared.p{i:02}" for i in range(40)]
    callbacks = [
        make(f"C{rng.random():.6f}", writes=(path,), reads=tuple(rng.choice(paths[:i]) for _ in range(2)) if i else ())
        for i, path in enumerate(paths)
    ]
    order = order_callbacks(rng.sample(callbacks, len(callbacks)))
    return [type(callback).__name__ for callback in order.callbacks]


def test_equal_callbacks_are_not_confused() -> None:  # G-11
    """Two equal callbacks without fields were confused, since one comparison was by equality."""

    class Equal(Callback):
        writes = ("shared.x",)
        chief: Callback | None = None

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 0

        def resolve_conflict(self, other: Callback) -> RunFirst:
            assert self.chief is not None
            return RunFirst(self.chief)

    a, b = Equal(), Equal()
    assert a == b
    for chief in (a, b):
        a.chief = b.chief = chief
        for listed in ([a, b], [b, a]):
            assert order_callbacks(listed).callbacks[0] is chief


def test_any_number_and_kind_of_callbacks_can_be_ordered() -> None:  # G-12
    """A helper stopped at the ninth callback, and one kind of callback could not be passed at all."""
    quiet = [make(f"C{i:02}") for i in range(12)]
    assert names(*reversed(quiet)) == [f"C{i:02}" for i in range(12)]
    for i, j in combinations(range(12), 2):
        listed = list(quiet)
        listed[i], listed[j] = (make(f"W{k:02}", writes=("shared.x",)) for k in (i, j))
        with pytest.raises(ConflictError, match=f"W{i:02} and W{j:02} both write"):
            order_callbacks(listed)
    assert names(Callback()) == ["Callback"]


def test_every_defect_has_its_test() -> None:
    """Rows of the list of defects that concern the graph, permissions, the learner, the loop and metrics.

    A test says in a comment beside its name which row it holds.
    """
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))
    found = [kind + number for kind, number in re.findall(r"^def test_\w+\(.*  # ([A-Z])-(\d+)$", text, re.MULTILINE)]
    kinds = {"G": 15, "P": 7, "L": 9, "T": 17, "M": 10}
    rows = [f"{kind}{n}" for kind, last in kinds.items() for n in range(1, last + 1)]
    assert sorted(row for row in found if row[0] in kinds) == sorted(rows)
