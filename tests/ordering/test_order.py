"""The order of callbacks: every rule by example."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, Resolution, RunFirst
from loopcore.errors import CallbackError, ConflictError, CycleError, MissingRequirementError, MissingWriterError
from loopcore.ordering import Order, order_callbacks
from loopcore.ordering.declarations import KNOWN_WRITERS
from tests.ordering.cases import Wrapper, answering, failure, make, make_class, ordered

# -- helpers


def reasons(*callbacks: Callback) -> list[str]:
    return [edge.reason for edge in order_callbacks(callbacks).edges]


# -- what may stand in the list


def test_an_empty_list_is_an_empty_order() -> None:
    assert order_callbacks([]) == Order((), ())


def test_a_class_instead_of_an_instance() -> None:
    text = failure(CallbackError, make_class("Recorder"), make("A"))
    assert text == "a callback is an instance: write Recorder() instead of Recorder"


@pytest.mark.parametrize(("entry", "what"), [(3, "a int"), (print, "a builtin_function_or_method"), (int, "class int")])
def test_something_that_is_no_callback(entry: Any, what: str) -> None:
    text = failure(CallbackError, entry, make("A"))
    assert what in text and "subclass Callback" in text


def test_one_instance_twice_also_through_a_wrapper() -> None:
    a = make("A")
    assert failure(CallbackError, a, a) == "the same A is in the list twice: make two of them, or remove one"
    assert failure(CallbackError, a, Wrapper(a)) == "the same A is in the list twice: make two of them, or remove one"


# -- order from paths


def test_a_writer_runs_before_its_readers() -> None:
    reader, writer = make("A", reads=("shared.x",)), make("B", writes=("shared.x",))
    assert ordered(reader, writer) == ["B", "A"]
    assert reasons(reader, writer) == ["B writes shared.x, A reads it"]


def test_traced_reads_are_reads() -> None:
    reader, writer = make("A", traced_reads=("shared.x",)), make("B", writes=("shared.x",))
    assert ordered(reader, writer) == ["B", "A"]
    assert reasons(Wrapper(reader), writer) == ["B writes shared.x, Wrapper(A) reads it"]
    assert failure(MissingWriterError, reader).startswith("A reads shared.x, nothing writes it")


def test_a_path_covers_what_is_below_it() -> None:
    assert ordered(make("A", reads=("step.loss",)), make("B", writes=("step",))) == ["B", "A"]
    assert ordered(make("A", reads=("step",)), make("B", writes=("step.loss",))) == ["B", "A"]
    assert reasons(make("A", reads=("step",)), make("B", writes=("step.loss",))) == ["B writes step.loss, A reads step"]


def test_readers_of_one_path_follow_their_names() -> None:
    assert ordered(*(make(name, reads=("step.loss",)) for name in "CAB")) == ["A", "B", "C"]
    assert reasons(*(make(name, reads=("step.loss",)) for name in "CAB")) == []


def test_edges_follow_the_order_of_the_result() -> None:
    first, last = make("Z", writes=("shared.x",)), make("A", reads=("shared.x", "shared.y"))
    middle = make("B", writes=("shared.y",), reads=("shared.x",))
    edges = order_callbacks([last, first, middle]).edges
    assert [(type(edge.before).__name__, type(edge.after).__name__) for edge in edges] == [
        ("Z", "B"),
        ("Z", "A"),
        ("B", "A"),
    ]


def test_the_module_of_a_class_comes_before_its_name() -> None:
    early, late = make("Z"), make("A")
    type(early).__module__, type(late).__module__ = "a", "z"
    assert ordered(late, early) == ["Z", "A"]


def test_the_order_is_the_first_by_name_not_merely_a_valid_one() -> None:
    callbacks = [make("D", writes=("shared.x",)), make("A", reads=("shared.x",)), make("B"), make("E"), make("C")]
    assert ordered(*callbacks) == ["B", "C", "D", "A", "E"]


def test_unrelated_callbacks_of_one_class_keep_the_order_of_the_list() -> None:
    cls = make_class("A")
    first, second, third = cls(), Wrapper(cls()), cls()
    for listed in permutations([first, second, third]):
        assert order_callbacks([listed[0], make("B"), *listed[1:]]).callbacks[:3] == listed


def test_callbacks_that_compare_equal_are_still_told_apart() -> None:
    everything: dict[str, Any] = {"__eq__": lambda self, other: True, "__hash__": lambda self: 1}
    cls = make_class("A", writes=("shared.x",), resolve_conflict=lambda self, other: RunFirst(self.chief), **everything)
    a, b = cls(), cls()
    a.__dict__["chief"] = b.__dict__["chief"] = b
    assert [id(callback) for callback in order_callbacks([a, b]).callbacks] == [id(b), id(a)]


def test_a_mutual_dependency_is_a_cycle_unless_resolved() -> None:
    a = make("A", reads=("shared.x",), writes=("shared.y",))
    b = make("B", reads=("shared.y",), writes=("shared.x",))
    text = failure(CycleError, a, b)
    assert "A before B: A writes shared.y, B reads it" in text
    assert "B before A: B writes shared.x, A reads it" in text
    resolved = make("C", type(a), resolve_conflict=answering(lambda self, other: RunFirst(self)))
    assert ordered(resolved, b) == ["C", "B"]


def test_writers_of_step_apply_need_no_order_but_run_before_its_readers() -> None:
    a, b = make("A", writes=("step.apply",)), make("B", reads=("step", "step.apply"), writes=("step.apply",))
    reader = make("AReader", reads=("step.apply",))
    assert reasons(a, b) == []
    assert ordered(reader, b, a) == ["A", "B", "AReader"]
    assert ordered(make("AReader", reads=("step",)), b, a) == ["A", "B", "AReader"]
    assert "both write step.apply" in failure(ConflictError, a, make("C", writes=("step",)))


# -- order from classes


def test_run_after_and_run_before_are_soft_and_match_subclasses() -> None:
    base = make_class("ZBase")
    derived = make_class("ZDerived", base)
    assert ordered(make("A", run_after=(base,)), derived()) == ["ZDerived", "A"]
    assert ordered(make("A"), make("B", run_before=(Callback,))) == ["B", "A"]
    assert ordered(make("A", run_after=(base,)), make("B")) == ["A", "B"]
    assert reasons(make("A", run_after=(base,)), derived()) == ["A.run_after names ZBase"]
    assert reasons(make("A"), make("B", run_before=(Callback,))) == ["B.run_before names Callback"]


def test_requires_orders_and_must_be_present() -> None:
    base = make_class("ZBase")
    a = make("A", requires=(base,))
    assert ordered(a, make("ZDerived", base)) == ["ZDerived", "A"]
    assert reasons(a, base()) == ["A.requires ZBase"]
    assert failure(MissingRequirementError, a, make("B")) == "A requires ZBase: add ZBase()"


def test_a_callback_does_not_meet_its_own_requirement() -> None:
    base = make_class("Base")
    selfish = make("A", base, requires=(base,))
    assert failure(MissingRequirementError, selfish) == "A requires Base: add Base()"
    assert ordered(selfish, make("B", base)) == ["B", "A"]


def test_classes_match_what_a_wrapper_stands_for() -> None:
    recorder = make_class("Recorder")
    assert ordered(make("A", requires=(recorder,)), Wrapper(Wrapper(recorder()))) == ["Recorder", "A"]
    assert ordered(recorder(), Wrapper(make("Z", run_before=(recorder,)))) == ["Z", "Recorder"]
    order = order_callbacks([Wrapper(make("Z", run_before=(recorder,))), recorder()])
    assert order.edges[0].reason == "Wrapper(Z).run_before names Recorder"


def test_first_and_last() -> None:
    last = [make("A", run_after=(Callback,)), make("B", run_after=(Callback,))]
    first = [make("Y", run_before=(Callback,)), make("Z", run_before=(Callback,))]
    assert ordered(*last, make("M"), *first) == ["Y", "Z", "M", "A", "B"]


def test_first_and_last_win_over_paths_and_yield_to_nothing() -> None:
    last = make("A", run_after=(Callback,), writes=("shared.x",))
    assert ordered(last, make("B", reads=("shared.x",))) == ["B", "A"]
    contrary = make("B", run_after=(type(last),))
    text = failure(CycleError, last, contrary)
    assert "B.run_after names A" in text and "A.run_after names Callback" in text
    assert ordered(last, make("B", run_after=(Callback, type(last)))) == ["A", "B"]


def test_members_of_a_class_that_all_run_after_it_are_not_ordered_among_themselves() -> None:
    base = make_class("Base")
    late = make_class("ALate", base, run_after=(base,))
    assert ordered(late(), make("ALater", late), make("M", base)) == ["M", "ALate", "ALater"]
    early = make_class("ZEarly", base, run_before=(base,))
    assert ordered(early(), make("ZEarlier", early), make("M", base)) == ["ZEarlier", "ZEarly", "M"]


def test_opposite_wishes_are_a_cycle() -> None:
    a = make_class("A")
    b = make("B", run_after=(a,))
    loop = make("C", a, run_after=(type(b),))
    error = _caught(CycleError, [b, loop])
    assert set(error.cycle) == {b, loop}
    assert str(error).splitlines()[1:3] == ["  B before C: C.run_after names B", "  C before B: B.run_after names A"]


def test_all_reasons_of_an_explicit_edge_are_given() -> None:
    a = make_class("A", run_before=(Callback,))
    assert reasons(a(), make("B", run_after=(a,), requires=(a,))) == [
        "A.run_before names Callback, B.requires A, B.run_after names A"
    ]


def test_explicit_order_wins_over_paths() -> None:
    writer = make("A", writes=("shared.x",), reads=("shared.x",))
    reader = make("B", reads=("shared.x",), run_before=(type(writer),))
    assert ordered(writer, reader) == ["B", "A"]
    assert reasons(writer, reader) == ["B.run_before names A"]
    assert ordered(make("C", writes=("shared.x",), run_before=(type(writer),)), writer) == ["C", "A"]


def test_explicit_order_is_transitive() -> None:
    a = make_class("A", writes=("shared.x",))
    b = make_class("B", run_before=(a,))
    c = make("C", writes=("shared.x",), run_before=(b,), resolve_conflict=answering(lambda s, o: UNRESOLVABLE))
    assert ordered(a(), b(), c) == ["C", "B", "A"]
    assert len(reasons(a(), b(), c)) == 2
    assert "UNRESOLVABLE" in failure(ConflictError, a(), c)


# -- conflicts


def test_two_writers_of_one_path_need_an_order() -> None:
    text = failure(ConflictError, make("B", writes=("shared.x.y",)), make("A", writes=("shared.x",)))
    assert text == (
        "A and B both write shared.x.y, and nothing says which runs first: write run_after = (A,) in B, or let "
        "resolve_conflict of one return RunFirst(self), RunFirst(other) or NO_CONFLICT"
    )


def test_two_writers_of_one_class_are_told_to_be_one() -> None:
    cls = make_class("Metrics", writes=("shared.metrics_epoch",))
    assert "keep one Metrics, or" in failure(ConflictError, cls(), cls())


@pytest.mark.parametrize("flow", ["write", "read"])
@pytest.mark.parametrize("side", ["A", "B", "both"])
@pytest.mark.parametrize("winner", ["A", "B"])
def test_run_first(flow: str, side: str, winner: str) -> None:
    def choose(one: Callback, two: Callback) -> RunFirst:
        return RunFirst(one if type(one).__name__ == winner else two)

    a = make("A", writes=("shared.x",), **({"resolve_conflict": choose} if side != "B" else {}))
    other = {"writes" if flow == "write" else "reads": ("shared.x",)}
    b = make("B", **other, **({"resolve_conflict": choose} if side != "A" else {}))
    assert ordered(a, b)[0] == winner
    assert reasons(a, b) == [f"{'B' if side == 'B' else 'A'}.resolve_conflict: {winner} first"]
    assert ordered(Wrapper(a), Wrapper(b))[0] == winner


@pytest.mark.parametrize("second", [{"writes": ("shared.x",)}, {"reads": ("shared.x",)}])
def test_no_conflict_is_no_edge(second: dict[str, Any]) -> None:
    a, b = make("ZWriter", writes=("shared.x",)), make("B", resolve_conflict=lambda s, o: NO_CONFLICT, **second)
    assert ordered(a, b) == ["B", "ZWriter"]
    assert reasons(a, b) == []


@pytest.mark.parametrize("second", [{"writes": ("shared.x",)}, {"reads": ("shared.x",)}])
def test_unresolvable_is_an_error_whatever_the_other_says(second: dict[str, Any]) -> None:
    a = make("A", writes=("shared.x",), resolve_conflict=answering(lambda s, o: RunFirst(s)))
    b = make("B", resolve_conflict=lambda s, o: UNRESOLVABLE, **second)
    assert "B.resolve_conflict says UNRESOLVABLE: remove one of them" in failure(ConflictError, a, b)


@pytest.mark.parametrize("second", [{"writes": ("shared.x",)}, {"reads": ("shared.x",)}])
def test_contradicting_answers(second: dict[str, Any]) -> None:
    def me_first(me: Callback, other: Callback) -> RunFirst:
        return RunFirst(me)

    a = make("A", writes=("shared.x",), resolve_conflict=me_first)
    text = failure(ConflictError, a, make("B", resolve_conflict=me_first, **second))
    assert "A.resolve_conflict says A first but B.resolve_conflict says B first" in text
    text = failure(ConflictError, a, make("B", resolve_conflict=lambda s, o: NO_CONFLICT, **second))
    assert "A.resolve_conflict says A first but B.resolve_conflict says NO_CONFLICT" in text


@pytest.mark.parametrize(
    ("answer", "came"),
    [(RunFirst(make("C")), "RunFirst of a third callback"), (RunFirst, "the class RunFirst"), (True, "a bool")],
)
def test_an_answer_of_another_kind(answer: Any, came: str) -> None:
    a = make("A", writes=("shared.x",), resolve_conflict=lambda self, other: answer)
    text = failure(CallbackError, a, make("B", writes=("shared.x",)))
    assert text.startswith(f"A.resolve_conflict(B) returned {came}: return RunFirst(self)")


def test_both_sides_are_asked_once_and_only_about_what_they_share() -> None:
    asked: list[tuple[str, str]] = []

    def note(me: Callback, other: Callback) -> Resolution:
        asked.append((type(me).__name__, type(other).__name__))
        return NO_CONFLICT

    a = make("A", writes=("shared.x", "shared.y"), reads=("shared.z",), resolve_conflict=note)
    b = make("B", writes=("shared.x", "shared.y", "shared.z"), resolve_conflict=note)
    c = make("C", reads=("step.loss",), resolve_conflict=note)
    order_callbacks([a, Wrapper(b), c])
    assert sorted(asked) == [("A", "B"), ("B", "A")]


def test_errors_about_callbacks_of_one_class_do_not_depend_on_the_list() -> None:
    cls = make_class("A")

    def member(answer: Any = None, **declared: tuple[str, ...]) -> Callback:
        one = cls()
        one.__dict__.update(declared, resolve_conflict=lambda other: answer)
        return one

    p, q, r = (member(writes=(path,)) for path in ("shared.p", "shared.q", "shared.r"))
    assert "A and Wrapper(A) both write shared.p," in failure(ConflictError, p, Wrapper(member(writes=p.writes)))
    more = [member(writes=one.writes) for one in (r, q)]
    assert "A and A both write shared.q" in failure(ConflictError, q, r, *more)
    a = member(UNRESOLVABLE, writes=("shared.a",), reads=("shared.b",))
    b = member(UNRESOLVABLE, writes=("shared.b",), reads=("shared.a",))
    assert failure(ConflictError, a, Wrapper(b)).startswith(
        "A writes shared.a, Wrapper(A) reads it, and A.resolve_conflict says UNRESOLVABLE"
    )


def test_of_several_conflicts_the_reported_one_does_not_depend_on_the_list() -> None:
    writers = [make(name, writes=("shared.x",)) for name in "CAB"] + [make("D", writes=("shared.x",))]
    assert failure(ConflictError, *writers).startswith("A and B both write")


# -- what is absent


def test_a_shared_path_that_nothing_writes() -> None:
    text = failure(MissingWriterError, make("A", reads=("shared.mine",)), make("B", writes=("shared.other",)))
    assert text == "A reads shared.mine, nothing writes it: add a callback that does"


@pytest.mark.parametrize(("path", "writer"), sorted(KNOWN_WRITERS.items()))
def test_a_known_writer_is_named(path: str, writer: str) -> None:
    expected = f"A reads {path}.x, nothing writes it: add {writer}()"
    assert failure(MissingWriterError, make("A", reads=(path + ".x",))) == expected


def test_what_is_written_available_or_not_shared_is_not_missing() -> None:
    assert reasons(make("A", reads=("shared.x",), writes=("shared.x",))) == []
    assert reasons(make("A", reads=("shared.x",)), make("B", writes=("shared",))) == [
        "B writes shared, A reads shared.x"
    ]
    assert reasons(make("A", reads=("shared", "step.loss", "hyper.x"))) == []
    assert order_callbacks([make("A", reads=("shared.x.y",))], available=("shared.x",)).edges == ()
    assert "shared.y" in failure(MissingWriterError, make("A", reads=("shared.y",)), available=("shared.x",))


# -- cycles


def _caught(kind: type[CycleError], callbacks: Sequence[Callback]) -> CycleError:
    with pytest.raises(kind) as caught:
        order_callbacks(callbacks)
    return caught.value


def test_a_cycle_is_a_shortest_one_with_the_reason_of_each_edge() -> None:
    a = make("A", reads=("shared.c",), writes=("shared.a",))
    b = make("B", reads=("shared.a",), writes=("shared.b",))
    c = make("C", reads=("shared.b",), writes=("shared.c",))
    d = make("D", reads=("shared.c",), writes=("shared.d",))
    long_way = make("E", reads=("shared.d",), writes=("step.loss",), run_before=(type(a),))
    text = failure(CycleError, long_way, d, c, b, a)
    assert text.splitlines() == [
        "these callbacks cannot be put in order:",
        "  A before B: A writes shared.a, B reads it",
        "  B before C: B writes shared.b, C reads it",
        "  C before A: C writes shared.c, A reads it",
        "remove one of these declarations, or settle a pair by run_after or resolve_conflict",
    ]
    assert _caught(CycleError, [a, b, c, d, long_way]).cycle == (a, b, c)


def test_of_several_cycles_the_reported_one_does_not_depend_on_the_list() -> None:
    cls = make_class("A")

    def member(reads: str, writes: str) -> Callback:
        one = cls()
        one.reads, one.writes = (reads,), (writes,)
        return one

    ring = [member("shared.p", "shared.q"), member("shared.q", "shared.p")]
    other = [member("shared.r", "shared.s"), member("shared.s", "shared.r")]
    assert "A writes shared.p, A reads it" in failure(CycleError, *ring, *other)
