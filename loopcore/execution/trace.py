"""The functional view of a step body: run once with placeholders for arrays, it becomes a program.

While a body is traced, everything it may read or change (parameters, optimizer state, step values, shared arrays,
hyperparameters, the number of the step) is replaced by inputs of the program, and put back afterwards. A body that
is cut is traced once for each segment: the part before the cut is run again, with what the host left at each earlier
cut in place of what the body had there, and the compiler drops what nobody uses any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, groupby
from typing import Any, NamedTuple, cast

import numpy as np

from loopcore._utils.value_keys import frozen
from loopcore.backend.array_namespace import is_floating
from loopcore.backend.packing import Layout, Packed, add_slot
from loopcore.backend.protocol import CompilingBackend, CutError, DrawKey, Tree
from loopcore.callback import is_observer
from loopcore.dispatch import Handler, MutedEvents, deliver
from loopcore.errors import CarryError, TraceError
from loopcore.events import Event
from loopcore.execution.program_inputs import as_array, is_dynamic, parted
from loopcore.execution.step_runner import StepRunner
from loopcore.handles.trees import is_container
from loopcore.protocols import Body
from loopcore.state import ABSENT, State

_STEP = ("apply", "updated")


Chain = tuple[tuple[str, int], ...]
Draw = tuple[str, tuple[Any, ...]]  # a kind of random numbers, and its arguments


class RequestedOutputs(NamedTuple):
    """Names of step values that a program hands back, as they are or (what is looked at later) packed."""

    kept: frozenset[str]
    left: frozenset[str]


class StepInputs(NamedTuple):
    """What a step begins with. Dynamic values are inputs of its programs, the others part of their key."""

    state: dict[str, Tree]
    shared: dict[str, Tree]
    hyper: dict[str, Any]
    optimizers: dict[str, Any]
    words: Any  # the number of the step, and carried scalars
    phase: dict[str, Tree]
    apply: Any  # a 0-d array, or () where it is a bool
    draws: dict[str, Any] = {}  # noqa: RUF012 - what the host drew, by stream; nobody changes it


class CutRecord(NamedTuple):
    """What is known of a cut when the next segment is traced.

    Attributes:
        inside: whether it is within an objective.
        apply: what the handlers left in ``state.apply`` if that is a bool.
        replaced: state values that handlers replaced: for each leaf the number of the leaf it was before, -1 if none.
        by: which callback replaced a value that a gradient goes through.
        static: state values that are no arrays.
        differs: which parameters, buffers and optimizer states are others than when the step began.
        moved: which of them the handlers replaced.
        chain: step values that the gradient goes on through, by name and number of the leaf; None where the gradient
            has to run the objective from its begin.
    """

    inside: bool
    apply: bool | None
    replaced: tuple[tuple[str, tuple[int, ...]], ...]
    by: tuple[tuple[str, str], ...]
    static: tuple[tuple[str, Any], ...]
    differs: tuple[int, ...]
    moved: tuple[int, ...]
    chain: Chain | None


class HostChanges(NamedTuple):
    """What the host left at a cut: inputs of all later segments."""

    carried: list[Any]  # those that differ
    state: dict[str, Tree]
    shared: dict[str, Tree]
    hyper: dict[str, Any]
    optimizers: dict[str, Any]
    gradients: list[Any]
    apply: Any
    chain: list[Any]
    pullback: Any


class SegmentEnd(NamedTuple):
    """Why a segment ended: at a cut, or (without handlers) at the end of the body."""

    event: Event | None
    handlers: tuple[Handler, ...]
    inside: bool
    state: dict[str, Any]
    shared: dict[str, Any]
    updated: Any
    draws: dict[str, int]
    left_out: tuple[str, ...]
    differentiated: frozenset[str]
    layout: Layout
    carried: tuple[int, ...] | None  # which parameters, buffers and optimizer states are handed back; None: all
    chain: Chain | None
    looks: tuple[SegmentEnd, ...] = ()  # earlier events that are only looked at
    mixed: tuple[tuple[str, Tree], ...] = ()  # state values that hold arrays and something else, with their places


class Unasked(BaseException):
    """Leaves a trace that reads a value of ``shared`` which is no input yet, though it could be.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Undrawn(BaseException):
    """Leaves a trace that draws what the host did not draw yet.

    Args:
        stream: names the draw.
        draw: its kind and arguments.
    """

    def __init__(self, stream: int, draw: Draw) -> None:
        super().__init__(stream, draw)
        self.stream, self.draw = stream, draw


class Undrawable(BaseException):
    """Leaves a trace in which an argument of a draw is a value of the step, which the host does not know before."""


class Place:
    """Stands for an array in a value that has something else in it too."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class CutReached(CutError):
    """Leaves the body at a cut, with what it had there."""

    def __init__(self, outputs: dict[str, Tree], reached: SegmentEnd, leaves: list[Any]) -> None:
        super().__init__()
        self.outputs, self.reached, self.leaves = outputs, reached, leaves


class BodyTrace:
    """One run of a body with placeholders.

    Args:
        runner: of the phase.
        body: the step body.
        cuts: the earlier cuts of this step.
        wanted: names of step values that are handed back.
        apply: ``state.apply`` at the begin of the step if that is a bool.
        layout: of the packed words that come in.
        asleep: handlers that do not hear this step.
        cutters: callbacks, by id, that cut although they declare no writes; None: all do.
        donated: whether the program uses up the parameters it gets, so that it has to return all of them.
        draws: which draws of the host, by stream, are among its inputs.

    Attributes:
        runner: as above, or that of an equal phase.
        static: state values that are no arrays, of the step that runs.
        shared_read, state_read: values that are no arrays and were read, as keys: a program is made for them.
        shapes: of the arrays of the state, for each time it was traced.
    """

    def __init__(
        self,
        runner: StepRunner,
        body: Body,
        cuts: Sequence[CutRecord],
        wanted: RequestedOutputs,
        apply: bool | None,
        layout: Layout,
        asleep: MutedEvents,
        cutters: frozenset[int] | None,
        donated: bool,
        draws: Mapping[str, Draw],
    ) -> None:
        self._draws = draws
        self.runner = runner
        self._learner = runner.learner
        self._backend = cast(CompilingBackend, runner.backend)
        self._body = body
        self._cuts = cuts
        self._wanted = wanted
        self._apply = apply
        self._layout = layout
        self._asleep = asleep
        self._cutters = cutters
        self._donated = donated
        self.looked = False  # whether an event was only looked at
        self.static: Mapping[str, Any] = {}
        self.shared_read: dict[str, Any] = {}
        self.state_read: dict[str, Any] = {}
        self.shapes: list[dict[str, str]] = []

    def take(self, runner: StepRunner, body: Body) -> None:
        """Run this body the next time it is traced: of a phase that is equal to the one it was made for."""
        self.runner, self._body = runner, body

    def __call__(self, carried: Tree, start: StepInputs, lefts: list[HostChanges]) -> tuple[Tree, SegmentEnd]:
        """What the adapter compiles."""
        self.shapes.append({name: self._shape(value) for name, value in start.state.items()})
        self._start: StepInputs | None = start
        self._lefts = lefts
        self._given: dict[str, Any] = {}
        self._attributes: dict[str, Any] = {}  # arrays of the phase
        self._done = [found for left in lefts for found in left.gradients]
        self._computed: list[Any] = []
        self._passed = self._gradients = self._depth = 0
        self._looks: list[tuple[dict[str, Tree], SegmentEnd]] = []
        self._chains = False  # whether the open gradient is taken piece by piece
        self._inputs: list[Any] = []  # what the last piece begins with
        self._first = carried
        try:
            with self._installed(carried, start) as state:
                return self._run(state, start)
        except (Unasked, Undrawn, Undrawable):
            self.shapes.pop()
            raise
        finally:  # a program that is made must not keep the arrays or placeholders of its first step
            self._state, self._start, self._lefts, self._first = State(), None, [], None
            self._inputs, self._looks = [], []
            self._given, self._attributes, self._done, self._computed = {}, {}, [], []

    def _run(self, state: State, start: StepInputs) -> tuple[Tree, SegmentEnd]:
        runner = self.runner
        key = DrawKey(self._learner.seed, runner.stream, self._attempt)
        try:
            self._backend.run_body(runner.call, key, self._body, state, self._handle)
            self._check_phase()
            outputs, reached = self._collect(None, ())
        except CutReached as cut:
            outputs, reached = cut.outputs, cut.reached
            outputs["chain"], outputs["pullback"] = cut.leaves, cut.pullback
        outputs["looks"] = [looked for looked, _ in self._looks]
        return outputs, reached._replace(looks=tuple(look for _, look in self._looks))

    def _check_phase(self) -> None:
        """Refuse arrays that the body left in attributes of the phase: they have no value once the trace is over."""
        phase, given = self.runner.phase, self._attributes
        left = [n for n, value in vars(phase).items() if self._backend.is_array(value) and value is not given.get(n)]
        if left:
            names = ", ".join(f"{type(phase).__name__}.{name}" for name in left)
            code = getattr(self._body, "__code__", None)
            place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
            raise TraceError(
                f"{place}{names} was set to an array in a compiled step, which is left behind there without a value: "
                "keep it in learner.shared, or in the state and declare it in carries, where it is handed on"
            )

    def _hear(self, name: str, value: Any) -> None:
        """A value of ``shared`` that is no input was read: the program is for this one, or has to have it as input."""
        if value is not ABSENT and (isinstance(value, Packed) or is_dynamic(self._backend, value)):
            raise Unasked(name)
        self.shared_read[name] = ABSENT if value is ABSENT else frozen(value)

    def _drawn(self, stream: int, kind: str, args: tuple[Any, ...]) -> Any:
        """What the host drew for this step."""
        backend = self._backend
        if kind == "categorical":
            (logits,) = args
            noise = self._drawn(stream, "gumbel", (backend.signature(logits)[0],))
            return backend.xp.astype(backend.xp.argmax(logits + noise, axis=-1), backend.xp.int32)
        if any(map(backend.is_array, args)):
            raise Undrawable
        draw = kind, tuple(tuple(map(int, one)) if isinstance(one, Sequence) else one for one in args)
        if self._draws.get(str(stream)) != draw or self._start is None:
            raise Undrawn(stream, draw)
        return self._start.draws[str(stream)]

    def _put_back(self, before: Mapping[str, Any]) -> None:
        """Leave no placeholder in the phase, of its own arrays or where the body put one."""
        attributes = vars(self.runner.phase)
        for name in [name for name, value in attributes.items() if self._backend.is_array(value)]:
            if name in before:
                attributes[name] = before[name]
            else:
                del attributes[name]

    def _shape(self, value: Tree) -> str:
        found = [self._backend.signature(leaf) for leaf in self._backend.tree_leaves(value) if hasattr(leaf, "dtype")]
        return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in found)

    def _fitting(self, inputs: Mapping[str, Tree], originals: Mapping[str, Any]) -> dict[str, Tree]:
        """Inputs in place of NumPy arrays; of floats in the parameters' dtype, as ``xp.asarray`` has them."""
        xp = self._backend.xp
        return {
            name: xp.astype(value, xp.zeros(()).dtype)
            if isinstance(originals.get(name), np.ndarray) and is_floating(originals[name].dtype)
            else value
            for name, value in inputs.items()
        }

    @contextmanager
    def _installed(self, carried: Tree, start: StepInputs) -> Iterator[State]:
        """Everything a body can reach is an input; afterwards it is as it was."""
        backend, runs, learner, phase = self._backend, self._learner.runs, self._learner, self.runner.phase
        shared = vars(learner.shared)
        before = (backend.carried(), dict(backend.hyper_values()), dict(shared), learner.hyper._values())
        outer = (runs.step, runs.attempt, runs.gradient, runs.drawn, self.runner.handle)
        attributes = dict(vars(phase))
        words = {name: backend.from_words(start.words, *slot) for name, slot in self._layout.items()}
        self._attempt = words.pop("attempt")
        carried_words = {name.removeprefix("shared."): value for name, value in words.items()}
        self._state = state = State()
        state._apply = start.apply if self._apply is None else self._apply  # pyright: ignore[reportPrivateUsage]
        state._batch = start.state  # pyright: ignore[reportPrivateUsage]
        state._hidden, state._noted = self.static, self.state_read  # pyright: ignore[reportPrivateUsage]
        state.__dict__.update(start.state)
        try:
            runs.step, runs.attempt, runs.gradient, runs.drawn = state, self._attempt, self._gradient, self._drawn
            self.runner.handle = self._handle
            self._attributes = self._fitting(start.phase, attributes)
            vars(phase).update(self._attributes)
            backend.put_carried(carried)
            backend.put_hyper_values(start.optimizers)
            learner.hyper._put_values(start.hyper)
            there = self._fitting(start.shared, shared) | carried_words
            learner.shared._hide({name: shared[name] for name in shared if name not in there}, self._hear)
            shared.update(there)
            self._given = dict(shared)
            yield state
        finally:
            runs.step, runs.attempt, runs.gradient, runs.drawn, self.runner.handle = outer
            self._put_back(attributes)
            backend.put_carried(before[0])
            backend.put_hyper_values(before[1])
            learner.shared._show()
            shared.clear()
            shared.update(before[2])
            learner.hyper._put_values(before[3])

    # -- what the body calls -----------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        handlers = self.runner.awake(type(event), self._asleep)
        for traced, group in groupby(handlers, lambda handler: handler.traced):
            members = tuple(group)
            if traced:
                deliver(members, self.runner.phase, event)
            elif self._only_look(members):
                self._note_observed(event, members)
            else:
                self._cut(event, members)

    def _only_look(self, handlers: tuple[Handler, ...]) -> bool:
        """Whether the program may go on, and they hear the event afterwards, with what it had there."""
        if self._cutters is None or self._backend.depth > 1 or self._backend.depth != self._depth:
            return False
        return all(is_observer(one.callback) and id(one.callback) not in self._cutters for one in handlers)

    def _note_observed(self, event: Event, handlers: tuple[Handler, ...]) -> None:
        self.looked = True
        if self._passed == len(self._cuts):  # else they heard it before an earlier segment ended
            self._looks.append(self._collect(event, handlers, look=True))

    def _cut(self, event: Event, handlers: tuple[Handler, ...]) -> None:
        number = self._passed
        self._passed += 1
        if number == len(self._cuts):
            raise CutReached(*self._collect(event, handlers), self._chained_leaves())
        cut = self._cuts[number]
        if self._chains and number == len(self._cuts) - 1:
            self._enter(cut.chain or ())
        self._swap(cut, self._lefts[number])

    def _enter(self, chain: Chain) -> None:
        """The last piece of an objective begins: what the piece before it handed on are inputs of the gradient."""
        values = self._state.__dict__
        inputs = dict(zip(chain, self._inputs, strict=True))
        for name in dict.fromkeys(name for name, _ in chain):
            places = count()
            values[name] = self._backend.tree_map(
                lambda leaf, name=name, places=places: inputs.get((name, next(places)), leaf), values[name]
            )

    def _chain(self) -> Chain | None:
        """What a gradient goes on through at the cut that is reached."""
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

    def _swap(self, cut: CutRecord, left: HostChanges) -> None:
        """Go on from what the host left."""
        values, learner = self._state.__dict__, self._learner
        if not cut.inside:
            values.clear()
            values.update(cut.static)
            values.update(left.state)
            self._put_carried(self._first, cut.differs, left)
        else:
            for name, replaced in cut.replaced:
                values[name] = self._merged(values.get(name), left.state[name], replaced)
            self._state._replaced = dict(cut.by)  # pyright: ignore[reportPrivateUsage]
            if cut.moved:
                moved = [value for place, value in zip(cut.differs, left.carried, strict=True) if place in cut.moved]
                self._put_carried(self._backend.carried(), cut.moved, left._replace(carried=moved))
        vars(learner.shared).update(left.shared)
        self._state._apply = left.apply if cut.apply is None else cut.apply  # pyright: ignore[reportPrivateUsage]
        self._backend.put_hyper_values(left.optimizers)
        learner.hyper._put_values(left.hyper)

    def _put_carried(self, old: Tree, places: tuple[int, ...], left: HostChanges) -> None:
        """Make the old parameters, buffers and optimizer states the present ones, but for what the host left."""
        self._backend.put_carried(with_leaves(self._backend, old, places, left.carried))

    def _merged(self, old: Tree, new: Tree, sources: tuple[int, ...]) -> Tree:
        """The new tree with the leaves that handlers left alone as the body has them."""
        leaves, places = self._backend.tree_leaves(old), iter(sources)
        return self._backend.tree_map(lambda now: now if (place := next(places)) < 0 else leaves[place], new)

    def _gradient(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any) -> Any:
        """A gradient of an earlier segment is run again, for its draws and locals, and gives what it gave."""
        if self._depth:
            return self._backend.gradient(objective, wrt, at, scopes)
        number = self._gradients
        self._gradients += 1
        mine = range(self._passed, len(self._cuts))  # cuts within this objective, if it was not done with before
        done = number < len(self._done)
        self._chains = not done and self._backend.chains and all(self._cuts[k].chain is not None for k in mine)
        take = self._by_pieces if self._chains else self._at_once
        self._depth += 1
        try:
            found = take(objective, wrt, at, scopes, mine)
        finally:
            self._depth -= 1
            self._chains = False
        if done:
            return self._done[number]
        self._computed.append(found)
        return found

    def _at_once(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any, mine: range) -> Any:
        return self._backend.gradient(objective, wrt, at, scopes)

    def _by_pieces(self, objective: Callable[[], Any], wrt: Any, at: Any, scopes: Any, mine: range) -> Any:
        """The chain rule over the pieces between the cuts: each was differentiated when it was run."""
        backend = self._backend
        inputs = self._lefts[mine[-1]].chain if mine else []
        rows = backend.piece(objective, wrt, at, scopes, inputs, self._receive)
        found: list[Any] = []
        for groups, cotangents in rows:
            for k in reversed(mine):
                before, cotangents = backend.pull(self._lefts[k].pullback, cotangents, wrt)
                pairs = zip(groups, before, strict=True)
                groups = [{path: leaf + other[path] for path, leaf in leaves.items()} for leaves, other in pairs]
            found.append(groups)
        return found

    def _receive(self, inputs: list[Any]) -> None:
        self._inputs = inputs

    # -- outputs -----------------------------------------------------------------------------------------------

    def _collect(
        self, event: Event | None, handlers: tuple[Handler, ...], look: bool = False
    ) -> tuple[dict[str, Tree], SegmentEnd]:
        """The arrays to hand back, and what the program knows besides.

        Of an event that is only looked at, what is read, and what a cancel would have to keep.
        """
        backend, state = self._backend, self._state
        inside, last = self._depth > 0, event is None
        kept, left = self._wanted
        names = kept | left if last or inside or look else state.__dict__.keys()
        everything = "*" in kept
        found = {name: value for name, value in state.__dict__.items() if everything or name in names}
        arrays, others = parted(backend, found, floats=False)
        mixed, within = self._mixed(others)
        shared = vars(self._learner.shared)
        changed = {
            name: value for name, value in shared.items() if name not in self._given or value is not self._given[name]
        }
        moving, fixed = parted(backend, changed, floats=False)
        carried = {} if look or self._start is None else {name: shared[name] for name in self._start.shared}
        step = {name: value for name in _STEP if backend.is_array(value := getattr(state, name)) or _traced(value)}
        given = self._start.state if self._start else {}
        arrays = {name: value for name, value in arrays.items() if value is not given.get(name)}
        places, now = self._changed()
        outputs: dict[str, Tree] = {
            "carried": now,
            "state": arrays,
            "shared": {**carried, **moving, **({} if look else self._carried_words(shared))},
            "gradients": [] if last or look else self._computed,
            "step": step,
            "mixed": within,
        }
        differentiated = frozenset(name for name in arrays if inside and backend.is_differentiated(arrays[name]))
        if inside:
            outputs = {name: backend.concrete(tree) for name, tree in outputs.items()}
        updated = None if "updated" in step else state.updated
        draws = dict(state._draws or {})  # pyright: ignore[reportPrivateUsage]
        known = others if "apply" in step else others | {"apply": state.apply}
        layout = self._pack(outputs, left) if last else {}
        fixed = {name: value for name, value in fixed.items() if f"shared.{name}" not in self._layout}
        there = {*found, *known, *(name.removeprefix("step.") for name in layout)}
        left_out = tuple(name for name in state.__dict__ if name not in there)
        return outputs, SegmentEnd(
            event,
            handlers,
            inside,
            known,
            fixed,
            updated,
            draws,
            left_out,
            differentiated,
            layout,
            places,
            None if look else self._chain(),
            mixed=mixed,
        )

    def _mixed(self, others: dict[str, Any]) -> tuple[tuple[tuple[str, Tree], ...], list[Any]]:
        """Take the values that hold arrays of this trace and something else, with those arrays."""
        backend, within = self._backend, list[Any]()
        found: list[tuple[str, Tree]] = []

        def place(leaf: Any) -> Any:
            if not backend.is_array(leaf):
                return leaf
            within.append(leaf)
            return Place(len(within) - 1)

        for name, value in list(others.items()):
            if is_container(backend, value) and any(map(backend.is_array, backend.tree_leaves(value))):
                found.append((name, backend.tree_map(place, others.pop(name))))
        return tuple(found), within

    def _changed(self) -> tuple[tuple[int, ...] | None, Tree]:
        """Parameters, buffers and optimizer states to hand back: all of them, or those that are others now."""
        now = self._backend.carried()
        if self._donated:
            return None, now
        leaves = self._backend.tree_leaves(now)
        pairs = enumerate(zip(leaves, self._backend.tree_leaves(self._first), strict=True))
        places = tuple(place for place, (leaf, was) in pairs if leaf is not was)
        if len(places) == len(leaves):
            return None, now
        return places, [leaves[place] for place in places]

    def _carried_words(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The carried scalars that came packed, as they are now."""
        names = (name.removeprefix("shared.") for name in self._layout if name != "attempt")
        return {name: as_array(shared[name]) for name in names}

    def _pack(self, outputs: dict[str, Tree], left: frozenset[str]) -> Layout:
        """Move small values from the outputs of the last segment into the packed words."""
        backend, shared, state, step = self._backend, outputs["shared"], outputs["state"], outputs["step"]
        layout: Layout = {}
        values: list[Any] = []
        for name in self._layout:
            value = self._attempt + 1 if name == "attempt" else shared.pop(name.removeprefix("shared."))
            if not add_slot(layout, name, *backend.signature(value)) or layout[name] != self._layout[name]:
                shape, dtype = backend.signature(value)
                was = self._layout[name]
                raise CarryError(
                    f"{name} is carried, but changed within the step from {was.dtype}{list(was.shape)} to "
                    f"{dtype}{list(shape)}: a carried value keeps its shape and dtype"
                )
            values.append(value)
        for root, tree, names in (("step.", state, left), ("", step, frozenset(_STEP))):
            for name in [name for name in tree if name in names and backend.is_array(tree[name])]:
                if add_slot(layout, f"{root}{name}", *backend.signature(tree[name])):
                    values.append(tree.pop(name))
        outputs["packed"] = backend.to_words(values)
        return layout


def fill(backend: Any, outputs: dict[str, Tree], reached: SegmentEnd) -> None:
    """Put the arrays back into the values that hold something else too."""
    for look, looked in zip(reached.looks, outputs["looks"], strict=True) if reached.looks else ():
        fill(backend, looked, look)
    arrays = outputs["mixed"]
    for name, value in reached.mixed:
        outputs["state"][name] = backend.tree_map(
            lambda leaf: arrays[leaf.number] if isinstance(leaf, Place) else leaf, value
        )


def with_leaves(backend: Any, tree: Tree, places: Sequence[int], leaves: Sequence[Any]) -> Tree:
    """A tree with other leaves in some places."""
    if not places:
        return tree
    new, number = dict(zip(places, leaves, strict=True)), count()
    return backend.tree_map(lambda leaf: new.get(next(number), leaf), tree)


def _traced(value: Any) -> bool:
    return value is not None and not isinstance(value, (bool, int, float)) and hasattr(value, "dtype")
