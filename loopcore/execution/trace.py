"""The functional view of a step body: run once with placeholders for arrays, it becomes a program.

While a body is traced, everything it may read or change (parameters, optimizer state, step values, shared arrays,
hyperparameters, the number of the step) is replaced by inputs of the program, and put back afterwards. A body that
is cut is traced once for each segment: the part before the cut is run again, with what the host left at each earlier
cut in place of what the body had there, and the compiler drops what nobody uses any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any, NamedTuple, cast

import numpy as np

from loopcore._utils.value_keys import frozen
from loopcore.backend.array_namespace import is_floating
from loopcore.backend.packing import Layout, Packed, add_slot
from loopcore.backend.protocol import CompilingBackend, DrawKey, Tree
from loopcore.callback import is_observer
from loopcore.dispatch import Handler, MutedEvents, deliver
from loopcore.errors import CarryError, TraceError
from loopcore.events import Event
from loopcore.execution.program_inputs import as_array, is_dynamic, parted
from loopcore.execution.segments import (
    Chain,
    CutReached,
    CutRecord,
    Draw,
    HostChanges,
    Place,
    RequestedOutputs,
    SegmentEnd,
    StepInputs,
    Unasked,
    Undrawable,
    Undrawn,
    with_leaves,
)
from loopcore.execution.step_handlers import StepHandlers
from loopcore.handles.hyperparameters import own_values
from loopcore.handles.trees import is_container
from loopcore.protocols import Body
from loopcore.state import ABSENT, State, hide, record_of, show

# Properties of `State`, not values in its dict, so that they are handed back apart from the others.
_STEP = ("apply", "updated")


class _Fixed(NamedTuple):
    """What a segment leaves that is no array: known when it is traced, and the same each time it runs."""

    state: dict[str, Any]
    shared: dict[str, Any]
    updated: Any
    places: tuple[int, ...] | None  # of the parameters, buffers and optimizer states that are handed back; None: all


@dataclass(eq=False)
class BodyTrace:
    """One segment of a step body as a program: what it is traced for, and what its traces found out.

    Attributes:
        runner: of the phase, or of an equal one.
        body: the step body.
        cuts: the earlier cuts of this step.
        requested: names of step values that are handed back.
        apply: ``state.apply`` at the begin of the step if that is a bool.
        layout: of the packed words that come in.
        muted: handlers that do not hear this step.
        cutters: callbacks, by id, that cut although they declare no writes; None: all do.
        donated: whether the program uses up the parameters it gets, so that it has to return all of them.
        draws: which draws of the host, by stream, are among its inputs.
        observed: whether an event was only looked at.
        static: state values that are no arrays, of the step that runs.
        shared_read, state_read: values that are no arrays and were read, as keys: the program is made for them.
        shapes: of the arrays of the state, for each time it was traced.
    """

    runner: StepHandlers
    body: Body
    cuts: Sequence[CutRecord]
    requested: RequestedOutputs
    apply: bool | None
    layout: Layout
    muted: MutedEvents
    cutters: frozenset[int] | None
    donated: bool
    draws: Mapping[str, Draw]
    observed: bool = False
    static: Mapping[str, Any] = field(default_factory=dict)
    shared_read: dict[str, Any] = field(default_factory=dict)
    state_read: dict[str, Any] = field(default_factory=dict)
    shapes: list[dict[str, str]] = field(default_factory=list)

    def take(self, runner: StepHandlers, body: Body) -> None:
        """Run this body when it is traced the next time: that of a phase equal to the one it was made for."""
        self.runner, self.body = runner, body

    def __call__(self, carried: Tree, inputs: StepInputs, changes: list[HostChanges]) -> tuple[Tree, SegmentEnd]:
        """Run the body with placeholders; this is what the adapter compiles.

        Args:
            carried: parameters, buffers and optimizer states.
            inputs: what the step begins with.
            changes: what the host left at each earlier cut.

        Returns:
            The arrays to hand back, and what else is known of the segment's end.
        """
        backend = cast(CompilingBackend, self.runner.backend)
        # A framework calls this again for each new shape of its arguments. The list tells `Programs` of it, which logs
        # it.
        self.shapes.append({name: _shape(backend, value) for name, value in inputs.state.items()})
        try:
            return _TraceRun(self, carried, inputs, changes).run()
        except (Unasked, Undrawn, Undrawable):
            # Nothing came of this trace: it is made anew, with what was missing among its inputs.
            self.shapes.pop()
            raise


class _TraceRun:
    """One run of a body with placeholders. It ends with the trace, so that no program keeps the arrays it began with.

    Args:
        spec: what is traced.
        carried, inputs, changes: as of `BodyTrace`.
    """

    def __init__(self, spec: BodyTrace, carried: Tree, inputs: StepInputs, changes: list[HostChanges]) -> None:
        self._spec = spec
        self._runner = spec.runner
        self._learner = spec.runner.learner
        self._backend = cast(CompilingBackend, spec.runner.backend)
        self._inputs = inputs
        self._changes = changes
        self._first = carried
        self._shared_at_begin: dict[str, Any] = {}  # values of shared, to find what the body changed
        self._attributes: dict[str, Any] = {}  # placeholders of the arrays that the phase holds
        # In the order in which the body asks for gradients: it is run from its begin and asks for these again.
        self._finished_gradients = [gradient for change in changes for gradient in change.gradients]
        self._computed: list[Any] = []  # gradients of this segment
        self._cuts_passed = self._gradients = self._depth = 0
        self._observed: list[tuple[dict[str, Tree], SegmentEnd]] = []
        self._chains = False  # whether the open gradient is taken piece by piece
        self._handed_on: list[Any] = []  # what the last piece begins with

    def run(self) -> tuple[Tree, SegmentEnd]:
        """Run the body up to the next cut, or to its end."""
        with self._installed(self._first, self._inputs) as state:
            return self._run(state)

    def _run(self, state: State) -> tuple[Tree, SegmentEnd]:
        runner = self._runner
        key = DrawKey(self._learner.seed, runner.stream, self._attempt)
        try:
            self._backend.run_body(runner.call, key, self._spec.body, state, self._handle)
            # `_put_back` takes such an array out again: unless it is refused, the next step finds the old attribute
            # there, and nobody is told.
            self._check_phase()
            outputs, end = self._at_end()
        except CutReached as cut:
            outputs, end = cut.outputs, cut.end
            outputs["chain"], outputs["pullback"] = cut.leaves, cut.pullback
        outputs["looks"] = [arrays for arrays, _ in self._observed]
        return outputs, end._replace(looks=tuple(observed for _, observed in self._observed))

    def _check_phase(self) -> None:
        """Refuse arrays that the body left in attributes of the phase: they have no value once the trace is over."""
        phase, attributes = self._runner.phase, self._attributes
        names_left = [
            n for n, value in vars(phase).items() if self._backend.is_array(value) and value is not attributes.get(n)
        ]
        if names_left:
            names = ", ".join(f"{type(phase).__name__}.{name}" for name in names_left)
            code = getattr(self._spec.body, "__code__", None)
            place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
            raise TraceError(
                f"{place}{names} was set to an array in a compiled step, which is left behind there without a value: "
                "keep it in learner.shared, or in the state and declare it in carries, where it is handed on"
            )

    def _hear(self, name: str, value: Any) -> None:
        """Note a read of a value of ``shared`` that is no input: the program is for this one, or gets it as input."""
        # A packed value is one that another phase carries and nobody has read yet: it is an array all the same.
        if value is not ABSENT and (isinstance(value, Packed) or is_dynamic(self._backend, value)):
            raise Unasked(name)
        # A miss counts as well: ``getattr(learner.shared, name, 1.0)`` took the default, which is wrong once the value
        # is there.
        self._spec.shared_read[name] = ABSENT if value is ABSENT else frozen(value)

    def _drawn(self, stream: int, kind: str, args: tuple[Any, ...]) -> Any:
        """Return what the host drew for this step, which is an input."""
        backend = self._backend
        # The host does not know logits that the step computes. The largest of logits plus Gumbel noise has their
        # distribution (the Gumbel-max trick), and that noise depends on nothing but their shape.
        if kind == "categorical":
            (logits,) = args
            noise = self._drawn(stream, "gumbel", (backend.signature(logits)[0],))
            return backend.xp.astype(backend.xp.argmax(logits + noise, axis=-1), backend.xp.int32)
        # The host draws before the program runs, so it cannot know a bound or a parameter that the program computes.
        if any(map(backend.is_array, args)):
            raise Undrawable
        # As plain tuples of Python ints: lists and NumPy integers would make the same draw look like another one.
        draw = (
            kind,
            tuple(tuple(map(int, argument)) if isinstance(argument, Sequence) else argument for argument in args),
        )
        if self._spec.draws.get(str(stream)) != draw:
            raise Undrawn(stream, draw)
        return self._inputs.draws[str(stream)]

    def _put_back(self, before: Mapping[str, Any]) -> None:
        """Leave no placeholder in the phase, of its own arrays or where the body put one."""
        attributes = vars(self._runner.phase)
        # Attributes that are no arrays stay as the body left them, as they do in an eager step.
        for name in [name for name, value in attributes.items() if self._backend.is_array(value)]:
            if name in before:
                attributes[name] = before[name]
            else:
                del attributes[name]

    def _fitting(self, inputs: Mapping[str, Tree], originals: Mapping[str, Any]) -> dict[str, Tree]:
        """Return inputs in place of NumPy arrays, floats in the parameters' dtype, as ``xp.asarray`` has them."""
        xp = self._backend.xp
        return {
            name: xp.astype(value, xp.zeros(()).dtype)
            if isinstance(originals.get(name), np.ndarray) and is_floating(originals[name].dtype)
            else value
            for name, value in inputs.items()
        }

    @contextmanager
    def _installed(self, carried: Tree, inputs: StepInputs) -> Iterator[State]:
        """Make everything that a body can reach an input of the program; put the real values back afterwards."""
        backend, runs, learner, phase = self._backend, self._learner.runs, self._learner, self._runner.phase
        shared, own_hyper = vars(learner.shared), own_values(learner.hyper)
        # Copies, since what follows writes into these very dicts.
        before = (backend.carried(), dict(backend.hyper_values()), dict(shared), dict(own_hyper))
        outer = (runs.step, runs.record, runs.attempt, runs.gradient, runs.drawn, self._runner.handle)
        attributes = dict(vars(phase))
        words = {name: backend.from_words(inputs.words, *slot) for name, slot in self._spec.layout.items()}
        self._attempt = words.pop("attempt")
        carried_words = {name.removeprefix("shared."): value for name, value in words.items()}
        self._state = state = State()
        self._record = record = record_of(state)
        # Past the property, which would combine it with what was there. This is the begin of the step, not one more
        # condition.
        record.apply = inputs.apply if self._spec.apply is None else self._spec.apply
        record.batch = inputs.state
        record.hidden, record.noted = self._spec.static, self._spec.state_read
        state.__dict__.update(inputs.state)
        try:
            runs.step, runs.record = state, record
            runs.attempt, runs.gradient, runs.drawn = self._attempt, self._gradient, self._drawn
            self._runner.handle = self._handle
            self._attributes = self._fitting(inputs.phase, attributes)
            vars(phase).update(self._attributes)
            backend.put_carried(carried)
            backend.put_hyper_values(inputs.optimizers)
            own_hyper.update(inputs.hyper)
            values = self._fitting(inputs.shared, shared) | carried_words
            # What is no input must not be found as it is now, or its value would go into the program unnoticed: a read
            # of a hidden value is heard, and the program is kept for this value alone.
            hide(learner.shared, {name: shared[name] for name in shared if name not in values}, self._hear)
            shared.update(values)
            # Changes are found by identity later: the body writes new arrays, it cannot write into a placeholder.
            self._shared_at_begin = dict(shared)
            yield state
        finally:
            # An error or a cut leaves the body anywhere, so all of this has to be undone here. A placeholder that
            # stayed in the learner would be the value of a parameter for whoever reads it next. In one assignment, with
            # no call in it, since an interrupt comes between two calls.
            runs.step, runs.record, runs.attempt, runs.gradient, runs.drawn, self._runner.handle = outer
            self._put_back(attributes)
            backend.put_carried(before[0])
            backend.put_hyper_values(before[1])
            show(learner.shared)
            shared.clear()
            shared.update(before[2])
            own_hyper.update(before[3])

    # -- what the body calls -----------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        # Neighbours of one kind go together, which keeps the order of the callbacks: a traced handler that comes after
        # a host handler sees what that one left.
        handlers = self._runner.awake(type(event), self._spec.muted)
        for traced, group in groupby(handlers, lambda handler: handler.traced):
            members = tuple(group)
            if traced:
                deliver(members, self._runner.phase, event)
            elif self._only_look(members):
                self._note_observed(event, members)
            else:
                self._cut(event, members)

    def _only_look(self, handlers: tuple[Handler, ...]) -> bool:
        """Tell whether handlers are observers that may hear the event after the program, with what it had there."""
        # An observer is made to wait in the body and in its outermost objective alone. Deeper inside, and in a function
        # that was given to `grad` (which the depth of the backend counts and that of this run does not), its event is a
        # cut.
        if self._spec.cutters is None or self._backend.depth > 1 or self._backend.depth != self._depth:
            return False
        return all(
            is_observer(handler.callback) and id(handler.callback) not in self._spec.cutters for handler in handlers
        )

    def _note_observed(self, event: Event, handlers: tuple[Handler, ...]) -> None:
        self._spec.observed = True
        if self._cuts_passed == len(self._spec.cuts):  # else they heard it before an earlier segment ended
            self._observed.append(self._at_look(event, handlers))

    def _cut(self, event: Event, handlers: tuple[Handler, ...]) -> None:
        number = self._cuts_passed
        self._cuts_passed += 1
        # The body has come further than any segment before: this one ends here. At an earlier cut it goes on, as if the
        # handlers had run, with what they left.
        if number == len(self._spec.cuts):
            raise CutReached(*self._at_cut(event, handlers), self._chained_leaves())
        cut = self._spec.cuts[number]
        # First what the last piece begins with, then what the handlers replaced of it: a replaced value is a constant
        # to the gradient, so it has to win.
        if self._chains and number == len(self._spec.cuts) - 1:
            self._enter(cut.chain or ())
        self._swap(cut, self._changes[number])

    def _enter(self, chain: Chain) -> None:
        """Begin the last piece of an objective: what the piece before it handed on becomes inputs of the gradient."""
        values = self._state.__dict__
        inputs = dict(zip(chain, self._handed_on, strict=True))
        for name in dict.fromkeys(name for name, _ in chain):
            # Numbered as `_chain` numbers them: in the order of the leaves, arrays or not.
            places = count()
            values[name] = self._backend.tree_map(
                lambda leaf, name=name, places=places: inputs.get((name, next(places)), leaf), values[name]
            )

    def _chain(self) -> Chain | None:
        """List the leaves that a gradient goes on through at the cut that is reached."""
        # An objective within another one is run again as a whole: its values belong to the outer gradient too.
        if not self._chains or self._backend.depth != 1:
            return None
        return tuple(
            (name, place)
            for name, value in self._state.__dict__.items()
            for place, leaf in enumerate(self._backend.tree_leaves(value))
            if self._backend.is_array(leaf) and self._backend.is_differentiated(leaf)
        )

    def _chained_leaves(self) -> list[Any]:
        values, leaves = self._state.__dict__, self._backend.tree_leaves
        return [leaves(values[name])[place] for name, place in self._chain() or ()]

    def _swap(self, cut: CutRecord, changes: HostChanges) -> None:
        """Put what the host left at a cut in the place of what the body had there."""
        values, learner = self._state.__dict__, self._learner
        # Nothing goes on behind a cut of the body but what the host left, so all of it is put in place. What the body
        # computed before has no reader any more, and the compiler drops it.
        if not cut.inside:
            values.clear()
            values.update(cut.static)
            values.update(changes.state)
            self._put_carried(self._first, cut.differs, changes)
        else:
            # A gradient goes through the values of an objective: where the handlers left a leaf alone, it has to be the
            # one that the body computed, not a copy of its value.
            for name, replaced in cut.replaced:
                values[name] = self._merged(values.get(name), changes.state[name], replaced)
            self._record.replaced = dict(cut.by)
            if cut.moved:
                # `differs` counts from the begin of the step, `moved` from the moment before the handlers: the body
                # itself has redone what lies between the two.
                leaves = [
                    value for place, value in zip(cut.differs, changes.carried, strict=True) if place in cut.moved
                ]
                self._put_carried(self._backend.carried(), cut.moved, changes._replace(carried=leaves))
        vars(learner.shared).update(changes.shared)
        self._record.apply = changes.apply if cut.apply is None else cut.apply
        self._backend.put_hyper_values(changes.optimizers)
        own_values(learner.hyper).update(changes.hyper)

    def _put_carried(self, old: Tree, places: tuple[int, ...], changes: HostChanges) -> None:
        """Make the old parameters, buffers and optimizer states the present ones, but for what the host left."""
        self._backend.put_carried(with_leaves(self._backend, old, places, changes.carried))

    def _merged(self, old: Tree, new: Tree, sources: tuple[int, ...]) -> Tree:
        """Return the new tree, with the leaves that handlers left alone as the body has them."""
        leaves, places = self._backend.tree_leaves(old), iter(sources)
        return self._backend.tree_map(lambda new_leaf: new_leaf if (place := next(places)) < 0 else leaves[place], new)

    def _gradient(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any) -> Any:
        """Take a gradient; one of an earlier segment is run again, for its draws and locals, and gives what it gave."""
        # A gradient within an objective is no work of its own: it is part of the outermost one, and repeated with it.
        if self._depth:
            return self._backend.gradient(objective, wrt, at, scopes)
        number = self._gradients
        self._gradients += 1
        # Unless an earlier segment was done with this gradient, all cuts that are left lie within it: none behind it
        # can have been reached.
        own_cuts = range(self._cuts_passed, len(self._spec.cuts))
        is_done = number < len(self._finished_gradients)
        self._chains = (
            not is_done and self._backend.chains and all(self._spec.cuts[k].chain is not None for k in own_cuts)
        )
        # By pieces costs each part once. Without a chain, as in nested gradients, the objective is differentiated from
        # its begin again behind each cut.
        take = self._by_pieces if self._chains else self._at_once
        self._depth += 1
        try:
            gradients = take(objective, wrt, at, scopes, own_cuts)
        finally:
            self._depth -= 1
            self._chains = False
        if is_done:
            return self._finished_gradients[number]
        self._computed.append(gradients)
        return gradients

    def _at_once(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any, own_cuts: range) -> Any:
        return self._backend.gradient(objective, wrt, at, scopes)

    def _by_pieces(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any, own_cuts: range) -> Any:
        """Apply the chain rule to the pieces between the cuts, each of which was differentiated when it was run."""
        backend = self._backend
        inputs = self._changes[own_cuts[-1]].chain if own_cuts else []
        rows = backend.piece(objective, wrt, at, scopes, inputs, self._receive)
        gradients: list[Any] = []
        for groups, cotangents in rows:
            # From the last piece backwards, as reverse mode goes: what a piece was handed by the one before it gets a
            # gradient, which that one takes further. A parameter that several pieces use gets the sum.
            for k in reversed(own_cuts):
                before, cotangents = backend.pull(self._changes[k].pullback, cotangents, wrt)
                pairs = zip(groups, before, strict=True)
                groups = [{path: leaf + other[path] for path, leaf in leaves.items()} for leaves, other in pairs]
            gradients.append(groups)
        return gradients

    def _receive(self, inputs: list[Any]) -> None:
        self._handed_on = inputs

    # -- outputs -----------------------------------------------------------------------------------------------

    def _at_end(self) -> tuple[dict[str, Tree], SegmentEnd]:
        """Collect what the last segment hands back."""
        kept, deferred = self._spec.requested
        values = self._step_values(kept | deferred)
        outputs, fixed, mixed = self._arrays_and_others(values)
        outputs["gradients"] = []
        layout = self._pack(outputs, deferred)
        # Everything that the host gets in some way. What is missing here existed and was not asked for, which it is
        # told too.
        names = {*values, *fixed.state, *(name.removeprefix("step.") for name in layout)}
        return outputs, self._end(None, (), outputs, fixed, mixed, names, layout)

    def _at_cut(self, event: Event, handlers: tuple[Handler, ...]) -> tuple[dict[str, Tree], SegmentEnd]:
        """Collect what a segment hands back at a cut: outside of an objective all that the next one goes on with."""
        inside = self._depth > 0
        kept, deferred = self._spec.requested
        # Within an objective the next segment computes its values again and needs none of these; only handlers do.
        values = self._step_values(kept | deferred if inside else frozenset(self._state.__dict__))
        outputs, fixed, mixed = self._arrays_and_others(values)
        outputs["gradients"] = self._computed
        names = {*values, *fixed.state}
        end = self._end(event, handlers, outputs, fixed, mixed, names, {})
        return self._without_graph(outputs), end._replace(chain=self._chain())

    def _at_look(self, event: Event, handlers: tuple[Handler, ...]) -> tuple[dict[str, Tree], SegmentEnd]:
        """Collect what observers read at an event, and what a cancel there would have to keep."""
        kept, deferred = self._spec.requested
        values = self._step_values(kept | deferred)
        outputs, fixed, mixed = self._arrays_and_others(values, carried=False)
        outputs["gradients"] = []
        names = {*values, *fixed.state}
        end = self._end(event, handlers, outputs, fixed, mixed, names, {})
        return self._without_graph(outputs), end

    def _step_values(self, names: frozenset[str]) -> dict[str, Any]:
        """Select the step values of these names; all where all are kept."""
        all_values = "*" in self._spec.requested.kept
        return {name: value for name, value in self._state.__dict__.items() if all_values or name in names}

    def _arrays_and_others(
        self, values: Mapping[str, Any], *, carried: bool = True
    ) -> tuple[dict[str, Tree], _Fixed, tuple[tuple[str, Tree], ...]]:
        """The arrays among the step values and what changed in ``shared``, and what is known without running.

        Args:
            values: of the step.
            carried: whether what entered of ``shared`` is handed back too; not at a mere look, after which the same
                program goes on.
        """
        backend, state, shared = self._backend, self._state, vars(self._learner.shared)
        # A Python float that the body wrote was known when it was traced, so it is in the record of the end, not among
        # the outputs.
        arrays, static = parted(backend, values, floats=False)
        mixed, arrays_within = self._mixed(static)
        changed = {
            name: value
            for name, value in shared.items()
            if name not in self._shared_at_begin or value is not self._shared_at_begin[name]
        }
        moving, fixed = parted(backend, changed, floats=False)
        step = {name: value for name in _STEP if backend.is_array(value := getattr(state, name)) or _traced(value)}
        places, present = self._changed()
        handed_back = {name: shared[name] for name in self._inputs.shared} if carried else {}
        outputs: dict[str, Tree] = {
            "carried": present,
            # An input that the body left alone need not come back: the host has it.
            "state": {name: value for name, value in arrays.items() if value is not self._inputs.state.get(name)},
            "shared": {**handed_back, **moving, **(self._carried_words(shared) if carried else {})},
            "step": step,
            "mixed": arrays_within,
        }
        if "apply" not in step:
            static = static | {"apply": state.apply}
        # These have a place in the packed words.
        fixed = {name: value for name, value in fixed.items() if f"shared.{name}" not in self._spec.layout}
        return outputs, _Fixed(static, fixed, None if "updated" in step else state.updated, places), mixed

    def _without_graph(self, outputs: dict[str, Tree]) -> dict[str, Tree]:
        """Return the outputs as a host handler sees them: free of the gradient that is open."""
        return {name: self._backend.concrete(tree) for name, tree in outputs.items()} if self._depth else outputs

    def _end(
        self,
        event: Event | None,
        handlers: tuple[Handler, ...],
        outputs: dict[str, Tree],
        fixed: _Fixed,
        mixed: tuple[tuple[str, Tree], ...],
        names: set[str],
        layout: Layout,
    ) -> SegmentEnd:
        """Record how the segment ended; ``names`` are those of the step values that the host gets."""
        state, inside = self._state, self._depth > 0
        arrays = outputs["state"]
        differentiated = [name for name in arrays if inside and self._backend.is_differentiated(arrays[name])]
        return SegmentEnd(
            event=event,
            handlers=handlers,
            inside=inside,
            state=fixed.state,
            shared=fixed.shared,
            updated=fixed.updated,
            draws=dict(self._record.draws or {}),
            left_out=tuple(name for name in state.__dict__ if name not in names),
            differentiated=frozenset(differentiated),
            layout=layout,
            carried=fixed.places,
            chain=None,
            mixed=mixed,
        )

    def _mixed(self, static: dict[str, Any]) -> tuple[tuple[tuple[str, Tree], ...], list[Any]]:
        """Take out the values that hold arrays of this trace and something else; return them with those arrays."""
        backend, arrays = self._backend, list[Any]()
        mixed: list[tuple[str, Tree]] = []

        def place(leaf: Any) -> Any:
            if not backend.is_array(leaf):
                return leaf
            arrays.append(leaf)
            return Place(len(arrays) - 1)

        for name, value in list(static.items()):
            if is_container(backend, value) and any(map(backend.is_array, backend.tree_leaves(value))):
                mixed.append((name, backend.tree_map(place, static.pop(name))))
        return tuple(mixed), arrays

    def _changed(self) -> tuple[tuple[int, ...] | None, Tree]:
        """Select parameters, buffers and optimizer states to hand back: all of them, or those that are others now."""
        carried = self._backend.carried()
        # The program used up all that it got, so all has to come back.
        if self._spec.donated:
            return None, carried
        # By identity: an array that the body did not touch is the placeholder itself. On JAX a step of a small network
        # that is cut at BackwardBegin took 1.09 of a loop by hand with this, 1.47 with all of them as outputs.
        leaves = self._backend.tree_leaves(carried)
        pairs = enumerate(zip(leaves, self._backend.tree_leaves(self._first), strict=True))
        places = tuple(place for place, (leaf, old_leaf) in pairs if leaf is not old_leaf)
        if len(places) == len(leaves):
            return None, carried
        return places, [leaves[place] for place in places]

    def _carried_words(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return the carried scalars that came packed, as they are now."""
        names = (name.removeprefix("shared.") for name in self._spec.layout if name != "attempt")
        return {name: as_array(shared[name]) for name in names}

    def _pack(self, outputs: dict[str, Tree], left: frozenset[str]) -> Layout:
        """Move small values from the outputs of the last segment into the packed words."""
        backend, shared, state, step = self._backend, outputs["shared"], outputs["state"], outputs["step"]
        layout: Layout = {}
        values: list[Any] = []
        for name in self._spec.layout:
            # The vector that comes out is the one that goes into the next step, as it is: it names that step, and has
            # each carried value in the place where it came in.
            value = self._attempt + 1 if name == "attempt" else shared.pop(name.removeprefix("shared."))
            if not add_slot(layout, name, *backend.signature(value)) or layout[name] != self._spec.layout[name]:
                shape, dtype = backend.signature(value)
                was = self._spec.layout[name]
                raise CarryError(
                    f"{name} is carried, but changed within the step from {was.dtype}{list(was.shape)} to "
                    f"{dtype}{list(shape)}: a carried value keeps its shape and dtype"
                )
            values.append(value)
        for root, tree, names in (("step.", state, left), ("", step, frozenset(_STEP))):
            for name in [name for name in tree if name in names and backend.is_array(tree[name])]:
                # What does not fit stays where it is, as an output of its own.
                if add_slot(layout, f"{root}{name}", *backend.signature(tree[name])):
                    values.append(tree.pop(name))
        outputs["packed"] = backend.to_words(values)
        return layout


def _shape(backend: CompilingBackend, value: Tree) -> str:
    """Describe dtypes and shapes of the arrays of a tree."""
    signatures = [backend.signature(leaf) for leaf in backend.tree_leaves(value) if hasattr(leaf, "dtype")]
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in signatures)


def _traced(value: Any) -> bool:
    return value is not None and not isinstance(value, (bool, int, float)) and hasattr(value, "dtype")
