"""Running compiled steps: finding or making the program of each segment, and what happens at the cuts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from loopcore.backend import CompilingBackend, DrawKey, Tree
from loopcore.dispatch import deliver
from loopcore.keys import body_key, frozen
from loopcore.state import State
from loopcore.tracing import Cut, Left, Reached, Start, Trace, is_dynamic, parted
from loopcore.user_lines import explained

if TYPE_CHECKING:
    from loopcore.loop import Body
    from loopcore.plan import Runner

_log = logging.getLogger("loopcore")
_STORM = 8
_PARTS = (
    *("the body", "an attribute of the phase", "a value of the state", "the names of the state"),
    *("the names of shared", "what is read", "the seed", "state.apply", "the cuts"),
)


@dataclass
class Segment:
    """A compiled segment, and the values of Python scalars in ``shared`` that it was made for."""

    run: Callable[..., Any]
    guards: dict[str, Any]
    held: tuple[Any, ...] = field(repr=False)  # what the key names by its id must stay alive


class Programs:
    """The compiled steps of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._learner = runner.learner
        self._backend = cast(CompilingBackend, runner.backend)
        self._segments: dict[Hashable, list[Segment]] = {}
        self._last: tuple[Hashable, ...] = ()
        self._kept: dict[frozenset[str], frozenset[str]] = {}
        self._carried_names = tuple(
            path.removeprefix("shared.") for path in runner.plan.carried if path.startswith("shared.")
        )

    def run(self, body: Body, key: DrawKey, state: State, reads: frozenset[str]) -> None:
        """Run one step; between its segments the host handlers of the cuts."""
        start, static = self._start(state, key.step)
        apply = state._apply if isinstance(state._apply, bool) else None  # pyright: ignore[reportPrivateUsage]
        first = self._backend.carried()
        kept = self._kept.get(reads) or self._kept_with(reads)
        cuts: list[Cut] = []
        lefts: list[Left] = []
        while True:
            segment = self._segment(body, start, static, kept, cuts, apply)
            try:
                outputs, reached = segment.run(first, start, lefts)
            except Exception as error:
                better = explained(error, self._backend, self._runner.phase)
                if better is error:
                    raise
                raise better from error
            self._land(state, outputs, reached)
            if reached.event is None:
                return
            before = (dict(state.__dict__), self._backend.carried())
            state._differentiated = reached.differentiated  # pyright: ignore[reportPrivateUsage]
            try:
                deliver(reached.handlers, self._runner.phase, reached.event)
            finally:
                state._differentiated = None  # pyright: ignore[reportPrivateUsage]
            cut, left = self._left(state, reached, outputs, before)
            cuts.append(cut)
            lefts.append(left)

    def _kept_with(self, reads: frozenset[str]) -> frozenset[str]:
        everything = {"*"} if self._runner.keeps_all else frozenset[str]()
        kept = self._kept[reads] = self._runner.kept | reads | {"weight"} | everything
        return kept

    # -- inputs ------------------------------------------------------------------------------------------------

    def _start(self, state: State, attempt: int) -> tuple[Start, dict[str, Any]]:
        backend, learner = self._backend, self._learner
        dynamic, static = parted(backend, state.__dict__)
        shared = {name: value for name, value in vars(learner.shared).items() if is_dynamic(backend, value)}
        for name in self._carried_names:
            shared[name] = _as_array(vars(learner.shared)[name])
        phase = {name: value for name, value in vars(self._runner.phase).items() if backend.is_array(value)}
        apply = state._apply  # pyright: ignore[reportPrivateUsage]
        hyper = learner.hyper._values(), backend.hyper_values()
        start = Start(dynamic, shared, *hyper, np.int32(attempt), phase, () if isinstance(apply, bool) else apply)
        return start, static

    # -- programs ----------------------------------------------------------------------------------------------

    def _segment(
        self,
        body: Body,
        start: Start,
        static: dict[str, Any],
        kept: frozenset[str],
        cuts: Sequence[Cut],
        apply: bool | None,
    ) -> Segment:
        phase = self._runner.phase
        attributes = {name: value for name, value in vars(phase).items() if name not in start.phase}
        key = (
            body_key(body, self._backend.is_array),
            frozen(attributes) if attributes else (),
            frozen(static) if static else (),
            *(tuple(start.state), tuple(start.shared), kept, self._learner.seed, apply),
            frozen(tuple(cuts)) if cuts else (),
        )
        there = self._segments.setdefault(key, [])
        shared = vars(self._learner.shared)
        for segment in there:
            if all(name in shared and frozen(shared[name]) == was for name, was in segment.guards.items()):
                return segment
        self._report(key, there, len(cuts))
        trace = Trace(self._runner, body, tuple(cuts), kept, static, apply)
        donate = (0,) if self._runner.plan.kind == "fused" else ()
        made = Segment(self._backend.compile(trace, donate), trace.guards, (body, phase, *static.values()))
        there.append(made)
        return made

    def _report(self, key: tuple[Hashable, ...], there: Sequence[Segment], cut: int) -> None:
        """Log why a further program is made; warn when they do not end."""
        known = sum(map(len, self._segments.values()))
        if cut or not known:
            self._last = key if not cut else self._last
            return
        changed = [name for name, was, now in zip(_PARTS, self._last, key, strict=True) if was != now]
        if there:
            changed = [f"shared.{name}" for name in there[-1].guards]
        why = f"{', '.join(changed) or 'something'} changed"
        _log.info("phase %r is compiled again: %s", self._runner.name, why)
        self._last = key
        if known == _STORM:
            warnings.warn(
                f"the steps of phase {self._runner.name!r} were compiled {known} times, because {why} from step to "
                "step: make it an array or a float of the state, which are inputs, or set compile = False",
                stacklevel=6,
            )

    # -- outputs -----------------------------------------------------------------------------------------------

    def _land(self, state: State, outputs: dict[str, Tree], reached: Reached) -> None:
        """What a segment computed becomes the learner's."""
        learner, values = self._learner, state.__dict__
        self._backend.put_carried(outputs["carried"])
        if reached.event is None:  # what is not handed back was there all the same
            values.update(dict.fromkeys(name for name in reached.names if name not in values))
        values.update(outputs["state"])
        for name, value in reached.state.items():
            if name == "apply":
                state._apply = value  # pyright: ignore[reportPrivateUsage]
            else:
                values[name] = value
        vars(learner.shared).update(outputs["shared"])
        vars(learner.shared).update(reached.shared)
        if "apply" in outputs["step"]:
            state._apply = outputs["step"]["apply"]  # pyright: ignore[reportPrivateUsage]
        state.updated = outputs["step"].get("updated", reached.updated)
        counts = state._draws or {}  # pyright: ignore[reportPrivateUsage]
        state._draws = {**counts, **reached.draws}  # pyright: ignore[reportPrivateUsage]

    def _left(
        self, state: State, reached: Reached, outputs: dict[str, Tree], before: tuple[dict[str, Any], Tree]
    ) -> tuple[Cut, Left]:
        """What the handlers of a cut made of it."""
        by = tuple((state._replaced or {}).items())  # pyright: ignore[reportPrivateUsage]
        backend, learner = self._backend, self._learner
        seen, carried = before
        arrays, static = parted(backend, state.__dict__)
        replaced: list[tuple[str, tuple[int, ...]]] = []
        names = [name for name in arrays if name in outputs["state"] or seen.get(name) is not arrays[name]]
        if reached.inside:
            for name in names:
                sources = _sources(backend, seen.get(name), arrays[name])
                if sources != tuple(range(len(sources))):
                    replaced.append((name, sources))
            arrays = {name: arrays[name] for name, _ in replaced}
            static = {}
        now = backend.carried()
        shared = {name: value for name, value in vars(learner.shared).items() if is_dynamic(backend, value)}
        apply = state._apply  # pyright: ignore[reportPrivateUsage]
        fixed = apply if isinstance(apply, bool) else None
        hyper = learner.hyper._values(), backend.hyper_values()
        left = Left(now, arrays, shared, *hyper, outputs["gradients"], () if fixed is not None else apply)
        moved = _sources(backend, carried, now)
        return Cut(reached.inside, fixed, tuple(replaced), by, tuple(static.items()), moved), left


def _sources(backend: Any, old: Tree, new: Tree) -> tuple[int, ...]:
    """For each leaf which leaf of the old tree it is, -1 for a new one."""
    places = {id(leaf): place for place, leaf in enumerate(backend.tree_leaves(old))}
    return tuple(places.get(id(leaf), -1) for leaf in backend.tree_leaves(new))


def _as_array(value: Any) -> Any:
    """A carried Python scalar as an array, so that a program never depends on its value."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value
