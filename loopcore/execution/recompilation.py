"""Why a phase is compiled again: each time a line in the log, and a warning where it does not end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence

_log = logging.getLogger("loopcore")
# Two or three programs are usual: a last batch that is shorter, a validation within training. Eight come of a value
# that changes from step to step, and a step spends its time on compiling.
_STORM = 8
_FIELDS = (  # in words, the fields of `ProgramKey`, in its order
    *("the body", "the loss", "an attribute of the phase", "an attribute of a callback"),
    *("the names of what is no array in the state", "the names of the state"),
    *("the names of shared", "what is read", "the seed", "state.apply", "what is carried", "who listens"),
    *("who cuts", "the step around it", "what is drawn", "the cuts"),
)


class RecompilationLog:
    """What one phase was compiled for.

    Args:
        phase: its name.
    """

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._last: tuple[Hashable, ...] = ()

    def of(self, key: tuple[Hashable, ...], count: int, changed_values: Sequence[str]) -> None:
        """Log that a program is made for a key, unless it is the first one.

        Args:
            key: all that it depends on.
            count: how many programs there are.
            changed_values: values it read that are not what they were for another program of this key.
        """
        # The first program of a phase is no news.
        if count:
            fields = zip(_FIELDS, self._last, key, strict=True)
            changed = changed_values or [name for name, last, present in fields if last != present]
            advice = "make it an array or a float of the state, which are inputs"
            self._tell(f"{', '.join(changed) or 'something'} changed", count, advice)
        self._last = key

    def of_shape(self, last: Mapping[str, str], present: Mapping[str, str], count: int) -> None:
        """Log that a program is made for other shapes of the state, ``count`` of them so far."""
        names = [name for name, shape in present.items() if last.get(name) != shape]
        shapes = "; ".join(f"the shape of step.{name} ({last.get(name)} -> {present[name]})" for name in names)
        advice = "pad the batches to a few shapes, or drop the last one"
        self._tell(f"{shapes or 'a shape'} changed", count, advice)

    def _tell(self, reason: str, count: int, advice: str) -> None:
        _log.info("phase %r is compiled again: %s", self._phase, reason)
        # Once, not at every further one.
        if count == _STORM:
            warnings.warn(
                f"the steps of phase {self._phase!r} were compiled {count} times, because {reason} from step to "
                f"step: {advice}, or set compile = False",
                stacklevel=8,
            )
