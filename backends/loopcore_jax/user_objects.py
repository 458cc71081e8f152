"""The user's own objects that hold arrays themselves, kept in step with the learner's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from loopcore.backend import Leaves, Scopes
from loopcore_jax.array_store import CurrentArrays
from loopcore_jax.gradients import Gradients
from loopcore_jax.models import Models
from loopcore_jax.optimizers import Optimizers

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class UserObjects:
    """Modules and optimizers that hold arrays: outside a run they and the learner have the same values.

    Within a run they are not looked at, which would cost every call of a model the comparison of all arrays.

    Args:
        models: some of which may be such modules.
        optimizers: some of which may be such.
        gradients: differentiates by what these hold.
        current: tells whether what is computed stands for arrays; the objects stay as they are then.
    """

    def __init__(self, models: Models, optimizers: Optimizers, gradients: Gradients, current: CurrentArrays) -> None:
        self._models = models
        self._optimizers = optimizers
        self._gradients = gradients
        self._current = current
        self._open = False  # whether a run is

    def show(self) -> None:
        """Let the user's own objects hold the present values; where these stand for arrays, they stay as they are."""
        if not self._current.is_traced:
            self._models.show()
            self._optimizers.show()

    def take(self) -> None:
        """Go on from what the user wrote into his own objects."""
        if not self._current.is_traced:
            self._models.take()
            self._optimizers.take()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run a block as an outermost run: it goes on from the user's own objects, and leaves the new values in them.

        Raises:
            BackendError: a module has other parts or settings than it had.
        """
        # Within the block the arrays of the store alone count: programs use them up and hand on others.
        self.take()
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.show()

    # What steps call has its arguments by name: to hand on any arguments, as below, takes twice the time.

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model, which writes its state."""
        if self._open:
            return self._models.forward(model, args, kwargs, training=training, update_state=update_state)
        self.take()
        result = self._models.forward(model, args, kwargs, training=training, update_state=update_state)
        self.show()
        return result

    def gradient(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Leaves | None, scopes: Scopes
    ) -> list[list[Leaves]]:
        """Differentiate an objective, which reads parameters."""
        if not self._open:
            self.take()
        return self._gradients.gradient(objective, wrt, at, scopes)

    def update(self, grads: Leaves, apply: Any, value: Any = None) -> Any:
        """Make one step of the optimizers, which writes parameters."""
        if self._open:
            return self._optimizers.update(grads, apply, value)
        self.take()
        updated = self._optimizers.update(grads, apply, value)
        self.show()
        return updated

    def read_by(self, method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """Make a method go on from what the objects hold when it is called outside a run."""

        def reading(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            if not self._open:
                self.take()
            return method(*args, **kwargs)

        return reading

    def written_by(self, method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """Make a method go on from what the objects hold, and leave its values there, when called outside a run."""

        def writing(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            if self._open:
                return method(*args, **kwargs)
            self.take()
            result = method(*args, **kwargs)
            self.show()
            return result

        return writing
