"""Running compiled steps: finding or making the program of each segment, and what happens at the cuts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from types import MethodType
from typing import Any, NamedTuple, NoReturn, TypeAlias, cast

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
from loopcore.execution.segments import (
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
from loopcore.execution.step_handlers import StepHandlers
from loopcore.execution.trace import BodyTrace
from loopcore.execution.trace_errors import explained
from loopcore.handles.hyperparameters import own_values
from loopcore.handles.randomness import override
from loopcore.handles.trees import is_container
from loopcore.phases.base import Phase
from loopcore.protocols import Body
from loopcore.state import ABSENT, State, packed_in, seen

# Phases that equal no earlier one, such as those with a new plan each time, must not fill the memory with programs.
_MOST_PHASES = 64
_NO_DRAWS: dict[str, Any] = {}
_UNDRAWABLE = (
    "same_random draws on the host before a step runs, but an argument of a draw behind a cut is a value of the step: "
    "make it a number, or set compile = False on the phase"
)


_Step: TypeAlias = tuple[Body, DrawKey, State, frozenset[str], MutedEvents]  # arguments of `Programs.run`


class StepCall(NamedTuple):
    """What one step runs with, of whichever segment.

    Attributes:
        body: the step body.
        inputs: the arrays and floats that enter its programs.
        static: state values that are no arrays: part of the key of a program, by name, and of what it read.
        requested: step values to hand back.
        muted: events that some handlers do not hear in this step.
        apply: ``state.apply`` if that is a bool, and not an input.
        signatures: names and types of the state and of ``shared``.
    """

    body: Body
    inputs: StepInputs
    static: dict[str, Any]
    requested: RequestedOutputs
    muted: MutedEvents
    apply: bool | None
    signatures: tuple[NamespaceSignature, NamespaceSignature]


class _Progress(NamedTuple):
    """How far a step has come.

    Attributes:
        first: parameters, buffers and optimizer states that it began with.
        cuts: where it was cut, for the traces of the segments that follow.
        changes: what the host left at each of these cuts.
        shared: values of ``shared`` when it began and at each cut, where the plan has cuts.
    """

    first: Tree
    cuts: list[CutRecord]
    changes: list[HostChanges]
    shared: list[dict[str, Any]]


class ProgramKey(NamedTuple):
    """All that a program depends on besides the values of its inputs; `RecompilationLog` names what changed in it."""

    body: Hashable
    loss: Hashable
    attributes: Hashable  # of the phase
    callback_attributes: Hashable
    static_names: tuple[str, ...]
    state_names: tuple[str, ...]
    shared_names: tuple[str, ...]
    requested: RequestedOutputs
    seed: int
    apply: bool | None
    layout: Hashable  # of the packed carry
    muted: MutedEvents
    cutters: frozenset[int] | None
    nested: bool
    draws: Hashable
    cuts: Hashable


@dataclass
class Segment:
    """A compiled segment, and what its trace found out."""

    run: Callable[..., Any]
    trace: BodyTrace
    successor: tuple[CutRecord, Segment] | None = None  # the last cut it ended in, and the segment that went on
    logged_shapes: int = 1  # of how many shapes the log knows


class _Recent(NamedTuple):
    """The first segment of the last step, and what it depended on: a step that depends on the same runs it again."""

    segment: Segment
    depends_on: tuple[Any, ...]  # compared by identity
    attributes: tuple[Any, ...]  # names and values of those of the phase, by identity too
    apply: bool | None
    muted: MutedEvents

    def fits(self, depends_on: tuple[Any, ...], attributes: tuple[Any, ...], call: StepCall) -> bool:
        """Tell whether a step depends on the same objects."""
        return (
            len(depends_on) == len(self.depends_on)
            and len(attributes) == len(self.attributes)
            and all(map(is_, depends_on, self.depends_on))
            and all(map(is_, attributes, self.attributes))
            and call.apply is self.apply
            and call.muted == self.muted
        )


class Programs:
    """The compiled steps of one phase, and of all that are equal to it.

    Args:
        runner: of the first of these phases.

    Attributes:
        first: that runner.
        drawable: whether, of what `same_random` has the host draw, all is known before a step runs.
    """

    def __init__(self, runner: StepHandlers) -> None:
        self.first = self._runner = runner
        self._learner = runner.learner
        self._backend = cast(CompilingBackend, runner.backend)
        self._segments: dict[ProgramKey, list[Segment]] = {}
        self._recompilations = RecompilationLog(runner.name)
        self._recent: _Recent | None = None
        # One object for each, since `_last_first_segment` compares them by identity.
        self._requested: dict[frozenset[str], RequestedOutputs] = {}
        self._cutters: frozenset[int] | None = frozenset()  # see `BodyTrace`
        names = [path.removeprefix("shared.") for path in runner.plan.carried if path.startswith("shared.")]
        self._state_classifier = NamespaceClassifier(self._backend)
        self._shared_classifier = self._classifier_of_shared(names)
        self._draws: dict[str, Draw] = {}  # of the host, where they enter the programs
        self.drawable = True  # whether the host can draw everything before a step
        self._packed_by_others: tuple[str, ...] = ()  # values of shared that are read, and may be packed
        self._packed_in_shared = packed_in(runner.learner.shared)
        self._own_hyper = own_values(runner.learner.hyper)
        self._packed_carry = PackedCarry(self._backend, runner.learner.shared, names)
        self._hyper_scalars, self._optimizer_scalars = DeviceScalars(self._backend), DeviceScalars(self._backend)
        self._attributes_read = [
            (vars(callback), attributes_read(callback, methods)) for callback, methods in runner.traced
        ]

    def _classifier_of_shared(self, carried: Sequence[str]) -> NamespaceClassifier:
        """Make what tells apart the values of ``shared`` that are inputs.

        They are those that somebody declares or the code of the body names; a trace asks for others that it reads.
        """
        # The names come from the code of the body, so there are too many rather than too few: a value that is an input
        # and not read costs little, one that is read and no input costs another trace.
        phase = self._runner.phase
        callbacks = [callback for callback, methods in self._runner.traced if methods]
        paths = [*phase.reads, *(path for c in callbacks for path in (*c.reads, *c.traced_reads, *c.writes))]
        declared = frozenset(path.removeprefix("shared.") for path in paths if path.startswith("shared."))
        return NamespaceClassifier(
            self._backend, frozenset(carried), declared.union(names_read(cast(Any, type(phase)), ("step",)))
        )

    def run(
        self, runner: StepHandlers, body: Body, key: DrawKey, state: State, reads: frozenset[str], muted: MutedEvents
    ) -> None:
        """Run one step of a phase: its segments, and between two of them the host handlers of the cut."""
        before = self._runner
        # An equal phase may run, or the same one within its own step. What asks for the runner meanwhile must get the
        # present one, whose phase the handlers hear.
        if runner is before:
            return self._step(body, key, state, reads, muted)
        self._runner = runner
        try:
            self._step(body, key, state, reads, muted)
        finally:
            self._runner = before

    def _step(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], muted: MutedEvents) -> None:
        """Run the segments of a step one after the other, and the host handlers of the cut between two of them."""
        call = self._call(body, key.step, state, reads, muted)
        progress = _Progress(self._backend.carried(), [], [], [])
        if self._runner.plan.cuts:
            progress.shared.append(dict(vars(self._learner.shared)))
        segment = self._last_first_segment(call) or self._segment(call, ())
        while True:
            try:
                outputs, end = self._run(segment, call, progress)
            except Undrawable:
                self._note_undrawable(progress)
                raise  # the runner runs the step without programs
            except (Exception, Undrawn, Unasked) as reason:
                way = self._another_way(reason, segment, call, progress, (body, key, state, reads, muted))
                if way is None:
                    return
                call, segment = way
                continue
            before = self._replay_observers(state, outputs, end, key.step, progress.first) if end.looks else None
            if before is not None:  # it was no mere look: from here on it is a cut
                segment, outputs, end = self._run_again_cut(call, progress, state, before)
            else:
                self._store_outputs(state, outputs, end, key.step, progress.first)
                if end.event is None:
                    return
                before = self._deliver_at_cut(state, end)
            segment = self._after_cut(
                segment, call, progress, self._host_changes(state, end, outputs, before, call, progress)
            )

    def _note_undrawable(self, progress: _Progress) -> None:
        """Let the host draw nothing before a step any more.

        Raises:
            TraceError: part of this step has been run with such draws.
        """
        if progress.cuts:
            raise TraceError(_UNDRAWABLE) from None
        self.drawable = False

    def _another_way(
        self, reason: BaseException, segment: Segment, call: StepCall, progress: _Progress, step: _Step
    ) -> tuple[StepCall, Segment] | None:
        """What a step goes on with whose segment could not be run; None where all of it has been run in another way.

        Raises:
            Exception: there is no other way.
        """
        if isinstance(reason, Undrawn):
            self._forget(segment)
            self._draws[str(reason.stream)] = reason.draw
            call = call._replace(inputs=call.inputs._replace(draws=self._drawn(step[1].step)))
            return call, self._segment(call, progress.cuts)
        if isinstance(reason, Unasked):
            self._forget(segment)
            self._ask(reason.name)
            if not progress.cuts:  # nothing has been run
                self._step(*step)
                return None
            call = self._with_asked(call, progress)
            return call, self._segment(call, progress.cuts)
        assert isinstance(reason, Exception)
        if segment.trace.observed and self._cutters is not None and not progress.cuts:
            self._run_cut(*step)  # so that they hear what came before it
            return None
        _raise_explained(reason, self._backend, self._runner.phase)

    def _call(self, body: Body, attempt: int, state: State, reads: frozenset[str], muted: MutedEvents) -> StepCall:
        """Collect, once a step, what its segments run with."""
        signatures = self._signatures(state)
        apply = self._learner.runs.record.apply
        inputs, static = self._inputs(state, attempt, apply, *signatures)
        requested = self._requested.get(reads) or self._request(reads)
        fixed = apply if isinstance(apply, bool) else None
        return tuple.__new__(StepCall, (body, inputs, static, requested, muted, fixed, signatures))

    def _run_again_cut(
        self, call: StepCall, progress: _Progress, state: State, before: tuple[dict[str, Any], Tree]
    ) -> tuple[Segment, dict[str, Tree], SegmentEnd]:
        """Run the part before an event again as a segment of its own: a handler that declares no writes wrote there."""
        # Those who wrote are cutters by now, so this is another program, which ends at their event.
        segment = self._segment(call, progress.cuts)
        outputs, end = self._run(segment, call, progress)
        for name, value in (outputs["state"] | end.state).items():
            # What the handlers wrote stays. What is added was not handed back at the look, since nobody reads it, but
            # the rest of the step goes on from it; it counts as there before the handlers, or it would be taken for a
            # change of theirs.
            state.__dict__.setdefault(name, value)
            before[0].setdefault(name, value)
        return segment, outputs, end

    def _after_cut(
        self, segment: Segment, call: StepCall, progress: _Progress, recorded: tuple[CutRecord, HostChanges]
    ) -> Segment:
        """Note what the host did at a cut; return the segment that goes on from there."""
        cut, changes = recorded
        if changes.gradients:  # a gradient is done: nobody goes backwards through the earlier cuts any more
            progress.changes[:] = [earlier._replace(chain=[], pullback=None) for earlier in progress.changes]
        progress.cuts.append(cut)
        progress.changes.append(changes)
        progress.shared.append(dict(vars(self._learner.shared)))
        following = self._next(segment, cut, call.static) or self._segment(call, progress.cuts)
        # Cuts mostly end the same way in every step, and to compare one record is less than to make the key of a
        # program.
        segment.successor = (cut, following)
        return following

    def _run(self, segment: Segment, call: StepCall, progress: _Progress) -> tuple[dict[str, Tree], SegmentEnd]:
        """Run the program of a segment; its first call traces it."""
        trace = segment.trace
        # Another shape of its arguments makes the framework trace again, and then with the phase and the body that run
        # now.
        if trace.runner is not self._runner:
            trace.take(self._runner, call.body)
        # A trace may read them, see `State`; a program that is there does not.
        if call.static:
            trace.static = call.static
        outputs, end = segment.run(progress.first, call.inputs, progress.changes)
        if end.mixed or end.looks:
            fill(self._backend, outputs, end)
        if call.static:
            trace.static = {}  # or the program would keep these values alive
        # The framework has traced during this call.
        if len(trace.shapes) > segment.logged_shapes:
            if trace.shapes[-1] in trace.shapes[:-1]:  # no other shape: nothing is kept, as under jax.disable_jit
                trace.shapes.pop()
            elif not progress.changes:
                self._recompilations.of_shape(trace.shapes[-2], trace.shapes[-1], len(trace.shapes))
            segment.logged_shapes = len(trace.shapes)
        return outputs, end

    def _deliver_at_cut(self, state: State, end: SegmentEnd) -> tuple[dict[str, Any], Tree]:
        """Deliver the event that was reached; returns what there was before.

        Raises:
            CallbackError: a handler changed an attribute of the phase: the program may have read it, or may yet.
        """
        assert end.event is not None
        before, attributes = (dict(state.__dict__), self._backend.carried()), dict(vars(self._runner.phase))
        record = self._learner.runs.record
        record.differentiated = end.differentiated
        try:
            deliver(end.handlers, self._runner.phase, end.event)
        finally:
            record.differentiated = None
        # This object stands for "not there", as no attribute is it.
        changed = [name for name, value in vars(self._runner.phase).items() if attributes.get(name, self) is not value]
        if changed:
            names = ", ".join(name_of(handler.callback) for handler in end.handlers)
            raise CallbackError(
                f"{names} changed {', '.join(changed)} of the phase at {type(end.event).__name__}, in the middle of "
                "a compiled step, which may have read it before: change it when a step begins, write a value of the "
                "step, or set compile = False on the phase"
            )
        return before

    def _replay_observers(
        self, state: State, outputs: dict[str, Tree], end: SegmentEnd, attempt: int, first: Tree
    ) -> tuple[dict[str, Any], Tree] | None:
        """Deliver the events of observers after the program; if one changed something, return what was there before."""
        # The learner is put where the step was at each event, one after the other. A handler that cancels there leaves
        # it so, which drops what the program did afterwards, as if it had been cut.
        for arrays, look in zip(outputs["looks"], end.looks, strict=True):
            self._store_outputs(state, arrays, look, attempt, first)
            side_state = self._side_state()
            before = self._deliver_at_cut(state, look)
            trained = _changed_leaves(self._backend, before[1], self._backend.carried())
            unchanged = _is_unchanged(before[0], state.__dict__) and not trained
            if not unchanged or not _is_unchanged(side_state, self._side_state()):
                # From now on its events are cuts. The step it was caught in goes on from here, and nothing of the rest
                # of it counts.
                self._cutters = (self._cutters or frozenset()) | {id(handler.callback) for handler in look.handlers}
                return before
        return None

    def _side_state(self) -> dict[str, Any]:
        """Collect what handlers could change besides the values of the step and what is trained."""
        learner = self._learner
        packed = self._packed_in_shared
        # A packed value becomes an attribute when it is read, which is no change.
        shared = {f"shared.{name}": value for name, value in vars(learner.shared).items() if name not in packed}
        optimizers = {f" {name}": value for name, value in self._backend.hyper_values().items()}
        return {**shared, **self._own_hyper, **optimizers}

    def _run_cut(self, body: Body, key: DrawKey, state: State, reads: frozenset[str], muted: MutedEvents) -> None:
        """Run a step whose program fails with a cut at every event that somebody hears."""
        # For this step alone: the error may not come again.
        cutters, self._cutters = self._cutters, None
        try:
            self._step(body, key, state, reads, muted)
        finally:
            self._cutters = cutters

    def _request(self, reads: frozenset[str]) -> RequestedOutputs:
        """Name the step values that a program hands back where the caller of the step wants these besides."""
        runner = self._runner
        all_values = {"*"} if runner.keeps_all else frozenset[str]()
        # The weight is what means of an epoch count a step by, whoever reads it.
        requested = RequestedOutputs(runner.kept | reads | {"weight"} | all_values, runner.deferred - reads)
        self._requested[reads] = requested
        return requested

    def _forget(self, segment: Segment) -> None:
        """Drop a program that was never made."""
        # Before the key is made: an error there must not leave the old answer to a new question.
        self._recent = None
        # One that was traced for another shape before is a program, and right for what it read.
        for segments in () if segment.trace.shapes else self._segments.values():
            segments[:] = [other for other in segments if other is not segment]

    def _ask(self, name: str) -> None:
        """Make a value of ``shared`` an input of all programs that are made from now on."""
        # The name is in the key of programs from now on, so that those without it are not found again.
        self._shared_classifier.ask(name)
        # It has to be unpacked before every step, see `_signatures`.
        if name in self._packed_in_shared:
            self._packed_by_others += (name,)

    def _with_asked(self, call: StepCall, progress: _Progress) -> StepCall:
        """Make inputs of values that are asked for now: as they were when the step began, and at each of its cuts."""
        classifier = self._shared_classifier
        at_begin, *at_cuts = [classifier.dynamic(values, classifier.of(values)) for values in progress.shared]
        progress.changes[:] = [
            changes._replace(shared=changes.shared | values)
            for changes, values in zip(progress.changes, at_cuts, strict=True)
        ]
        return call._replace(inputs=call.inputs._replace(shared=call.inputs.shared | at_begin))

    # -- inputs ------------------------------------------------------------------------------------------------

    def _inputs(
        self, state: State, attempt: int, apply: Any, of_state: NamespaceSignature, of_shared: NamespaceSignature
    ) -> tuple[StepInputs, dict[str, Any]]:
        """Collect what enters the programs of a step, and the state values that do not."""
        backend, learner = self._backend, self._learner
        values = vars(learner.shared)
        arrays, static = self._parted(state, of_state)
        shared = self._shared_classifier.dynamic(values, of_shared)
        packed = self._packed_carry.vector(attempt)
        if self._packed_carry.large:
            shared |= {name: as_array(values[name]) for name in self._packed_carry.large}
        attributes = vars(self._runner.phase)
        phase = {name: value for name, value in attributes.items() if backend.is_array(value)} if attributes else {}
        draws = _NO_DRAWS if override.get() is None else self._drawn(attempt)
        inputs = (arrays, shared, *self._hyper(), packed, phase, () if isinstance(apply, bool) else apply, draws)
        return tuple.__new__(StepInputs, inputs), static  # StepInputs(...) takes twice as long

    def _signatures(self, state: State) -> tuple[NamespaceSignature, NamespaceSignature]:
        """Return names and types of the state and of ``shared``, after unpacking the carry that others may read."""
        for name in self._packed_by_others:
            # For its effect: reading makes an attribute of it.
            getattr(self._learner.shared, name, None)
        return self._state_classifier.of(state.__dict__), self._shared_classifier.of(vars(self._learner.shared))

    def _parted(self, state: State, signature: NamespaceSignature) -> tuple[dict[str, Tree], dict[str, Any]]:
        """Part the values of the state: those that are inputs, and the others."""
        if signature.all_arrays:
            return dict(state.__dict__), {}
        arrays, static = parted(self._backend, state.__dict__)
        return arrays, {name: seen(self._backend, state, name, value) for name, value in static.items()}

    def _drawn(self, attempt: int) -> dict[str, Any]:
        """Draw on the host all that the programs of a step take from it."""
        # By the same keys as in an eager step, so that both plans draw the same.
        host, seed = cast(Any, override.get()), self._learner.seed
        draws = {
            stream: getattr(host, kind)(DrawKey(seed, int(stream), attempt), *args)
            for stream, (kind, args) in self._draws.items()
        }
        return cast("dict[str, Any]", self._backend.convert(draws))

    def _hyper(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the hyperparameters of the user's own, and those of the optimizers."""
        return self._hyper_scalars(self._own_hyper), self._optimizer_scalars(self._backend.hyper_values())

    # -- programs ----------------------------------------------------------------------------------------------

    def _last_first_segment(self, call: StepCall) -> Segment | None:
        """The first segment of the last step, if nothing that it depends on is another thing now.

        All is compared by identity, which takes a twentieth of making the key of a program.
        """
        phase, learner, body = self._runner.phase, self._learner, call.body
        function = body.__func__ if isinstance(body, MethodType) and body.__self__ is phase else None
        # All that `_key` has, as objects that stay the same where nothing changed: signatures and requests are kept for
        # that. Attributes of the phase follow on their own, with their names.
        depends_on: tuple[Any, ...] = (
            *(function, *call.signatures, call.requested, self._packed_carry.layout, learner.seed, self._cutters),
            *(learner.runs.nested_in_step, learner.loss_fn, override.get(), *self._callback_attributes()),
        )
        attributes = (*vars(phase), *vars(phase).values())
        # Any other step has values to look at one by one, or inputs whose names are part of the key.
        inputs_alone = not (call.static or call.inputs.phase or call.inputs.draws)
        recent = self._recent
        fits = recent is not None and inputs_alone and recent.fits(depends_on, attributes, call)
        if recent is not None and fits and not self._changed_static_values(recent.segment, {}):
            return recent.segment
        self._recent = None
        # A container can change inside and stay the same object, as can an attribute that is no number, string or
        # function.
        containers = any(signature.containers for signature in call.signatures)
        if function is None or not inputs_alone or containers or not all(map(_is_atom, attributes)):
            return None
        segment = self._segment(call, ())
        self._recent = _Recent(segment, depends_on, attributes, call.apply, call.muted)
        return segment

    def _segment(self, call: StepCall, cuts: Sequence[CutRecord]) -> Segment:
        """Find the segment that follows some cuts: one that fits, or a new one, whose program is not traced yet."""
        # Several programs may have one key: what a body reads of values that are no arrays is known when it has been
        # traced.
        key = self._key(call, cuts)
        segments = self._segments.setdefault(key, [])
        for segment in segments:
            if not self._changed_static_values(segment, call.static):
                return segment
        if not cuts:
            # First segments alone: a step that is cut in three is not compiled three times too often.
            count = sum(len(segments_of_key) for other, segments_of_key in self._segments.items() if other.cuts == ())
            changed = self._changed_static_values(segments[-1], call.static) if segments else ()
            self._recompilations.of(key, count, changed)
        # The program may write its results over the parameters that it gets, which spares a copy of all of them. Not
        # where a later segment begins with them again, and not while a step around this one still has them.
        donate = () if self._runner.cut_by(call.muted) or self._learner.runs.nested_in_step else (0,)
        trace = BodyTrace(
            runner=self._runner,
            body=call.body,
            cuts=tuple(cuts),
            requested=call.requested,
            apply=call.apply,
            layout=dict(self._packed_carry.layout),
            muted=call.muted,
            cutters=self._cutters,
            donated=bool(donate),
            draws=dict(self._draws),
        )
        segment = Segment(self._backend.compile(trace, donate), trace)
        segments.append(segment)
        return segment

    def _key(self, call: StepCall, cuts: Sequence[CutRecord]) -> ProgramKey:
        """Make the key of a segment: all that its program depends on besides the values of its inputs."""
        phase, learner, inputs = self._runner.phase, self._learner, call.inputs
        # Arrays of the phase are inputs: another array is the same program.
        attributes = {name: value for name, value in vars(phase).items() if name not in inputs.phase}
        return ProgramKey(
            body=body_key(call.body, phase, self._backend),
            loss=IdentityKey(learner.loss_fn),
            attributes=frozen(attributes) if attributes else (),
            callback_attributes=tuple(map(same, self._callback_attributes())),
            static_names=tuple(call.static),
            state_names=tuple(inputs.state),
            shared_names=tuple(inputs.shared),
            requested=call.requested,
            seed=learner.seed,
            apply=call.apply,
            layout=tuple(self._packed_carry.layout.items()),
            muted=call.muted,
            cutters=self._cutters,
            nested=learner.runs.nested_in_step,
            draws=None if override.get() is None else tuple(self._draws.items()),
            cuts=frozen(tuple(cuts)) if cuts else (),
        )

    def _replaced(
        self, before: dict[str, Any], present: dict[str, Tree], outputs: Mapping[str, Any]
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the state values that handlers replaced, and which leaf of the old one each of their leaves is."""
        for name, value in present.items():
            old = before.get(name)
            if old is not value or (name in outputs and is_container(self._backend, value)):
                sources = _sources(self._backend, old, value)
                if sources != tuple(range(len(sources))):
                    yield name, sources

    def _next(self, segment: Segment, cut: CutRecord, static: Mapping[str, Any]) -> Segment | None:
        """Return the segment that went on from this cut the last time, if the cut is the same."""
        if (
            segment.successor is None
            # Values that are no arrays may be anything, with a comparison that costs or fails; then the key is made.
            or cut.static
            or segment.successor[0] != cut
            or self._changed_static_values(segment.successor[1], static)
        ):
            return None
        return segment.successor[1]

    def _callback_attributes(self) -> tuple[Any, ...]:
        """Return what the traced handlers read of their callbacks."""
        read = self._attributes_read
        return tuple([attributes.get(name) for attributes, names in read for name in names]) if read else ()

    def _changed_static_values(self, segment: Segment, static: Mapping[str, Any]) -> list[str]:
        """List values, no arrays, of ``shared`` and the state that a segment read and that are not what they were."""
        trace = segment.trace
        if not (trace.shared_read or trace.state_read):
            return []
        # The code may have missed a name that is there now, or the reverse; both are another program.
        roots = ("shared", vars(self._learner.shared), trace.shared_read), ("step", static, trace.state_read)
        return [
            f"{root}.{name}"
            for root, values, read in roots
            for name, key in read.items()
            if (name in values if key is ABSENT else name not in values or frozen(values[name]) != key)
        ]

    # -- outputs -----------------------------------------------------------------------------------------------

    def _store_outputs(
        self, state: State, outputs: dict[str, Tree], end: SegmentEnd, attempt: int, first: Tree
    ) -> None:
        """Make what a segment computed the learner's."""
        values, record = state.__dict__, self._learner.runs.record
        if end.carried is None:
            self._backend.put_carried(outputs["carried"])
        else:
            self._backend.put_carried(with_leaves(self._backend, first, end.carried, outputs["carried"]))
        if end.event is None:
            packed = Packed(self._backend, outputs["packed"], end.layout)
            record.packed = packed
            self._packed_carry.land(packed, attempt)
            values.update(dict.fromkeys(end.left_out))  # what is not handed back was there all the same
        values.update(outputs["state"])
        shared = vars(self._learner.shared)
        shared.update(outputs["shared"])
        shared.update(end.shared)
        for name, value in end.state.items():
            if name == "apply":
                record.apply = value
            else:
                values[name] = value
        if "apply" in outputs["step"]:
            record.apply = outputs["step"]["apply"]
        record.updated = outputs["step"].get("updated", end.updated)
        if end.draws:
            record.draws = {**(record.draws or {}), **end.draws}

    def _host_changes(
        self,
        state: State,
        end: SegmentEnd,
        outputs: dict[str, Tree],
        before: tuple[dict[str, Any], Tree],
        call: StepCall,
        progress: _Progress,
    ) -> tuple[CutRecord, HostChanges]:
        """Record what the handlers of a cut changed; what is no array and was there from the begin passes by."""
        backend, record = self._backend, self._learner.runs.record
        values_before, carried_before = before
        of_state, of_shared = self._signatures(state)
        arrays, static = self._parted(state, of_state)
        # The cut has those that came since the step began; the others are in the call, where later segments find them.
        static = {name: value for name, value in static.items() if call.static.get(name, self) is not value}
        replaced: tuple[tuple[str, tuple[int, ...]], ...] = ()
        if end.inside:
            replaced = tuple(self._replaced(values_before, arrays, outputs["state"]))
            # Of an objective the next segment computes its values itself. Of the handlers it takes what they replaced.
            arrays, static = {name: arrays[name] for name, _ in replaced}, {}
        carried = backend.carried()
        differs = _changed_leaves(backend, progress.first, carried)
        leaves = backend.tree_leaves(carried) if differs else []
        apply = record.apply
        fixed = apply if isinstance(apply, bool) else None
        hyper, optimizers = self._hyper()
        changes = HostChanges(
            # Counted from the begin of the step, which is what each segment gets as its parameters.
            carried=[leaves[place] for place in differs],
            state=arrays,
            shared=self._shared_classifier.dynamic(vars(self._learner.shared), of_shared)
            | self._packed_carry.present(),
            hyper=hyper,
            optimizers=optimizers,
            gradients=outputs["gradients"],
            apply=() if fixed is not None else apply,
            chain=outputs["chain"],
            pullback=outputs["pullback"],
        )
        cut = CutRecord(
            inside=end.inside,
            apply=fixed,
            replaced=replaced,
            by=tuple((record.replaced or {}).items()),
            static=tuple(static.items()),
            differs=differs,
            moved=_changed_leaves(backend, carried_before, carried),
            chain=end.chain,
        )
        return cut, changes


def _raise_explained(error: Exception, backend: CompilingBackend, phase: Phase) -> NoReturn:
    """Raise an error of a program, or one that teaches in its place."""
    better = explained(error, backend, phase)
    if better is error:
        raise error
    raise better from error


def _is_unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether no value was replaced; a new name is no change, since a packed value gets one when it is read."""
    return all(new.get(name, old) is value for name, value in old.items())


def programs_of(runner: StepHandlers, by_phase: dict[Hashable, Programs]) -> Programs:
    """Return the programs of a phase: those of an equal one, if there was one.

    Equal are phases of one class, name and plan; what their attributes are, is part of the key of each program.
    """
    phase = runner.phase
    # Attributes in slots are not part of the key of a program, so that such a phase equals itself alone.
    has_no_slots = all(not vars(cls).get("__slots__") for cls in type(phase).__mro__)
    # A plan is compared by content, so that a phase made anew at every step finds its programs.
    key = (type(phase) if has_no_slots else IdentityKey(phase), runner.name, frozen(runner.plan))
    if key not in by_phase:
        if len(by_phase) >= _MOST_PHASES:
            by_phase.clear()
        by_phase[key] = Programs(runner)
    return by_phase[key]


def _is_atom(value: Any) -> bool:
    """Tell whether a value cannot change as long as it is the same object."""
    return isinstance(value, (bool, int, float, str, type(None))) or callable(value)


def _changed_leaves(backend: Any, old: Tree, new: Tree) -> tuple[int, ...]:
    """Number the leaves of a tree that are not those of another one."""
    if old is new:
        return ()
    pairs = enumerate(zip(backend.tree_leaves(new), backend.tree_leaves(old), strict=True))
    return tuple(place for place, (leaf, old_leaf) in pairs if leaf is not old_leaf)


def _sources(backend: Any, old: Tree, new: Tree) -> tuple[int, ...]:
    """Find for each leaf which leaf of the old tree it is, -1 for a new one."""
    # By identity: a handler that hands a leaf back, in whatever container, leaves it in the graph of the gradient.
    places = {id(leaf): place for place, leaf in enumerate(backend.tree_leaves(old))}
    return tuple(places.get(id(leaf), -1) for leaf in backend.tree_leaves(new))
