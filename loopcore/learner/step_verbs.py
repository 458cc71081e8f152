"""What a step body uses of a learner, and its handlers: gradients, updates, and values of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from loopcore.access.namespace_view import CONSTANT
from loopcore.backend.packing import collect
from loopcore.backend.protocol import Tree
from loopcore.errors import GradientError, OptimizerError
from loopcore.events import BackwardEnd, UpdateBegin
from loopcore.handles.parameters import ParameterHandle, ParameterLayout, layout_of, layouts_of, leaves_of
from loopcore.learner.trained_parameters import TrainedParameters
from loopcore.state import batch_length, combine_conditions

_BACKWARD_END = BackwardEnd()


class StepVerbs(TrainedParameters):
    """A base of `Learner`: what is differentiated and updated within a step."""

    shared: Any
    xp: Any
    _alike: dict[str, dict[str, list[int | None]]]  # by phase, see `batch_length`

    def gradient(self, objective: Callable[[], Any], wrt: Any = None, at: Tree | None = None) -> Any:
        """Differentiate a zero-argument closure.

        Args:
            objective: returns a scalar, or a tuple of scalars for a tuple of gradients from one forward pass.
                Only what it computes is differentiated; everything from outside is a constant.
            wrt: a handle such as ``learner.params.critic``, or a tuple of handles. Default ``learner.params``.
            at: a tree of other values, in the structure of ``wrt``; nothing is written.

        Returns:
            The gradient in the structure of ``wrt.value``; zeros for parameters that are not reached.

        Raises:
            LossError: the objective did not return scalars.
            GradientError: ``wrt`` is empty, or the objective reaches nothing of it.
        """
        scopes = (self.runs.step.__dict__, self.shared.__dict__)
        if isinstance(wrt, tuple):
            return self._gradients(objective, wrt, at, scopes)
        handle: ParameterHandle = self.params if wrt is None else wrt
        layout = self._layout if wrt is None else layout_of(handle)
        rows = self._leaves_of_gradient(objective, handle, layout, at, scopes)
        if len(rows) == 1:
            grads = rows[0][0]
            return grads if layout.flat is not None else layout.tree(grads)
        return tuple(layout.tree(row[0]) for row in rows)

    def _leaves_of_gradient(
        self,
        objective: Callable[[], Any],
        handle: ParameterHandle,
        layout: ParameterLayout,
        at: Tree | None,
        scopes: Any,
    ) -> Any:
        """For each scalar the gradients of one handle, by path."""
        if not layout.paths:
            raise _nothing_in(handle)
        if self._takes_value:
            objective = self._noting(objective, (handle,))
        take = self._gradient_without_held if self.held else self.runs.gradient
        try:
            return take(objective, (layout.paths,), None if at is None else layout.leaves(at), scopes)
        except GradientError as error:
            raise self._explained(error) from error.__cause__

    def _gradients(
        self, objective: Callable[[], Any], wrt: tuple[ParameterHandle, ...], at: Tree | None, scopes: Any
    ) -> Any:
        layouts = layouts_of(wrt)
        for handle, layout in zip(wrt, layouts, strict=True):
            if not layout.paths:
                raise _nothing_in(handle)
        if self._takes_value:
            objective = self._noting(objective, wrt)
        pairs = () if at is None else zip(layouts, at, strict=True)
        leaves = {path: leaf for layout, tree in pairs for path, leaf in layout.leaves(tree).items()}
        take = self._gradient_without_held if self.held else self.runs.gradient
        try:
            gradients = take(objective, [layout.paths for layout in layouts], leaves, scopes)
        except GradientError as error:
            raise self._explained(error) from error.__cause__
        rows = [tuple(layout.tree(grads) for layout, grads in zip(layouts, row, strict=True)) for row in gradients]
        return rows[0] if len(rows) == 1 else tuple(rows)

    def _gradient_without_held(
        self, objective: Callable[[], Any], wrt: Sequence[tuple[str, ...]], at: Any, scopes: Any
    ) -> Any:
        """The gradients of the backend; those of parameters that are held are zero, and not computed."""
        held_paths = self.held
        open_paths = [tuple(path for path in paths if path not in held_paths) or paths for paths in wrt]
        gradients = self.runs.gradient(objective, open_paths, at, scopes)
        zeros = {path: self.xp.zeros_like(leaf) for path, leaf in self.backend.get(held_paths).items()}
        return [
            [{path: zeros[path] if path in held_paths else grads[path] for path in paths} for paths, grads in pairs]
            for pairs in (zip(wrt, row, strict=True) for row in gradients)
        ]

    def _noting(self, objective: Callable[[], Any], wrt: tuple[ParameterHandle, ...]) -> Callable[[], Any]:
        """An objective that leaves its value in the state, for optimizers that take it."""

        def noting() -> Any:
            result = objective()
            if not isinstance(result, (tuple, list)):
                self.runs.step.__dict__.update({_value_of(handle): result for handle in wrt})
            return result

        return noting

    def _explained(self, error: GradientError) -> GradientError:
        """The error, with the callbacks that made constants of values of this step."""
        replaced = self.runs.record.replaced
        if not replaced or CONSTANT in str(error):  # already said, by a gradient inside this one
            return error
        values = ", ".join(f"{callback_name} replaced step.{name}" for name, callback_name in replaced.items())
        return type(error)(f"{error}. In this step {values} inside an objective: {CONSTANT}")

    def grad(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Gradient of a scalar function of arrays with respect to its arguments.

        Args:
            fn: from trees of floating arrays to a scalar.

        Returns:
            A function of the same arguments: of one argument its gradient, of several a tuple. It may be used
            inside an objective and differentiated again.
        """
        return self.backend.grad(fn, (vars(self.runs.step), vars(self.shared)))

    def update(
        self, grads: Tree, params: ParameterHandle | tuple[ParameterHandle, ...] | None = None, when: Any = True
    ) -> None:
        """Apply one optimizer step.

        Args:
            grads: in the structure of ``params.value``.
            params: what the gradients belong to, a handle or a tuple of handles. Default ``learner.params``.
            when: a bool or a 0-d boolean array. It and, while a step runs, ``state.apply`` must be true; else
                parameters, optimizer state and its counters stay. ``state.updated`` says what happened.
        """
        runs = self.runs
        state, record, runner = runs.step, runs.record, runs.runner
        leaves = self._layout.leaves(grads) if params is None else leaves_of(params, grads)
        if self.held:
            leaves = {path: grad for path, grad in leaves.items() if path not in self.held}
        if runner is not None and runner.guarded:
            runner.handle(UpdateBegin(leaves, combine_conditions(record.apply, when)))
        apply = record.apply if runner is not None else True  # that of a step that ended decides nothing more
        apply = combine_conditions(apply, when)
        if self._takes_value and leaves:
            state.updated = cast(Any, self.backend).update(leaves, apply, self._value(params))
        else:
            state.updated = self.backend.update(leaves, apply) if leaves else False

    def _value(self, params: Any) -> Any:
        """The loss whose gradient an update applies, by the handle or handles that it is of.

        Raises:
            OptimizerError: nobody knows it.
        """
        state = self.runs.step
        handle = self.params if params is None else params[0] if isinstance(params, tuple) else params
        value = vars(state).get(_value_of(handle))
        value = getattr(state, "loss", None) if value is None else value
        if value is None:
            raise OptimizerError(
                "an optimizer takes the loss, value=, and this update has none: take the gradient of one scalar "
                "in the same step, or set state.loss"
            )
        return value

    def minimize(
        self,
        objective: Callable[[], Any],
        wrt: ParameterHandle | tuple[ParameterHandle, ...] | None = None,
        at: Tree | None = None,
    ) -> None:
        """Take the gradient of an objective, fire BackwardEnd, and update.

        Args:
            objective: returns a scalar.
            wrt: what to update, a handle or a tuple of handles. Default ``learner.params``.
            at: where to take the gradient, as in `gradient`; what is updated are the present values.
        """
        runs = self.runs
        runner, state, record = runs.runner, runs.step, runs.record
        if wrt is not None or runner is None or self.held or self._takes_value:
            state.grads = self.gradient(objective, wrt, at)
            if runner is not None and runner.inner[BackwardEnd]:
                runner.handle(_BACKWARD_END)
            self.update(state.grads, wrt)
            return
        layout = self._layout
        rows = self._leaves_of_gradient(objective, self.params, layout, at, (state.__dict__, self.shared.__dict__))
        leaves = rows[0][0]
        grads = leaves if layout.flat is not None else layout.tree(leaves)
        state.grads = grads if len(rows) == 1 else tuple(layout.tree(row[0]) for row in rows)
        if runner.inner[BackwardEnd]:
            runner.handle(_BACKWARD_END)
        if state.grads is grads and not (runner.changes_grads and layout.flat is None):  # the tree need not be read
            if runner.guarded:
                runner.handle(UpdateBegin(leaves, record.apply))
            state.updated = self.backend.update(leaves, record.apply)
        else:
            self.update(state.grads)

    def collect(self, *names: str) -> tuple[Any, ...]:
        """Values of the running step that are looked at later: ``numpy.asarray`` of one fetches it then.

        Args:
            names: of step values that traced handlers left, see `Callback.leaves`.

        Returns:
            For each name an array as something to fetch later, whose ``is_ready()`` says whether that would wait;
            anything else as it is, and None where the step does not have it.
        """
        runs = self.runs
        return collect(self.backend, runs.step.__dict__, runs.record.packed, names)

    @property
    def sample_weight(self) -> Any:
        """Weight of the running step in epoch means: ``state.weight`` if set, else the samples of the batch.

        Raises:
            DataError: its arrays differ in length, none is ``xs``, and batches before had other lengths:
                ``state.weight`` has to say it.
        """
        runs = self.runs
        state, record = runs.step, runs.record
        if "weight" in state.__dict__:
            return state.weight
        size = record.size
        if size is None:
            alike = self._alike.setdefault(runs.runner.name if runs.runner else "", {})
            size = record.size = batch_length(record.batch, self.backend.tree_leaves, alike)
        return size


def _value_of(handle: ParameterHandle) -> str:
    """What the state of a step calls the value of an objective; no attribute has such a name."""
    return f"objective of {layout_of(handle).paths[0]}"


def _nothing_in(handle: ParameterHandle) -> GradientError:
    return GradientError(f"wrt={handle!r} holds no parameters: pass an optimizer for what is to be trained")
