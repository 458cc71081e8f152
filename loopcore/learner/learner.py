"""The Learner holds everything: models, data, phases, callbacks, and the verbs a step body uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from secrets import randbits
from typing import Any, cast

import numpy as np

from loopcore import checkpoint, losses
from loopcore._utils.argument_order import predictions_first
from loopcore.access.namespace_view import CONSTANT
from loopcore.backend import choice, registry
from loopcore.backend.packing import collect
from loopcore.backend.protocol import Extras, Tree
from loopcore.callback import Callback
from loopcore.checkpoint.parts import OptimizersPart
from loopcore.errors import (
    BackendError,
    CallbackError,
    CheckpointError,
    GradientError,
    OptimizerError,
    UnpackError,
    WeightsError,
)
from loopcore.events import BackwardEnd, UpdateBegin
from loopcore.execution.plan import checked_reads
from loopcore.handles.hyperparameters import Hyper, own_values
from loopcore.handles.models import Models
from loopcore.handles.parameters import (
    ParameterHandle,
    ParameterLayout,
    assign_optimizers,
    layout_of,
    layouts_of,
    leaves_of,
    matching,
    mismatches,
    renamed,
)
from loopcore.handles.randomness import Random
from loopcore.handles.trees import TreeMath
from loopcore.history import Epochs
from loopcore.learner.arguments import check_options, checked_phases, named_data, named_models, named_optimizers
from loopcore.learner.callback_list import CallbackList
from loopcore.learner.default_callbacks import with_defaults
from loopcore.learner.explain import explain
from loopcore.loop import dry_run
from loopcore.loop.batches import EpochBatches, data_of, epoch_hooks, iterable_batches, length_of, no_loss
from loopcore.loop.fit import FitResult, fit
from loopcore.loop.predict import joined, names_taken
from loopcore.loop.scopes import EpochInfo, execute_step, run_epoch
from loopcore.loop.session import Session
from loopcore.phases.base import Phase, check_phase
from loopcore.phases.supervised import PredictionPhase
from loopcore.state import Shared, State, batch_length, combine_conditions, settle

_NONE: frozenset[str] = frozenset()
_BACKWARD_END = BackwardEnd()


class Learner:
    """Holds all parts of a training run and runs it.

    Args:
        model: a native model, or a dict from name to model. Its type decides the backend.
        loss_fn: ``loss_fn(y_pred, ys) -> scalar``, native or neutral such as ``lc.losses.cross_entropy``.
        optimizer: a neutral spec such as ``lc.Adam(1e-3)``, the framework's own, or a dict from path prefix to one
            of these. What no prefix covers is frozen, and so is what the framework's own flag freezes
            (``requires_grad=False``, ``layer.trainable=False``), unless a prefix is the very path of that parameter.
        data: ``(train, valid)``, either may be None, or a dict by key. Each is an iterable of batches.
        phases: what an epoch of `fit` runs, in order. Default ``(TrainingPhase(), ValidationPhase())``.
        callbacks: in any order; where each runs follows from what it declares.
        hyper: scalars of your own, read as ``learner.hyper.<name>``.
        reads: step values kept after each step, such as ``("step.y_pred",)``; ``("step",)`` for all.
        default_callbacks: whether the default ones join, each unless you pass one of its kind.
        backend: name of the backend where the type of the model does not tell, or ``"auto"``, as in ``lc.use``.
            Default: what that chose, else NumPy.
        device: where models and batches go: ``"cpu"``, ``"gpu"`` for the first accelerator, or in the words of the
            framework. Default: the one chosen with the backend, else where the framework puts them.
        compile: ``"auto"``, True or False; False runs every step eagerly. ``"xla"`` compiles with XLA where the
            framework has other compilers too; on PyTorch a string names the ``torch.compile`` backend.
        seed: of every random number of a step, and of the order of `loopcore.data.batches` without a seed of its own;
            None draws one, which ``learner.seed`` has.

    Raises:
        UnknownModelError, MissingFrameworkError, OptimizerError: the parts do not fit one backend.
        CallbackError: the callbacks cannot work together; the message says why.
        DataError: ``data`` is ambiguous.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> def apply_fn(params, x):
        ...     return x @ params["w"]
        >>> xs = np.arange(8.0).reshape(8, 1) / 8
        >>> learner = lc.Learner(
        ...     (apply_fn, {"w": np.zeros((1, 1))}),
        ...     lc.losses.mse,
        ...     optimizer=lc.SGD(0.5),
        ...     data=([(xs, 3 * xs)], None),
        ...     default_callbacks=False,
        ... )
        >>> learner.fit(100).status
        'completed'
        >>> learner.params.value["w"].round(3)
        array([[3.]])
    """

    def __init__(
        self,
        model: Any,
        loss_fn: Callable[..., Any] | None = None,
        optimizer: Any = None,
        data: Any = (),
        *,
        phases: Sequence[Phase] | None = None,
        callbacks: Sequence[Callback] = (),
        hyper: Mapping[str, float] | None = None,
        reads: Sequence[str] = (),
        default_callbacks: bool = True,
        backend: str | None = None,
        device: Any = None,
        compile: bool | str = "auto",
        seed: int | None = 0,
    ) -> None:
        check_options(callbacks, loss_fn, hyper, seed)
        models = named_models(model)
        name = registry.infer(models, neutral=choice.name) if backend is None else choice.resolve(backend)
        device = choice.device_of(name) if device is None else device
        self.backend = registry.make(name, device=device, compile=compile)
        self._data = named_data(data)
        self.phases = checked_phases(phases)
        self.runs = Session(self)
        dry_run.build(self, models)
        self.backend.bind(models)
        self.seed = randbits(31) if seed is None else int(seed)
        self.losses = losses
        self.xp = self.backend.xp
        self.tree = TreeMath(self.backend)
        self.stop_gradient = self.backend.stop_gradient
        self.number = self.backend.number
        self.to_host = self.backend.to_host
        self.is_ready = self.backend.is_ready
        self.loss_fn: Callable[..., Any] = predictions_first(loss_fn) or no_loss
        self._attach(named_optimizers(optimizer), hyper or {})
        self._takes_value = bool(getattr(self.backend, "takes_value", False))
        self.reads = checked_reads("Learner", reads)
        self.compile = compile
        self.shared: Any = Shared()
        self.random = Random(self)
        self.model = Models(self, tuple(models))
        self.result: FitResult | None = None
        self._alike: dict[str, dict[str, list[int | None]]] = {}  # by phase, see `batch_length`
        self.callbacks = CallbackList(self, with_defaults(callbacks) if default_callbacks else callbacks)
        for phase in self.phases:
            phase.setup(self)

    def _attach(self, optimizers: Mapping[str, Any], hyper: Mapping[str, float]) -> None:
        parts = self.backend.paths("params")
        paths = [path for part in parts.values() for path in part]
        self.optimizer = dict(optimizers)
        self._covered = [(p, self._held(optimizers[p], covered)) for p, covered in assign_optimizers(paths, optimizers)]
        self._woken = frozenset(prefix for prefix in optimizers if prefix in paths and prefix not in parts)
        if self._woken and hasattr(self.backend, "wake"):
            cast(Extras, self.backend).wake(self._woken)
        self._frozen_by_user = self._asked()
        self._attached = [
            (prefix, tuple(path for path in covered if path not in self._frozen_by_user) or covered)
            for prefix, covered in self._covered
        ]
        self._attach_all()
        self.held: frozenset[str] = frozenset()
        self.holds: dict[int, frozenset[str]] = {}  # by id of the callback
        self._named_unreached = set[str]()  # of what no objective reaches
        self.all_params = ParameterHandle(self.backend, "params", parts)
        self.buffers = ParameterHandle(self.backend, "buffers", self.backend.paths("buffers"))
        self._select()
        self.hyper = Hyper(self.backend, hyper, tuple(prefix for prefix, _ in self.trained))

    def _asked(self) -> frozenset[str]:
        """What the user froze by the framework's own means, but for what an optimizer of its own wakes."""
        frozen_by_user = getattr(self.backend, "frozen_by_user", None)
        return _NONE if frozen_by_user is None else frozen_by_user() - self._woken

    def _attach_all(self) -> None:
        self.backend.attach([(self.optimizer[prefix], paths) for prefix, paths in self._attached])
        self._takes_value = bool(getattr(self.backend, "takes_value", False))

    def _select(self) -> None:
        """Train what has an optimizer, and what the user did not freeze."""
        frozen = self._frozen_by_user
        self.trained = [
            (prefix, tuple(path for path in paths if path not in frozen)) for prefix, paths in self._attached
        ]
        trained_paths = {path for _, group in self.trained for path in group}
        self.frozen = tuple(path for path in self.all_params.names if path not in trained_paths)
        parts = self.backend.paths("params")
        paths_by_model = {model: tuple(path for path in part if path in trained_paths) for model, part in parts.items()}
        nonempty = {model: part for model, part in paths_by_model.items() if part or not model}
        self.params = ParameterHandle(self.backend, "params", nonempty, everything=self.all_params)
        self._layout = layout_of(self.params)

    def heed_frozen(self) -> None:
        """Follow what the user froze, or let go, by the framework's own means since it was asked for last.

        ``fit`` and every epoch begin with it. Optimizers keep their states.
        """
        frozen = self._asked()
        if frozen == self._frozen_by_user or self.runs.runner is not None:
            return
        attached = [
            (prefix, tuple(path for path in covered if path in before or path not in frozen))
            for (prefix, covered), (_, before) in zip(self._covered, self._attached, strict=True)
        ]
        if attached != self._attached:
            with OptimizersPart(self).going_on():
                self.backend.attach([(self.optimizer[prefix], paths) for prefix, paths in attached])
        self._attached, self._frozen_by_user = attached, frozen  # not before: an optimizer may refuse more parameters
        self._select()
        self.runs.forget_runners()

    def _held(self, optimizer: Any, covered: tuple[str, ...]) -> tuple[str, ...]:
        """A native optimizer trains what it was made for; a neutral spec all that its prefix covers."""
        native_paths = self.backend.native_paths(optimizer)
        return covered if native_paths is None else tuple(path for path in covered if path in native_paths)

    # -- what is running ---------------------------------------------------------------------------------------

    @property
    def data(self) -> dict[str, Any]:
        """Data by key; a pair ``(train, valid)`` may be assigned too."""
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data = named_data(data)

    @property
    def step(self) -> Any:
        """State of the running step, then of the last one."""
        return self.runs.step

    @property
    def epoch(self) -> EpochInfo | None:
        """The running epoch, then the last one; None before the first."""
        return self.runs.epoch

    @property
    def attempt(self) -> Any:
        """Number of the running step among those begun in its phase, from 0; an input of a compiled step."""
        return self.runs.attempt

    @property
    def step_number(self) -> int:
        """Number of the running step among the completed ones of its phase, from 1: its place on the axis of steps."""
        return self.runs.step_number

    # -- drivers -----------------------------------------------------------------------------------------------

    def fit(self, epochs: int) -> FitResult:
        """Run rounds of one epoch of every phase.

        Args:
            epochs: how many rounds, at least 0. A validation phase without data is skipped.

        Returns:
            How it ended. A clean stop does not raise.

        Raises:
            DataError, OptimizerError, LossError: something is missing; found before the first step.
            ReentrantFitError: this learner is in ``fit``.

        Example:
            >>> import loopcore as lc
            >>> lc.testing.toy_learner().fit(2).status
            'completed'
        """
        return fit(self, epochs)

    def run_epoch(self, phase: Phase, data: Iterable[Any] | None = None, *, last: bool = True) -> EpochInfo:
        """Run one epoch of a phase.

        Outside of ``fit``, one of a training phase begins a round of a hand-written loop, and those of other phases
        that follow belong to it, each once. Any other is a measurement by hand: no round, by which nothing is saved,
        stopped or counted.

        Args:
            phase: what a step is.
            data: batches; default ``learner.data[phase.data_key]``. Where they have methods ``on_epoch_begin`` and
                ``on_epoch_end``, as ``keras.utils.PyDataset``, these are called around it.
            last: whether it ends a round, so that printers show the round.

        Returns:
            The epoch, with its outcome, its counts and, in ``metrics``, what was measured in it.
        """
        feed = data_of(self, phase, data)
        runs = self.runs
        runs.last_epoch = None
        mark = runs.mark()
        begin, end = epoch_hooks(feed)
        begin()
        try:
            runs.length, runs.last = (None if feed is None else length_of(feed)), last
            phase.epoch(self, None if feed is None else EpochBatches(feed, phase, runs.peeked))
        finally:
            runs.rewind(mark)  # in case of an interrupt in the loop itself
            runs.length, runs.last = None, True
        if runs.last_epoch is None:
            raise TypeError(
                f"{type(phase).__name__}.epoch opened no epoch: write with lc.run_epoch(learner, self) around its "
                "steps. To leave one out, raise lc.CancelEpochException in a callback at EpochBegin"
            )
        end()
        return runs.last_epoch

    def run_step(self, phase: Phase, batch: Any, *, reads: Sequence[str] = ()) -> State:
        """Run one step of a phase.

        Args:
            phase: what a step is.
            batch: what `Phase.unpack` of the phase takes.
            reads: step values to keep besides the declared ones, such as ``("step.y_pred",)``; ``("step",)`` for all.

        Returns:
            The state of the step.
        """
        if not isinstance(phase, Phase):
            check_phase(phase)
        initial = phase.unpack(batch)
        if type(initial) is not dict and not isinstance(initial, Mapping):
            raise UnpackError(
                f"{type(phase).__name__}.unpack returned a {type(initial).__name__}: return a dict that names the "
                'parts, {"xs": xs, "ys": ys}'
            )
        return execute_step(phase.step, self, phase, initial, self.runs.names_of(reads) if reads else _NONE)

    def predict(self, data: Any) -> Any:
        """Run the model forward on data, in evaluation mode.

        Args:
            data: batches as `PredictionPhase` takes them, or one array as a single batch. Of a mapping without
                ``xs`` the model gets the parts that it takes by name, or the mapping if it takes none.

        Returns:
            What the model returns, arrays of all batches concatenated along their first axis as NumPy arrays, in the
            structure that it returned: a dict, a tuple, on PyTorch a dataclass too. Scalars are stacked, None stays.

        Raises:
            DataError: there is no data, or outputs differ in shape.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> lc.testing.toy_learner().predict([np.ones((3, 1)), np.ones((2, 1))]).shape
            (5, 1)
        """
        phase = PredictionPhase()
        outputs: list[Any] = []
        feed = data_of(self, phase, iterable_batches(data))
        begin, end = epoch_hooks(feed)
        begin()
        with run_epoch(self, phase, length=length_of(feed)):
            for batch in EpochBatches(feed, phase):
                if isinstance(batch, Mapping) and "xs" not in batch and phase.names is None:
                    phase.names = names_taken(self.model.native, batch)
                outputs.append(self.to_host(self.run_step(phase, batch).y_pred))
        end()
        return self.backend.tree_map(lambda *parts: joined(parts), *outputs)

    def peek(self, phase: Phase) -> Any:
        """Look at the next batch of a phase and put it back: the next epoch of that data begins with it.

        Args:
            phase: whose data.

        Returns:
            The batch as the data yields it; None for a phase without data.

        Raises:
            DataError: there is no data, or no batch in it.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner(data=(iter([(1.0, 1.0), (2.0, 2.0)]), None))
            >>> learner.peek(lc.TrainingPhase()), learner.peek(lc.TrainingPhase())
            ((1.0, 1.0), (1.0, 1.0))
        """
        return dry_run.peek(self, phase)

    def rehearse(self, phase: Phase, batch: Any) -> State:
        """Run one step of a phase that changes nothing: no callback hears it, and no update takes effect.

        It runs eagerly, and shows the real error of a body that does not work. Weights, buffers, counts, ``shared``
        and the attributes of the phase are put back; what else a body changes is not.

        Args:
            phase: what a step is.
            batch: what `Phase.unpack` of the phase takes.

        Returns:
            The state of the step, with all its values.

        Raises:
            CallbackError: a step is running.

        Example:
            >>> import loopcore as lc
            >>> learner, phase = lc.testing.toy_learner(), lc.TrainingPhase()
            >>> float(learner.rehearse(phase, learner.peek(phase)).loss), learner.params.value
            (1.0, {'w': array([0.])})
        """
        return dry_run.rehearse(self, phase, batch)

    def profile(self, folder: str | Path) -> AbstractContextManager[None]:
        """Profile what runs in a ``with`` block with the framework's own profiler.

        Args:
            folder: where its files go; made when it is needed. NumPy writes one for ``pstats``; the others what
                TensorBoard's profiler, Perfetto or ``chrome://tracing`` shows.

        Raises:
            BackendError: the backend has none.

        Example:
            >>> import loopcore as lc, tempfile, pathlib
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with lc.testing.toy_learner().profile(folder):
            ...         pass
            ...     [path.suffix for path in pathlib.Path(folder).iterdir()]
            ['.pstats']
        """
        if not hasattr(self.backend, "profile"):
            raise BackendError(f"the {self.backend.name} backend has no profiler")
        Path(folder).mkdir(parents=True, exist_ok=True)
        return cast(Extras, self.backend).profile(Path(folder))

    @property
    def accelerator(self) -> Any:
        """The first accelerator that the framework sees, such as a GPU, for `to_device`; None if it sees none."""
        return cast(Extras, self.backend).accelerator() if hasattr(self.backend, "accelerator") else None

    def explain(self) -> str:
        """Print the order of the callbacks with the reason of each edge, and the plan of each phase.

        Returns:
            The printed text.
        """
        text = explain(self)
        print(text)
        return text

    # -- verbs of a step body ----------------------------------------------------------------------------------

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

    # -- weights -----------------------------------------------------------------------------------------------

    def export_weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """All parameters and buffers of all models, as copies by full path.

        Example:
            >>> import loopcore as lc
            >>> lc.testing.toy_learner().export_weights()
            {'w': array([0.])}
        """
        paths = (*self.all_params.names, *self.buffers.names)
        return {path: np.array(self.to_host(leaf)) for path, leaf in self.backend.snapshot(paths).items()}

    def import_weights(
        self, weights: Mapping[str, Any], names: Mapping[str, str | None] | Callable[[str], str | None] | None = None
    ) -> None:
        """Load what `export_weights` gave, here or on another backend; all is checked before anything is written.

        Args:
            weights: arrays by full path, one for every parameter and buffer.
            names: what the weights are called in this model, where they came under other names: a dict from their
                name to a path of this model, or a function of their name. None leaves one out. Names that a dict
                does not have stay.

        Raises:
            WeightsError: names, shapes or dtypes differ; lists all differences.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> learner = lc.testing.toy_learner()
            >>> learner.import_weights({"linear.w": np.array([2.0])}, names={"linear.w": "w"})
            >>> learner.params.value
            {'w': array([2.])}
        """
        if not isinstance(weights, Mapping):
            raise WeightsError(f"weights is a dict from path to array, as export_weights gives, not {type(weights)}")
        weights = renamed(weights, names)
        paths = {*self.all_params.names, *self.buffers.names}
        problems = [f"  {path}: the model has no such weight" for path in weights if path not in paths]
        problems += [f"  {path}: missing" for path in sorted(paths - set(weights))]
        present = {path: np.asarray(value) for path, value in weights.items() if path in paths}
        problems += mismatches(self.backend, present)
        if problems:
            raise WeightsError("the weights do not fit the model, nothing was loaded:\n" + "\n".join(problems))
        self.backend.set(present)

    def save(self, path: str | Path, *, only_finite: bool = False, **more: Any) -> Path:
        """Write a checkpoint: all that a run goes on from with the bits it would have had. Saving changes nothing.

        That is the weights, the state and the hyperparameters of every optimizer, ``hyper``, the seed and the counts
        that draws follow from, what callbacks carry and keep, the place of every loader that has ``state_dict`` and
        ``load_state_dict``, and the history: all values by epoch, and by step as many as are kept, at most 16,384 of
        each metric. Under ``data`` the manifest says for each loader how a run goes on: ``"exact"`` with the batch
        that would have come next; ``"epoch"``, a list whose epoch was left in the middle and begins again; ``"none"``,
        a loader without a state, where loopcore cannot know. Of an epoch
        that is not over, its sums and what its phase carries are not kept.

        One file of safetensors with a JSON manifest. It is written under another name, synced and renamed: under its
        own name it is always whole, and an older file of that name is there until the new one is.

        Args:
            path: of the file.
            only_finite: raise, where weights or what an optimizer keeps are NaN or infinite; else it is a warning.
            **more: JSON values for the manifest, under names that it does not have.

        Returns:
            The path.

        Raises:
            CheckpointError: the system refused, a value is no JSON, or a step is running; an older file is as it was.
            NotFiniteError: see ``only_finite``.

        Example:
            >>> import loopcore as lc, tempfile
            >>> learner = lc.testing.toy_learner()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result = learner.fit(1)
            ...     path = learner.save(f"{folder}/run.safetensors")
            ...     other = lc.testing.toy_learner()
            ...     other.load(path)
            >>> other.params.value == learner.params.value, other.history == learner.history
            (True, True)
        """
        return checkpoint.save(self, path, only_finite=only_finite, **more)

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote for a learner of the same models, optimizers, callbacks and backend.

        Everything is taken, the seed too, or nothing is. A learner may lack the data of the first one. A callback that
        keeps a state and joins only now is added after the load.

        Args:
            path: of the file. Nothing in it is executed.

        Raises:
            CheckpointError: it is no checkpoint, damaged, or does not fit; lists what differs, and nothing was loaded.
                Or an epoch of this learner is running, which would go on with other weights.

        Example:
            >>> import loopcore as lc, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = lc.testing.toy_learner(optimizer=lc.Adam(0.1)).save(f"{folder}/run.safetensors")
            ...     try:
            ...         lc.testing.toy_learner(optimizer=lc.AdamW(0.1)).load(path)
            ...     except lc.errors.CheckpointError as error:
            ...         print(str(error).splitlines()[1].strip())
            optimizers: AdamW here, Adam in the checkpoint
        """
        checkpoint.load(self, path)

    def save_model(self, path: str | Path) -> Path:
        """Write the weights alone, as `save` does.

        Example:
            >>> import loopcore as lc, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = lc.testing.toy_learner().save_model(f"{folder}/model.safetensors")
            ...     lc.testing.toy_learner().load_model(path)
        """
        return checkpoint.save_weights(self, path)

    def load_model(self, path: str | Path) -> None:
        """Load the weights of a file that `save` or `save_model` wrote, on any backend with the same names and shapes.

        Raises:
            CheckpointError: it is no checkpoint, or damaged.
            WeightsError: names, shapes or dtypes differ; lists all differences.
        """
        self.import_weights(checkpoint.load_weights(path))

    def set_model(self, model: Any) -> None:
        """Replace the models by new ones of the same names; weights are theirs, optimizer state starts anew.

        Args:
            model: as for the constructor. A native optimizer holds the old parameters and must be a spec instead.
        """
        models = named_models(model)
        dry_run.build(self, models)
        self.backend.bind(models)
        self._attach(self.optimizer, dict(own_values(self.hyper)))
        self.model = Models(self, tuple(models))
        self.runs.forget_runners()  # a program may hold the variables of the old models

    def hold(self, *patterns: str, by: Callback | None = None) -> tuple[str, ...]:
        """Leave some of the trained parameters as they are from now on; without a pattern, let go what a call held.

        No update touches them: neither decay nor momentum moves them, and the optimizer keeps its state of them as it
        is. Their gradients are zero and are not computed. Buffers, such as BatchNorm's statistics, go on changing.
        Compiled steps are compiled anew. What is never trained needs no optimizer instead, see `Learner`.

        Args:
            *patterns: of full paths, as in ``fnmatch``: ``"encoder.*"``, ``"*bias"``. They replace those of the last
                call with the same ``by``.
            by: the callback that holds them, until it is removed. What others hold stays held.

        Returns:
            The paths that are held, by anybody.

        Raises:
            WeightsError: a pattern matches no trained parameter.
            CallbackError: a step is running.

        Example:
            >>> import loopcore as lc
            >>> learner = lc.testing.toy_learner()
            >>> learner.hold("w")
            ('w',)
            >>> result = learner.fit(1)
            >>> learner.params.value
            {'w': array([0.])}
        """
        if self.runs.runner is not None:
            raise CallbackError("hold changes what a step is: call it between two steps, for instance at EpochBegin")
        self.holds[id(by)] = matching(self.params.names, patterns)
        held_paths = frozenset[str]().union(*self.holds.values())
        if held_paths != self.held:
            self.held = held_paths
            self.runs.forget_runners()
        return tuple(path for path in self.params.names if path in held_paths)

    def name_unreached(self) -> None:
        """Warn once, by name, of trained parameters that no objective has reached; a training epoch ends with it."""
        unreached = getattr(self.backend, "unreached", None)
        names = () if unreached is None else tuple(path for path in unreached() if path not in self._named_unreached)
        if names:
            self._named_unreached.update(names)
            warnings.warn(
                f"no objective has reached {', '.join(names)} so far, though an optimizer trains them. Compute the "
                "loss from them, or leave them without an optimizer: optimizer={'head': ...} trains what is below head",
                stacklevel=2,
            )

    def to_device(self, device: Any) -> None:
        """Move models, buffers, optimizer state and what callbacks carry to a device; nothing of it is lost."""
        self.backend.to_device(device)
        settle(self.shared)
        shared = vars(self.shared)
        callbacks = getattr(self, "callbacks", ())  # there are none yet where one of them does this when it joins
        carried = (path.removeprefix("shared.") for callback in callbacks for path in callback.carries)
        shared.update({name: self.backend.convert(shared[name]) for name in carried if name in shared})
        self.runs.forget_runners()  # they keep inputs of their programs on the device

    # -- what is remembered ------------------------------------------------------------------------------------

    @property
    def history(self) -> Epochs:
        """Epoch values of the metrics: ``learner.history["val_loss"]`` is a list of floats, one an epoch."""
        return Epochs(self.shared)

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

    def __reduce__(self) -> Any:
        raise CheckpointError(
            "a Learner can be neither pickled nor copied: it holds compiled programs, open iterators and objects of "
            "yours. Make another one by the code that made this one, and let it go on from learner.save(path) by "
            "load(path); learner.result and learner.history can be pickled and copied"
        )

    def __repr__(self) -> str:
        models = ", ".join(name for name in self.backend.paths("params") if name) or "one model"
        return (
            f"Learner({models}, backend={self.backend.name!r}, callbacks={[type(c).__name__ for c in self.callbacks]})"
        )


def _value_of(handle: ParameterHandle) -> str:
    """What the state of a step calls the value of an objective; no attribute has such a name."""
    return f"objective of {layout_of(handle).paths[0]}"


def _nothing_in(handle: ParameterHandle) -> GradientError:
    return GradientError(f"wrt={handle!r} holds no parameters: pass an optimizer for what is to be trained")
