"""Running compiled steps: finding or making the program of each segment, and what happens at the cuts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from types import MethodType
from typing import Any, NamedTuple, cast

from loopcore._utils.value_keys import IdentityKey, frozen, same
from loopcore.backend.packing import Packed
from loopcore.backend.protocol import CompilingBackend, DrawKey, Tree
from loopcore.callback import name_of
from loopcore.dispatch import MutedEvents, deliver
from loopcore.errors import CallbackError, TraceError
from loopcore.execution.program_inputs import (
    DeviceScalars,
    NamespaceClassifier,
    NamespaceSignature,
    PackedCarry,
    as_array,
    parted,
)
from loopcore.execution.program_keys import attributes_read, body_key, names_read
from loopcore.execution.recompilation import RecompilationLog
from loopcore.execution.step_runner import StepRunner
from loopcore.execution.trace import (
    BodyTrace,
    CutRecord,
    Draw,
    HostChanges,
    RequestedOutputs,
    SegmentEnd,
    StepInputs,
    Unasked,
    Undrawable,
    Undrawn,
    fill,
    with_leaves,
)
from loopcore.execution.trace_errors import explained
from loopcore.handles.randomness import override
from loopcore.handles.trees import is_container
from loopcore.protocols import Body
from loopcore.state import ABSENT, State, seen

_KNOWN = 64  # phases
_NO_DRAWS: dict[str, Any] = {}
_UNDRAWABLE = (
    "same_random draws on the host before a step runs, but an argument of a draw behind a cut is a value of the step: "
    "make it a number, or set compile = False on the phase"
)


@dataclass
class Segment:
    """A compiled segment, and what its trace found out."""

    run: Callable[..., Any]
    trace: BodyTrace
    successor: tuple[CutRecord, Segment] | None = None  # the last cut it ended in, and the segment that went on
    logged_shapes: int = 1  # of how many shapes the log knows


class _Recent(NamedTuple):
    """The last first segment, and what a step is compared with to see that it is the one again."""

    segment: Segment
    known: tuple[Any, ...]  # compared by identity
    phase: tuple[Any, ...]  # names and values of its attributes, by identity too
    apply: Any
    asleep: MutedEvents


class Programs:
    """The compiled steps of one phase, and of all that are equal to it.

    Args:
        runner: of the first of these phases.

    Attributes:
        first: that runner.
        drawable: whether, of what `same_random` has the host draw, all is known before a step runs.
    """

    def __init__(self, runner: StepRunner) -> None:
        self.first = self._runner = runner
        self._learner = runner.learner
        self._backend = cast(CompilingBackend, runner.backend)
        self._segments: dict[tuple[Hashable, ...], list[Segment]] = {}
        self._recompiles = RecompilationLog(runner.name)
        self._recent: _Recent | None = None
        self._wanted: dict[frozenset[str], RequestedOutputs] = {}
        self._cutters: frozenset[int] | None = frozenset()  # see `BodyTrace`
        names = [path.removeprefix("shared.") for path in runner.plan.carried if path.startswith("shared.")]
        self._state_kinds, self._shared_kinds = NamespaceClassifier(self._backend), self._kinds_of_shared(names)
        self._draws: dict[str, Draw] = {}  # of the host, where they enter the programs
        self.drawable = True  # whether the host can draw everything before a step
        self._packed_by_others: tuple[str, ...] = ()  # values of shared that are read, and may be packed
        self._words = PackedCarry(self._backend, runner.learner, names)
        self._own, self._optimizers = DeviceScalars(self._backend), DeviceScalars(self._backend)
        self._watched = [(vars(one), attributes_read(one, methods)) for one, methods in runner.traced]

    def _kinds_of_shared(self, carried: Sequence[str]) -> NamespaceClassifier:
        """Of the values that somebody declares or the code of the body names; a trace asks for others that it reads."""
        phase = self._runner.phase
        traced = [one for one, methods in self._runner.traced if methods]
        paths = [*phase.reads, *(path for one in traced for path in (*one.reads, *one.traced_reads, *one.writes))]
        declared = frozenset(path.removeprefix("shared.") for path in paths if path.startswith("shared."))
        return NamespaceClassifier(
            self._backend, frozenset(carried), declared.union(names_read(cast(Any, type(phase)), ("step",)))
        )

    def run(
        self, runner: StepRunner, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: MutedEvents
    ) -> None:
        """Run one step of a phase; between its segments the host handlers of the cuts."""
        before = self._runner
        if runner is before:
            return self._step(body, key, state, reads, asleep)
        self._runner = runner
        try:
            self._step(body, key, state, reads, asleep)
        finally:
            self._runner = before

    def _step(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: MutedEvents) -> None:
        seen = self._seen(state)
        start, static = self._start(state, key.step, *seen)
        wanted = self._wanted.get(reads) or self._wanted_with(reads)
        first = self._backend.carried()
        cuts: list[CutRecord] = []
        lefts: list[HostChanges] = []
        shared = vars(self._learner.shared)
        there = [dict(shared)] if self._runner.plan.cuts else []  # of shared, when the step began and at each cut
        fixed = _fixed(state)
        segment = self._reuse_last_segment(body, start, static, wanted, asleep, fixed, seen)
        if segment is None:
            segment = self._segment(body, start, static, wanted, asleep, cuts, fixed)
        while True:
            try:
                outputs, reached = self._run(segment, body, first, start, lefts, static)
            except Undrawable:
                if cuts:
                    raise TraceError(_UNDRAWABLE) from None
                self.drawable = False
                return self._runner.run(body, key, state, reads, asleep)
            except Undrawn as missing:
                self._forget(segment)
                self._draws[str(missing.stream)] = missing.draw
                start = start._replace(draws=self._drawn(key.step))
                segment = self._segment(body, start, static, wanted, asleep, cuts, fixed)
                continue
            except Unasked as read:
                self._forget(segment)
                self._ask(read.name)
                if not cuts:  # nothing has been run
                    return self._step(body, key, state, reads, asleep)
                start, lefts = self._with_asked(start, lefts, there)
                segment = self._segment(body, start, static, wanted, asleep, cuts, fixed)
                continue
            except Exception as error:
                if segment.trace.looked and self._cutters is not None and not cuts:
                    return self._run_cut(body, key, state, reads, asleep)  # so that they hear what came before it
                better = explained(error, self._backend, self._runner.phase)
                if better is error:
                    raise
                raise better from error
            changed = self._replay_observers(state, outputs, reached, key.step, first) if reached.looks else None
            if changed is not None:  # it was no mere look: from here on it is a cut
                before = changed
                segment = self._segment(body, start, static, wanted, asleep, cuts, fixed)
                outputs, reached = self._run(segment, body, first, start, lefts, static)
                for name, value in (outputs["state"] | reached.state).items():
                    state.__dict__.setdefault(name, value)
                    before[0].setdefault(name, value)
            else:
                self._store_outputs(state, outputs, reached, key.step, first)
                if reached.event is None:
                    return
                before = self._deliver_at_cut(state, reached)
            cut, left = self._host_changes(state, reached, outputs, before, first, static)
            if left.gradients:  # a gradient is done: nobody goes backwards through the earlier cuts any more
                lefts = [one._replace(chain=[], pullback=None) for one in lefts]
            cuts.append(cut)
            lefts.append(left)
            there.append(dict(shared))
            found = self._next(segment, cut, static) or self._segment(body, start, static, wanted, asleep, cuts, fixed)
            segment.successor = (cut, found)
            segment = found

    def _run(
        self,
        segment: Segment,
        body: Body,
        first: Tree,
        start: StepInputs,
        lefts: list[HostChanges],
        static: dict[str, Any],
    ) -> tuple[dict[str, Tree], SegmentEnd]:
        trace = segment.trace
        if trace.runner is not self._runner:
            trace.take(self._runner, body)
        if static:
            trace.static = static
        outputs, reached = segment.run(first, start, lefts)
        if reached.mixed or reached.looks:
            fill(self._backend, outputs, reached)
        if static:
            trace.static = {}  # a program must not keep what it passes by
        if len(trace.shapes) > segment.logged_shapes:
            if trace.shapes[-1] in trace.shapes[:-1]:  # no other shape: nothing is kept, as under jax.disable_jit
                trace.shapes.pop()
            elif not lefts:
                self._recompiles.of_shape(trace.shapes[-2], trace.shapes[-1], len(trace.shapes))
            segment.logged_shapes = len(trace.shapes)
        return outputs, reached

    def _deliver_at_cut(self, state: State, reached: SegmentEnd) -> tuple[dict[str, Any], Tree]:
        """Deliver the event that was reached; returns what there was before.

        Raises:
            CallbackError: a handler changed an attribute of the phase: the program may have read it, or may yet.
        """
        assert reached.event is not None
        before, attributes = (dict(state.__dict__), self._backend.carried()), dict(vars(self._runner.phase))
        state._differentiated = reached.differentiated  # pyright: ignore[reportPrivateUsage]
        try:
            deliver(reached.handlers, self._runner.phase, reached.event)
        finally:
            state._differentiated = None  # pyright: ignore[reportPrivateUsage]
        changed = [name for name, value in vars(self._runner.phase).items() if attributes.get(name, self) is not value]
        if changed:
            who = ", ".join(name_of(handler.callback) for handler in reached.handlers)
            raise CallbackError(
                f"{who} changed {', '.join(changed)} of the phase at {type(reached.event).__name__}, in the middle of "
                "a compiled step, which may have read it before: change it when a step begins, write a value of the "
                "step, or set compile = False on the phase"
            )
        return before

    def _replay_observers(
        self, state: State, outputs: dict[str, Tree], reached: SegmentEnd, attempt: int, first: Tree
    ) -> tuple[dict[str, Any], Tree] | None:
        """Deliver the events that are only looked at; if a handler changed something, what there was before."""
        for looked, look in zip(outputs["looks"], reached.looks, strict=True):
            self._store_outputs(state, looked, look, attempt, first)
            others = self._side_state()
            before = self._deliver_at_cut(state, look)
            kept = _same(before[0], state.__dict__) and not _changed_leaves(
                self._backend, before[1], self._backend.carried()
            )
            if not kept or not _same(others, self._side_state()):
                self._cutters = (self._cutters or frozenset()) | {id(one.callback) for one in look.handlers}
                return before
        return None

    def _side_state(self) -> dict[str, Any]:
        """What handlers could change besides the values of the step and what is trained."""
        learner = self._learner
        packed = learner.shared._packed
        shared = {f"shared.{name}": value for name, value in vars(learner.shared).items() if name not in packed}
        own, optimizers = learner.hyper._own, self._backend.hyper_values()
        return {**shared, **own, **{f" {name}": value for name, value in optimizers.items()}}

    def _run_cut(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], asleep: MutedEvents) -> None:
        """Run a step whose program fails with a cut at every event that somebody hears."""
        cutters, self._cutters = self._cutters, None
        try:
            self._step(body, key, state, reads, asleep)
        finally:
            self._cutters = cutters

    def _wanted_with(self, reads: frozenset[str]) -> RequestedOutputs:
        runner = self._runner
        everything = {"*"} if runner.keeps_all else frozenset[str]()
        wanted = RequestedOutputs(runner.kept | reads | {"weight"} | everything, runner.left - reads)
        self._wanted[reads] = wanted
        return wanted

    def _forget(self, segment: Segment) -> None:
        """Drop a program that was never made."""
        self._recent = None
        for there in () if segment.trace.shapes else self._segments.values():
            there[:] = [one for one in there if one is not segment]

    def _ask(self, name: str) -> None:
        """Make a value of ``shared`` an input of all programs that are made from now on."""
        self._shared_kinds.ask(name)
        if name in self._learner.shared._packed:
            self._packed_by_others += (name,)

    def _with_asked(
        self, start: StepInputs, lefts: list[HostChanges], there: Sequence[Mapping[str, Any]]
    ) -> tuple[StepInputs, list[HostChanges]]:
        """What a step began with and the host left at its cuts, with the values that are asked for now."""
        kinds = self._shared_kinds
        first, *rest = [kinds.dynamic(values, kinds.of(values)) for values in there]
        pairs = zip(lefts, rest, strict=True)
        return start._replace(shared=start.shared | first), [
            left._replace(shared=left.shared | values) for left, values in pairs
        ]

    # -- inputs ------------------------------------------------------------------------------------------------

    def _start(
        self, state: State, attempt: int, values: NamespaceSignature, kept: NamespaceSignature
    ) -> tuple[StepInputs, dict[str, Any]]:
        backend, learner = self._backend, self._learner
        shared = vars(learner.shared)
        dynamic, static = self._parted(state, values)
        passed = self._shared_kinds.dynamic(shared, kept)
        words = self._words.vector(attempt)
        if self._words.large:
            passed |= {name: as_array(shared[name]) for name in self._words.large}
        attributes = vars(self._runner.phase)
        phase = {name: value for name, value in attributes.items() if backend.is_array(value)} if attributes else {}
        apply = state._apply  # pyright: ignore[reportPrivateUsage]
        draws = _NO_DRAWS if override.get() is None else self._drawn(attempt)
        inputs = (dynamic, passed, *self._hyper(), words, phase, () if isinstance(apply, bool) else apply, draws)
        return tuple.__new__(StepInputs, inputs), static  # StepInputs(...) takes twice as long

    def _seen(self, state: State) -> tuple[NamespaceSignature, NamespaceSignature]:
        for name in self._packed_by_others:
            getattr(self._learner.shared, name, None)
        return self._state_kinds.of(state.__dict__), self._shared_kinds.of(vars(self._learner.shared))

    def _parted(self, state: State, values: NamespaceSignature) -> tuple[dict[str, Tree], dict[str, Any]]:
        if values.all_arrays:
            return dict(state.__dict__), {}
        arrays, static = parted(self._backend, state.__dict__)
        return arrays, {name: seen(self._backend, state, name, value) for name, value in static.items()}

    def _drawn(self, attempt: int) -> dict[str, Any]:
        """What the host draws for a step."""
        host, seed = cast(Any, override.get()), self._learner.seed
        drawn = {
            stream: getattr(host, kind)(DrawKey(seed, int(stream), attempt), *args)
            for stream, (kind, args) in self._draws.items()
        }
        return cast("dict[str, Any]", self._backend.convert(drawn))

    def _hyper(self) -> tuple[dict[str, Any], dict[str, Any]]:
        own = self._learner.hyper._own  # pyright: ignore[reportPrivateUsage]
        return self._own(own), self._optimizers(self._backend.hyper_values())

    # -- programs ----------------------------------------------------------------------------------------------

    def _reuse_last_segment(
        self,
        body: Body,
        start: StepInputs,
        static: Any,
        wanted: RequestedOutputs,
        asleep: MutedEvents,
        fixed: bool | None,
        seen: tuple[NamespaceSignature, NamespaceSignature],
    ) -> Segment | None:
        """The first segment of the last step, if nothing that it depends on is another thing now."""
        function = body.__func__ if isinstance(body, MethodType) and body.__self__ is self._runner.phase else None
        learner = self._learner
        known: tuple[Any, ...] = (
            function,
            *seen,
            wanted,
            self._words.layout,
            learner.seed,
            self._cutters,
            learner.runs.nested_in_step,
        )
        known += (learner.loss_fn, override.get(), *self._attributes())
        attributes = (*vars(self._runner.phase), *vars(self._runner.phase).values())
        recent = self._recent
        comparable = recent is not None and len(known) == len(recent.known) and len(attributes) == len(recent.phase)
        if recent is not None and comparable and all(map(is_, known, recent.known)):
            unchanged = all(map(is_, attributes, recent.phase)) and asleep == recent.asleep
            if (
                unchanged
                and fixed is recent.apply
                and not (static or start.phase or start.draws or self._changed_static_values(recent.segment, {}))
            ):
                return recent.segment
        self._recent = None
        hidden = any(one.containers for one in seen)
        if function is None or static or start.phase or start.draws or hidden or not all(map(_is_atom, attributes)):
            return None
        segment = self._segment(body, start, static, wanted, asleep, (), fixed)
        self._recent = _Recent(segment, known, attributes, fixed, asleep)
        return segment

    def _segment(
        self,
        body: Body,
        start: StepInputs,
        static: dict[str, Any],
        wanted: RequestedOutputs,
        asleep: MutedEvents,
        cuts: Sequence[CutRecord],
        apply: bool | None,
    ) -> Segment:
        phase = self._runner.phase
        attributes = {name: value for name, value in vars(phase).items() if name not in start.phase}
        layout = self._words.layout
        key = (
            *(body_key(body, phase, self._backend), IdentityKey(self._learner.loss_fn)),
            frozen(attributes) if attributes else (),
            *(tuple(map(same, self._attributes())), tuple(static)),
            *(tuple(start.state), tuple(start.shared), wanted, self._learner.seed, apply),
            *(tuple(layout.items()), asleep, self._cutters, self._learner.runs.nested_in_step),
            None if override.get() is None else tuple(self._draws.items()),
            frozen(tuple(cuts)) if cuts else (),
        )
        there = self._segments.setdefault(key, [])
        for segment in there:
            if not self._changed_static_values(segment, static):
                return segment
        if not cuts:
            known: list[int] = [len(found) for other, found in self._segments.items() if not other[-1]]
            self._recompiles.of(key, sum(known), self._changed_static_values(there[-1], static) if there else ())
        donate = () if self._runner.cut_by(asleep) or self._learner.runs.nested_in_step else (0,)
        trace = BodyTrace(
            self._runner,
            body,
            tuple(cuts),
            wanted,
            apply,
            dict(layout),
            asleep,
            self._cutters,
            bool(donate),
            dict(self._draws),
        )
        made = Segment(self._backend.compile(trace, donate), trace)
        there.append(made)
        return made

    def _replaced(
        self, seen: dict[str, Any], now: dict[str, Tree], there: Mapping[str, Any]
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """State values that handlers replaced, and which leaf of the old one each of their leaves is."""
        for name, value in now.items():
            old = seen.get(name)
            if old is not value or (name in there and is_container(self._backend, value)):
                sources = _sources(self._backend, old, value)
                if sources != tuple(range(len(sources))):
                    yield name, sources

    def _next(self, segment: Segment, cut: CutRecord, static: Mapping[str, Any]) -> Segment | None:
        """The segment that went on from this cut the last time."""
        if (
            segment.successor is None
            or cut.static
            or segment.successor[0] != cut
            or self._changed_static_values(segment.successor[1], static)
        ):
            return None
        return segment.successor[1]

    def _attributes(self) -> tuple[Any, ...]:
        """What the traced handlers read of their callbacks."""
        return tuple([own.get(name) for own, names in self._watched for name in names]) if self._watched else ()

    def _changed_static_values(self, segment: Segment, static: Mapping[str, Any]) -> list[str]:
        """Values of ``shared`` and of the state, no arrays, that it read and that are not what they were."""
        if not (segment.trace.shared_read or segment.trace.state_read):
            return []
        shared = vars(self._learner.shared)
        read = ("shared", shared, segment.trace.shared_read), ("step", static, segment.trace.state_read)
        return [
            f"{root}.{name}"
            for root, now, noted in read
            for name, was in noted.items()
            if (name in now if was is ABSENT else name not in now or frozen(now[name]) != was)
        ]

    # -- outputs -----------------------------------------------------------------------------------------------

    def _store_outputs(
        self, state: State, outputs: dict[str, Tree], reached: SegmentEnd, attempt: int, first: Tree
    ) -> None:
        """What a segment computed becomes the learner's."""
        values = state.__dict__
        if reached.carried is None:
            self._backend.put_carried(outputs["carried"])
        else:
            self._backend.put_carried(with_leaves(self._backend, first, reached.carried, outputs["carried"]))
        if reached.event is None:
            packed = Packed(self._backend, outputs["packed"], reached.layout)
            state._packed = packed  # pyright: ignore[reportPrivateUsage]
            self._words.land(packed, attempt)
            values.update(dict.fromkeys(reached.left_out))  # what is not handed back was there all the same
        values.update(outputs["state"])
        shared = vars(self._learner.shared)
        shared.update(outputs["shared"])
        shared.update(reached.shared)
        for name, value in reached.state.items():
            if name == "apply":
                state._apply = value  # pyright: ignore[reportPrivateUsage]
            else:
                values[name] = value
        if "apply" in outputs["step"]:
            state._apply = outputs["step"]["apply"]  # pyright: ignore[reportPrivateUsage]
        state._updated = outputs["step"].get("updated", reached.updated)  # pyright: ignore[reportPrivateUsage]
        if reached.draws:
            state._draws = {**(state._draws or {}), **reached.draws}  # pyright: ignore[reportPrivateUsage]

    def _host_changes(
        self,
        state: State,
        reached: SegmentEnd,
        outputs: dict[str, Tree],
        before: tuple[dict[str, Any], Tree],
        first: Tree,
        initial: Mapping[str, Any],
    ) -> tuple[CutRecord, HostChanges]:
        """What the handlers of a cut made of it; what is no array and was there from the begin passes by."""
        by = tuple((state._replaced or {}).items())  # pyright: ignore[reportPrivateUsage]
        backend, learner = self._backend, self._learner
        seen, carried = before
        values, kept = self._seen(state)
        arrays, static = self._parted(state, values)
        static = {name: value for name, value in static.items() if initial.get(name, self) is not value}
        replaced: tuple[tuple[str, tuple[int, ...]], ...] = ()
        if reached.inside:
            replaced = tuple(self._replaced(seen, arrays, outputs["state"]))
            arrays, static = {name: arrays[name] for name, _ in replaced}, {}
        shared = self._shared_kinds.dynamic(vars(learner.shared), kept) | self._words.present()
        fixed = _fixed(state)
        apply = () if fixed is not None else state._apply  # pyright: ignore[reportPrivateUsage]
        now = backend.carried()
        differs, moved = _changed_leaves(backend, first, now), _changed_leaves(backend, carried, now)
        chain = outputs["chain"], outputs["pullback"]
        rest = (*self._hyper(), outputs["gradients"], apply, *chain)
        leaves = backend.tree_leaves(now) if differs else []
        left = HostChanges([leaves[place] for place in differs], arrays, shared, *rest)
        cut = CutRecord(reached.inside, fixed, replaced, by, tuple(static.items()), differs, moved, reached.chain)
        return cut, left


def _fixed(state: State) -> bool | None:
    """``state.apply`` if that is a bool, and not an input."""
    apply = state._apply  # pyright: ignore[reportPrivateUsage]
    return apply if isinstance(apply, bool) else None


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether nothing was replaced; what is new is no change: a packed value that was read."""
    return all(new.get(name, old) is value for name, value in old.items())


def programs_of(runner: StepRunner, known: dict[Hashable, Programs]) -> Programs:
    """The programs of a phase: those of an equal one, if there was one.

    Equal are phases of one class, name and plan; what their attributes are, is part of the key of each program.
    """
    phase = runner.phase
    whole = all(not vars(cls).get("__slots__") for cls in type(phase).__mro__)  # attributes in slots are not looked at
    key = (type(phase) if whole else IdentityKey(phase), runner.name, frozen(runner.plan))
    if key not in known:
        if len(known) >= _KNOWN:
            known.clear()
        known[key] = Programs(runner)
    return known[key]


def _is_atom(value: Any) -> bool:
    """Whether the same object is the same value."""
    return isinstance(value, (bool, int, float, str, type(None))) or callable(value)


def _changed_leaves(backend: Any, old: Tree, new: Tree) -> tuple[int, ...]:
    """Numbers of the leaves that are not the same."""
    if old is new:
        return ()
    pairs = enumerate(zip(backend.tree_leaves(new), backend.tree_leaves(old), strict=True))
    return tuple(place for place, (leaf, was) in pairs if leaf is not was)


def _sources(backend: Any, old: Tree, new: Tree) -> tuple[int, ...]:
    """For each leaf which leaf of the old tree it is, -1 for a new one."""
    places = {id(leaf): place for place, leaf in enumerate(backend.tree_leaves(old))}
    return tuple(places.get(id(leaf), -1) for leaf in backend.tree_leaves(new))
