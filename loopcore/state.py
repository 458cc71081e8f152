"""The state of one step, and the namespace that callbacks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopcore.events import Outcome

RESERVED = frozenset({"outcome", "apply", "updated"})


class State:
    """What one step holds: the parts of the batch and whatever the body and the handlers write.

    It has no public methods, so that a value may have any name but three: ``outcome`` (how the step ended),
    ``apply`` (whether the next update happens; assignments are combined by *and*) and ``updated`` (what the last
    update did).
    """

    __slots__ = ("__dict__", "__weakref__", "_apply", "_draws", "_dropped", "_size", "outcome", "updated")

    def __init__(self) -> None:
        self._apply: Any = True
        self._draws: dict[str, int] | None = None
        self._dropped: tuple[str, ...] = ()
        self._size: int | None = None
        self.outcome: Outcome | None = None
        self.updated: Any = None

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def apply(self) -> Any:
        """Whether the next update happens: a bool or a 0-d boolean array."""
        return self._apply

    @apply.setter
    def apply(self, value: Any) -> None:
        if self._apply is True:
            self._apply = value
        elif value is not True:
            self._apply = self._apply & value

    def __getattr__(self, name: str) -> Any:
        if name in self._dropped:
            raise AttributeError(
                f"step.{name} was not kept when the step ended, since nobody declared to read it. Add "
                f'reads = ("step.{name}",) to the callback or the phase, or pass reads=("step.{name}",) to the '
                "Learner or run_step",
                name=name,
                obj=self,
            )
        there = ", ".join(sorted(map(str, self.__dict__))) or "nothing"
        raise AttributeError(f"the step has no value {name!r} (yet); it has {there}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"State({', '.join(self.__dict__)})"


def keep_only(state: State, kept: frozenset[str]) -> None:
    """Drop every value that nobody declared to read."""
    values = state.__dict__
    dropped = tuple(name for name in values if name not in kept)
    for name in dropped:
        del values[name]
    state._dropped = dropped  # pyright: ignore[reportPrivateUsage]


class Shared:
    """State between callbacks and phases, ``learner.shared``. Holds anything; has no public methods."""

    def __getattr__(self, name: str) -> Any:
        there = ", ".join(sorted(self.__dict__)) or "nothing"
        raise AttributeError(f"nothing wrote shared.{name} yet; shared holds {there}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"Shared({', '.join(self.__dict__)})"
