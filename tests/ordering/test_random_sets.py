"""Random sets of callbacks against an oracle that tries all permutations."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from random import Random
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, Resolution, RunFirst
from loopcore.errors import CallbackError, ConflictError, MissingRequirementError, MissingWriterError
from loopcore.ordering import order_callbacks
from loopcore.ordering.order import COMBINED
from tests.conftest import ROOT
from tests.ordering.cases import Wrapper

PATHS = (
    *("step", "step.loss", "step.grads", "step.y_pred", "step.aux.kl", "step.aux", COMBINED, "params", "params.a"),
    *("optimizer", "hyper", "hyper.lr", "hyper.kl", "buffers", "model", "data", "shared", "shared.history"),
    *("shared.a", "shared.a.b", "shared.c", "shared.d", "shared.e", "shared.f", "shared.g", "shared.h"),
)


class Member(Callback):
    """Base of the random callbacks: declarations and answers belong to the instance."""

    tag = 0
    answers: dict[int, str]

    def resolve_conflict(self, other: Callback) -> RunFirst | Resolution | None:
        assert isinstance(other, Member)
        answer = self.answers.get(other.tag)
        if answer in ("self", "other"):
            return RunFirst(self if answer == "self" else other)
        return {None: None, "none": NO_CONFLICT, "never": UNRESOLVABLE}[answer]


def _family() -> tuple[type[Member], ...]:
    """Fourteen classes, some derived from others, whose names do not follow the order they are made in."""
    members: list[type[Member]] = []
    for i in range(14):
        base = members[i // 3] if i % 3 == 0 and i else Member
        members.append(cast("type[Member]", type(f"C{i * 5 % 14:02}", (base,), {"__module__": f"cases.{'ab'[i % 2]}"})))
    return tuple(members)


FAMILY = _family()


@dataclass(frozen=True)
class Case:
    """A random set of callbacks."""

    callbacks: tuple[Callback, ...]
    available: tuple[str, ...]


def random_case(rng: Random, most: int = 12) -> Case:
    """Sets from sparse to dense: orders, cycles, conflicts and missing parts all come up often."""
    size = rng.randint(1, most)
    paths = PATHS if rng.random() < 0.2 else tuple(path for path in PATHS if "." in path)
    paths = paths if rng.random() < 0.4 else tuple(rng.sample(paths, 8))
    density = rng.random()
    members: list[Member] = []
    for tag in range(size):
        member = rng.choice(FAMILY)()
        member.tag, member.answers = tag, {}
        member.reads = tuple(rng.choice(paths) for _ in range(rng.randint(0, 1 + round(2 * density))))
        member.traced_reads = (rng.choice(paths),) if rng.random() < 0.1 else ()
        member.writes = tuple(rng.choice(paths) for _ in range(rng.random() < 0.4 + 0.5 * density))
        for attribute, chance in (("run_after", 0.15), ("run_before", 0.15), ("requires", 0.02)):
            if rng.random() < chance * 2 * density:
                choices: Sequence[type[Callback]] = FAMILY if attribute == "requires" else (*FAMILY, Callback)
                setattr(member, attribute, tuple(rng.choice(choices) for _ in range(rng.randint(1, 2))))
        members.append(member)
    _random_answers(rng, members)
    available = tuple(path for path in PATHS if path.startswith("shared.")) if rng.random() < 0.9 else ("shared.a",)
    return Case(tuple(Wrapper(member) if rng.random() < 0.1 else member for member in members), available)


def _random_answers(rng: Random, members: Sequence[Member]) -> None:
    opposite = {"self": "other", "other": "self", "none": "none"}
    silent = rng.random() < 0.35
    for a, b in combinations(members, 2):
        answer = rng.choice(["self", "other", "none"])
        if rng.random() < (0.8 if silent else 0.4 * rng.random() ** 8):
            continue
        a.answers[b.tag] = answer
        if rng.random() < 0.5:
            b.answers[a.tag] = opposite[answer]
        if rng.random() < 0.02:
            b.answers[a.tag] = rng.choice(["self", "other", "none", "never"])


def shuffled(rng: Random, callbacks: Sequence[Callback]) -> Iterator[Callback]:
    """Another order of the list; callbacks of one class keep theirs."""
    slots = rng.sample(list(callbacks), len(callbacks))
    left = list(callbacks)
    for slot in slots:
        left.remove(following := next(c for c in left if type(c.identity()) is type(slot.identity())))
        yield following


@dataclass(frozen=True)
class Verdict:
    """What the oracle says: the expected error or none, and the pairs ``(i, j)`` where i must run before j."""

    error: type[CallbackError] | None
    before: frozenset[tuple[int, int]] = frozenset()


def oracle(case: Case) -> Verdict:
    """The rules again, word by word and without regard to speed; positions in the list stand for the callbacks."""
    callbacks = case.callbacks
    positions = range(len(callbacks))
    for i in positions:
        for cls in callbacks[i].requires:
            if not [j for j in positions if j != i and isinstance(callbacks[j].identity(), cls)]:
                return Verdict(MissingRequirementError)
    written = [path for callback in callbacks for path in callback.writes]
    for callback in callbacks:
        for path in (*callback.reads, *callback.traced_reads):
            if path[:7] == "shared." and not [p for p in [*written, *case.available] if _covers(p, path)]:
                return Verdict(MissingWriterError)
    explicit = {(i, j) for i in positions for j in positions if i != j and _explicitly(callbacks[i], callbacks[j])}
    before = set(explicit)
    for i, j in combinations(positions, 2):
        if not (_leads(explicit, i, j) or _leads(explicit, j, i)):
            implied = _implied(callbacks[i], callbacks[j])
            if implied is None:
                return Verdict(ConflictError)
            before |= {(i, j) if first else (j, i) for first in implied}
    return Verdict(None, frozenset(before))


def _covers(a: str, b: str) -> bool:
    return all(x == y for x, y in zip(a.split("."), b.split("."), strict=False))


def _explicitly(first: Callback, second: Callback) -> bool:
    """Whether one of the two says by class that the first runs before the second."""
    for me, you, mine, yours in (
        (second, first, second.run_after + second.requires, first.run_after + first.requires),
        (first, second, first.run_before, second.run_before),
    ):
        for cls in mine:
            alike = cls in yours and isinstance(me.identity(), cls)
            if isinstance(you.identity(), cls) and not alike:
                return True
    return False


def _leads(pairs: set[tuple[int, int]], start: int, goal: int) -> bool:
    reached, previous = {j for i, j in pairs if i == start}, set[int]()
    while reached != previous:
        previous = reached
        reached = reached | {j for i, j in pairs if i in reached}
    return goal in reached


def _implied(a: Callback, b: Callback) -> list[bool] | None:
    """For each edge that the paths of a pair imply, whether a is first; None for a conflict."""
    both_write = [p for p in a.writes for q in b.writes if _covers(p, q) and (p, q) != (COMBINED, COMBINED)]
    a_reads, b_reads = (*a.reads, *a.traced_reads), (*b.reads, *b.traced_reads)
    a_first = [p for p in a.writes for q in b_reads if _covers(p, q) and not (p == COMBINED and COMBINED in b.writes)]
    b_first = [p for p in b.writes for q in a_reads if _covers(p, q) and not (p == COMBINED and COMBINED in a.writes)]
    if not (both_write or a_first or b_first):
        return []
    one, two = a.identity(), b.identity()
    assert isinstance(one, Member) and isinstance(two, Member)
    turned = {"self": "other", "other": "self"}
    second = two.answers.get(one.tag)
    said = {one.answers.get(two.tag), turned.get(second, second) if second else None} - {None}
    if "never" in said or len(said) > 1 or (both_write and not said):
        return None
    if said:
        return {"self": [True], "other": [False], "none": []}[str(said.pop())]
    return [True] * bool(a_first) + [False] * bool(b_first)


def expected_order(case: Case, before: frozenset[tuple[int, int]]) -> tuple[int, ...] | None:
    """The first permutation by (module, name, position) that keeps all pairs; None if there is none.

    Small sets try all permutations, larger ones take again and again the first callback that may come next.
    """
    classes = [type(callback.identity()) for callback in case.callbacks]
    by_key = sorted(range(len(classes)), key=lambda i: (classes[i].__module__, classes[i].__qualname__, i))
    if len(by_key) <= 6:
        for candidate in permutations(by_key):
            if all(candidate.index(i) < candidate.index(j) for i, j in before):
                return candidate
        return None
    chosen: list[int] = []
    while len(chosen) < len(by_key):
        free = [j for j in by_key if j not in chosen and all(i in chosen for i, k in before if k == j)]
        if not free:
            return None
        chosen.append(free[0])
    return tuple(chosen)


def shortest_cycle(count: int, before: frozenset[tuple[int, int]]) -> int:
    """Number of edges of a shortest cycle, by walks of growing length."""
    walks = set(before)
    for length in range(1, count + 1):
        if any(i == j for i, j in walks):
            return length
        walks = {(i, k) for i, j in walks for j2, k in before if j == j2}
    raise AssertionError("there is no cycle")


def outcome(callbacks: Sequence[Callback], available: Sequence[str]) -> tuple[str, tuple[int, ...], str]:
    """What order_callbacks does, without identities: kind, tags of the order or of the cycle, text."""
    try:
        order = order_callbacks(callbacks, available)
    except CallbackError as error:
        return type(error).__name__, tuple(_tags(getattr(error, "cycle", ()))), str(error)
    edges = [f"{_tags([e.before, e.after])} {e.reason}" for e in order.edges]
    return "ordered", tuple(_tags(order.callbacks)), "\n".join(edges)


def words(callbacks: Sequence[Callback], available: Sequence[str]) -> list[str]:
    """All that order_callbacks says, in no particular order."""
    try:
        return sorted(edge.reason for edge in order_callbacks(callbacks, available).edges)
    except CallbackError as error:
        return [type(error).__name__, str(error)]


def _tags(callbacks: Sequence[Callback]) -> list[int]:
    return [member.tag for member in (callback.identity() for callback in callbacks) if isinstance(member, Member)]


def check(case: Case, rng: Random, shuffles: int = 5) -> str:
    """Compare a set with the oracle, and other orders of its list with the first one; says how it came out."""
    found = kind, tags, text = outcome(case.callbacks, case.available)
    verdict = oracle(case)
    expected = None if verdict.error else expected_order(case, verdict.before)
    if verdict.error:
        assert kind == verdict.error.__name__
    elif expected is None:
        assert kind == "CycleError"
        assert all(pair in verdict.before for pair in zip(tags, tags[1:] + tags[:1], strict=True))
        assert len(tags) == len(set(tags)) == shortest_cycle(len(case.callbacks), verdict.before)
        assert text.count(" before ") == len(tags)
    else:
        assert (kind, tags) == ("ordered", expected)
        assert len(text.splitlines()) == len(verdict.before)
    for _ in range(shuffles):
        assert outcome(tuple(shuffled(rng, case.callbacks)), case.available) == found
    without_regard_to_classes = rng.sample(case.callbacks, len(case.callbacks))
    assert words(without_regard_to_classes, case.available) == words(case.callbacks, case.available)
    return kind


def digest(seed: int, count: int) -> str:
    """One hash of how ``count`` random sets come out."""
    rng = Random(seed)
    every = hashlib.sha256()
    for _ in range(count):
        case = random_case(rng)
        every.update(repr(outcome(case.callbacks, case.available)).encode())
    return every.hexdigest()


def digests(seed: int, count: int, hash_seeds: Sequence[int]) -> Iterator[str]:
    """The same hash from interpreters with other PYTHONHASHSEEDs, two at a time."""
    code = f"from tests.ordering.test_random_sets import digest; print(digest({seed}, {count}))"
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    for pair in (hash_seeds[i : i + 2] for i in range(0, len(hash_seeds), 2)):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
            )
            for hash_seed in pair
        ]
        for process in running:
            out, _ = process.communicate(timeout=900)
            assert process.returncode == 0
            yield out.strip()


@given(st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_small_random_sets_agree_with_all_permutations(rng: Random) -> None:
    check(random_case(rng, most=6), rng)


@given(st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_larger_random_sets_agree_with_the_oracle(rng: Random) -> None:
    check(random_case(rng, most=14), rng)


def test_random_sets_come_out_in_every_way() -> None:
    rng = Random(0)
    kinds = {check(random_case(rng), rng, shuffles=1) for _ in range(300)}
    assert kinds == {"ordered", "CycleError", "ConflictError", "MissingWriterError", "MissingRequirementError"}


def test_the_hash_seed_changes_nothing() -> None:
    assert set(digests(7, 50, range(20))) == {digest(7, 50)}
