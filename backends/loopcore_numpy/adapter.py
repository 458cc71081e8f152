"""The NumPy backend: everything runs eagerly, gradients are autograd's.

The file is long because the protocol has many methods, and here the object that answers them also holds the arrays and
does what other backends leave to modules of their own: the forward pass, gradients and updates.
"""

from __future__ import annotations

import cProfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optree
from autograd.tracer import getval, isbox

from loopcore.backend import Array, DrawKey, Kind, Leaves, RandomBackend, Tree
from loopcore.backend.pairs import Pair, read, recognises
from loopcore.errors import BackendError, GradientError, OptimizerError
from loopcore.handles.parameters import check_state
from loopcore_numpy import functions as f
from loopcore_numpy import trees
from loopcore_numpy.losses import Losses
from loopcore_numpy.namespace import Namespace
from loopcore_numpy.optimizers import Optimizer, make
from loopcore_numpy.random import Random, generator
from loopcore_numpy.tape import Tape

_FLOAT64: np.dtype[Any] = np.dtype(np.float64)
_FLOAT32: np.dtype[Any] = np.dtype(np.float32)  # of what is made without a model, as on every backend


class _Frame(threading.local):
    """What the step that a thread is running has: arrays of an objective, and the key of its random numbers.

    Attributes:
        traced: the arrays that an open objective sees in place of the present ones, by path; None outside.
        key: of the running step body.
        calls: how many generators its models were given.
    """

    traced: Leaves | None = None
    key: DrawKey = DrawKey(0, 0, 0)
    calls: int = 0


class Backend:
    """NumPy's side of one Learner. See `loopcore.backend.Backend` for what the methods promise.

    Parameters are replaced at each update and never written in place, so that arrays handed out stay as they are.

    Args:
        device: None or ``"cpu"``.
        compile: accepted for symmetry; nothing is compiled.

    Raises:
        BackendError: another device.
    """

    name = "numpy"
    compiles = False
    xp: Any = Namespace(_FLOAT64)
    losses: Any = Losses()

    def __init__(self, *, device: Any = None, compile: Any = "auto") -> None:
        self.transfers = 0
        self._models: dict[str, Pair] = {}
        self._params: Leaves = {}
        self._buffers: Leaves = {}
        self._optimizers: list[Optimizer] = []
        self._frame = _Frame()
        self._use(_FLOAT32)
        self.to_device(device)

    def _use(self, dtype: np.dtype[Any]) -> None:
        """Make the namespace, the random numbers and the conversions of one floating dtype."""
        self._dtype = dtype
        self.xp = Namespace(dtype)
        self.random: RandomBackend = Random(dtype)
        # `convert` maps this over every batch.
        self._convert_leaf = partial(trees.convert_leaf, dtype)

    @staticmethod
    def recognises(model: Any) -> bool:
        """Whether it is a tree of NumPy arrays, ``(apply_fn, params)`` or ``(apply_fn, params, state)``."""
        return recognises(model, trees.is_array)

    @contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        """Profile a block with cProfile; ``python -m pstats profile.pstats`` reads the file."""
        profiler = cProfile.Profile()
        try:
            with profiler:
                yield
        finally:
            profiler.dump_stats(folder / "profile.pstats")

    # -- models and optimizers -------------------------------------------------------------------------------------

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the user's models; their arrays are copied."""
        parsed = {name: read(name, model, trees.is_array, self.name) for name, model in models.items()}
        self._models = {name: pair for name, (pair, _, _) in parsed.items()}
        self._params = {path: _sealed(np.array(x)) for _, params, _ in parsed.values() for path, x in params.items()}
        self._buffers = {path: np.array(x) for _, _, buffers in parsed.values() for path, x in buffers.items()}
        # One dtype for batches and draws, in which no parameter loses precision.
        self._use(np.result_type(*(value.dtype for value in self._params.values())))

    def native(self, model: str) -> Any:
        """The model as the user gave it, with copies of the present arrays."""
        return self._models[model].native(lambda path: np.array(getval(self._stored(path))))

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """For each model name the full paths of its arrays."""
        return {name: model.part(kind).paths for name, model in self._models.items()}

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """Return None: NumPy has no optimizers of its own that could hold parameters."""
        return None

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take neutral optimizer specs, each with the paths it trains."""
        self._optimizers = [make(spec, {path: self._params[path] for path in paths}) for spec, paths in optimizers]

    def optimizer_name(self, optimizer: int) -> str:
        """Return the name of the spec that an optimizer was made of, such as ``"Adam"``."""
        return self._optimizers[optimizer].name

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """The hyperparameters of an optimizer that can be set."""
        return self._optimizers[optimizer].tunable

    def get_hyper(self, optimizer: int, name: str) -> float:
        """Return the present value of a hyperparameter."""
        return self._tunable(optimizer, name)[name]

    def set_hyper(self, optimizer: int, name: str, value: float) -> None:
        """Set a hyperparameter for the updates to come."""
        self._tunable(optimizer, name)[name] = float(value)

    def _tunable(self, optimizer: int, name: str) -> dict[str, float]:
        """Return the hyperparameters of an optimizer, if it has the one that is named."""
        target = self._optimizers[optimizer]
        if name not in target.tunable:
            raise OptimizerError(f"optimizer {optimizer} has no {name}, it has {', '.join(target.tunable)}")
        return target.hyper

    def to_device(self, device: Any) -> None:
        """Accept ``None`` and ``"cpu"``, and refuse every other device."""
        if device not in (None, "cpu"):
            raise BackendError(f"NumPy computes on the CPU, not on {device!r}: leave device out, or pass device='cpu'")

    def export_optimizers(self) -> dict[str, Any]:
        """Return the counts and slots of all optimizers, as ``"number.path.slot"``."""
        return {
            f"{n}.{name}": value
            for n, optimizer in enumerate(self._optimizers)
            for name, value in optimizer.export().items()
        }

    def import_optimizers(self, state: Mapping[str, Any]) -> None:
        """Restore what `export_optimizers` gave.

        Raises:
            ValueError: it is that of other optimizers.
        """
        check_state(self.export_optimizers(), state)
        for n, optimizer in enumerate(self._optimizers):
            optimizer.load(
                {name.removeprefix(f"{n}."): value for name, value in state.items() if name.startswith(f"{n}.")}
            )

    # -- weights ---------------------------------------------------------------------------------------------------

    def _stored(self, path: str) -> Array:
        """Return the array of a path outside any objective."""
        return self._params[path] if path in self._params else self._buffers[path]

    def _present(self, path: str) -> Array:
        """Return the array that a body sees: in an objective the box that stands for it."""
        traced = self._frame.traced
        return traced[path] if traced and path in traced else self._stored(path)

    def _lent(self, path: str) -> Array:
        """Return the present array for a model to use: its state as a copy, which the model may write in place."""
        value = self._present(path)
        return value if isbox(value) or path in self._params else value.copy()

    def get(self, paths: Iterable[str]) -> Leaves:
        """The present arrays by reference; inside an objective its boxes."""
        return {path: self._present(path) for path in paths}

    def set(self, leaves: Mapping[str, Array]) -> None:
        """Copy values in, in the dtype of what they replace."""
        for path, value in leaves.items():
            if path in self._params:
                self._params[path] = _sealed(np.array(getval(value), self._params[path].dtype))
            else:
                self._buffers[path] = np.array(getval(value), self._buffers[path].dtype)

    def snapshot(self, paths: Iterable[str]) -> Leaves:
        """Copies of the present arrays; inside an objective its boxes, which nothing can write."""
        present = self.get(paths)
        return {path: value if isbox(value) else value.copy() for path, value in present.items()}

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Arrays by relative path -> the user's own structure."""
        return self._models[model].part(kind).pack(leaves)

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """The user's own structure -> arrays by relative path."""
        return self._models[model].part(kind).unpack(tree)

    # -- inside a step ---------------------------------------------------------------------------------------------

    def scope(self) -> Any:
        """Nothing global is changed, so nothing is restored."""
        return nullcontext()

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body; NumPy's floating point warnings are off, as they are in every other framework."""
        frame = self._frame
        # A handler may run a step within a step, on the same thread.
        before = frame.traced, frame.key, frame.calls
        if frame.traced is not None:  # a step within an objective is no part of it
            self._buffers = {path: getval(value) for path, value in self._buffers.items()}
        frame.traced, frame.key, frame.calls = None, key, 0
        try:
            with np.errstate(all="ignore"):
                call(*args)
        finally:
            frame.traced, frame.key, frame.calls = before

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model with the present arrays, and store the state that it returns."""
        result, state = self._call(self._models[model], self._lent, args, kwargs, training)
        if update_state and state:
            # Within an objective the state may hold boxes, through which a second call of the model is differentiated;
            # `gradient` opens them when the objective ends.
            inside = self._frame.traced is not None
            self._buffers.update({path: self._new_state(path, value, inside) for path, value in state.items()})
        return result

    def _new_state(self, path: str, value: Any, inside: bool) -> Array:
        """Return a value of the state that a call gave, in the dtype of the value before it."""
        dtype = self._buffers[path].dtype
        return _cast(value, dtype) if inside and isbox(value) else np.array(getval(value), dtype)

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its state stays as it is."""

        def values(path: str) -> Array:
            return leaves[path] if path in leaves else self._lent(path)

        return self._call(self._models[model], values, args, kwargs, training)[0]

    def _call(
        self, model: Pair, values: Callable[[str], Array], args: Any, kwargs: dict[str, Any], training: bool
    ) -> tuple[Any, Leaves]:
        params, state = model.part("params").build(values), {path: values(path) for path in model.part("buffers").paths}
        return model.call(params, state, args, kwargs, training, self._generator(model))

    def _generator(self, model: Pair) -> np.random.Generator | None:
        """Return a generator for one call of a model: the calls of a step body get one each."""
        if not model.takes_rng:
            return None
        self._frame.calls += 1
        return generator(self._frame.key, self._frame.calls)

    def gradient(
        self,
        objective: Callable[[], Any],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Sequence[MutableMapping[str, Any]],
    ) -> list[list[Leaves]]:
        """Differentiate a closure: one forward, one backward per scalar it returns."""
        # Parameters are not passed to an objective: models read them from the frame, where boxes lie for as long as the
        # objective runs.
        frame, tape = self._frame, Tape()
        outer = frame.traced
        traced = {**(outer or {}), **self._fit(at or {})}
        # Within another objective its boxes get boxes of their own, so that the outer tape records how this gradient is
        # computed.
        values = {path: traced[path] if path in traced else self._params[path] for paths in wrt for path in paths}
        traced.update({path: tape.watch(path, value) for path, value in values.items()})
        frame.traced = traced
        try:
            result = objective()
        finally:
            frame.traced = outer
            tape.strip([*scopes, self._buffers])
        losses, nodes = tape.scalars(result)
        if not nodes:
            raise GradientError(_unreached(losses, values))
        gradients = [tape.backward(nodes[n], loss) if n in nodes else {} for n, loss in enumerate(losses)]
        settled = [_settle(values, by_path) for by_path in gradients]
        return [[{path: leaves[path] for path in paths} for paths in wrt] for leaves in settled]

    def _fit(self, at: Leaves) -> Leaves:
        """Convert values for ``at`` to the dtypes of the parameters they stand for."""
        return {path: _cast(value, self._stored(path).dtype) for path, value in at.items()}

    def grad(self, fn: Callable[..., Any], scopes: Sequence[MutableMapping[str, Any]]) -> Callable[..., Any]:
        """Gradient of a scalar function of trees of arrays with respect to its positional arguments."""

        def gradients(*args: Any, **kwargs: Any) -> Any:
            tape = Tape()
            values: dict[Any, Array] = {}

            def watch(position: int, leaf: Any) -> Array:
                key = len(values)
                values[key] = self._differentiable(fn, position, leaf)
                return tape.watch(key, values[key])

            boxed = [optree.tree_map(partial(watch, n), arg) for n, arg in enumerate(args)]
            try:
                result = fn(*boxed, **kwargs)
            finally:
                tape.strip([*scopes, self._buffers])
            losses, nodes = tape.scalars(result)
            if not nodes:
                raise GradientError(f"the result of {_title(fn)} depends on none of its arguments")
            # optree visits the leaves in the order in which `watch` has numbered them.
            settled = iter(_settle(values, tape.backward(nodes[0], losses[0])).values())
            arg_gradients = tuple(optree.tree_map(lambda _: next(settled), arg) for arg in args)
            return arg_gradients[0] if len(arg_gradients) == 1 else arg_gradients

        return gradients

    def _differentiable(self, fn: Callable[..., Any], position: int, leaf: Any) -> Array:
        if trees.is_array(leaf) and leaf.dtype.kind == "f":
            return leaf if isbox(leaf) else np.asarray(leaf)
        if isinstance(leaf, float):
            return np.asarray(leaf, self._dtype)
        kind = f"holds {leaf.dtype}" if trees.is_array(leaf) else f"holds a {type(leaf).__name__}"
        raise GradientError(
            f"argument {position} of {_title(fn)} {kind}, only floating arrays can be differentiated: close over it "
            "instead, learner.grad(lambda x: f(x, labels))(x)"
        )

    def update(self, grads: Leaves, apply: Any) -> bool:
        """One step of every optimizer that trains one of these paths; nothing changes unless all of it can."""
        if not bool(getval(apply)):
            return False
        frozen = [path for path in grads if not any(path in optimizer.state for optimizer in self._optimizers)]
        if frozen:
            raise OptimizerError(f"no optimizer trains {', '.join(frozen[:5])}: leave these out of the gradients")
        plain = {path: getval(gradient) for path, gradient in grads.items()}
        # All are computed before one is stored: an error, as of a gradient of another shape, leaves everything as it
        # was.
        proposed = [(optimizer, *optimizer.propose(self._params, plain)) for optimizer in self._optimizers]
        for optimizer, params, state in proposed:
            if params:
                optimizer.commit(state)
                self._params.update({path: _sealed(value) for path, value in params.items()})
        return True

    def stop_gradient(self, tree: Tree) -> Tree:
        """The same values without boxes."""
        return getval(tree) if isbox(tree) else trees.transform(getval, tree)

    # -- arrays ----------------------------------------------------------------------------------------------------

    def convert(self, tree: Tree) -> Tree:
        """A batch from any loader -> arrays of our own, floats in the parameters' dtype."""
        return trees.transform(self._convert_leaf, tree)

    def adopt(self, old: Tree, new: Tree) -> Tree:
        """Convert what a handler wrote; leaves that are still the memory of ``old`` stay the leaves of ``old``."""
        # Who changes a tree may also move its leaves: they are known by their memory wherever they are.
        before, old_spec = optree.tree_flatten(old, none_is_leaf=True)
        after, spec = optree.tree_flatten(new, none_is_leaf=True)
        old_leaves = {trees.place(leaf): leaf for leaf in before}
        paired = before if spec == old_spec else [None] * len(after)
        return spec.unflatten([self._adopt_leaf(*pair, old_leaves) for pair in zip(paired, after, strict=True)])

    def _adopt_leaf(self, old: Any, new: Any, old_leaves: dict[Any, Any]) -> Any:
        place = trees.place(new)
        if place not in old_leaves:
            return self._convert_leaf(new)
        # Two old leaves may be one array: the one in the same place of the tree comes first.
        return old if trees.place(old) == place else old_leaves[place]

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether a leaf is a box: those of objectives that are over have been opened."""
        return isbox(tree) or any(map(isbox, optree.tree_leaves(tree, none_is_leaf=True)))

    def concrete(self, tree: Tree) -> Tree:
        """Values without boxes, arrays as read-only views."""
        return trees.transform(trees.freeze, tree)

    def is_bounded(self, leaves: Sequence[Array]) -> bool:
        """Whether the sum of their squares is finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            # A dot product with itself is the sum of squares, without an array for the squares.
            vectors = [np.ravel(getval(leaf)) for leaf in leaves]
            return bool(np.isfinite(sum(np.dot(v, v) for v in vectors)))

    def to_host(self, tree: Tree) -> Tree:
        """Copy all arrays of a tree, and count them as transfers."""
        return trees.transform(self._copy_leaf, tree)

    def _copy_leaf(self, leaf: Any) -> Any:
        if not trees.is_array(leaf):
            return leaf
        self.transfers += 1
        return np.array(getval(leaf))

    def number(self, value: Any) -> Any:
        """A number for a 0-d array, anything else as it is."""
        value = getval(value)
        return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value

    def is_ready(self, array: Array) -> bool:
        """Return True: NumPy does not compute in the background."""
        return True

    def is_array(self, value: Any) -> bool:
        """Whether it is a NumPy array or scalar, or a box around one."""
        return trees.is_array(value)

    def signature(self, array: Array) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and the dtype of an array."""
        return tuple(np.shape(getval(array))), np.result_type(getval(array))

    def tree_map(self, fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
        """Map over leaves; None is a leaf."""
        return optree.tree_map(fn, tree, *rest, none_is_leaf=True)

    def tree_leaves(self, tree: Tree) -> list[Any]:
        """The leaves in canonical order; None is a leaf."""
        return optree.tree_leaves(tree, none_is_leaf=True)

    def tree_structure(self, tree: Tree) -> Any:
        """A tree without its leaves."""
        return optree.tree_structure(tree, none_is_leaf=True)


def _sealed(value: Any) -> Array:
    """Make a parameter that cannot be written in place: who holds it keeps the values it had."""
    array = np.asarray(value)
    array.flags.writeable = False
    return array


def _cast(value: Any, dtype: np.dtype[Any]) -> Array:
    if not isbox(value):
        return np.asarray(value, dtype)
    return value if value.dtype == dtype else f.astype(value, dtype)


def _settle(values: Mapping[Any, Array], gradients: Mapping[Any, Array]) -> dict[Any, Array]:
    """Return gradients in the shape and dtype of their values, zeros where there is none, each in memory of its own."""
    settled: dict[Any, Array] = {}
    settled_ids: set[int] = set()
    for key, value in values.items():
        gradient = _settle_one(key, value, gradients.get(key))
        # autograd hands out views, and one array for several values: who writes into one gradient must not change
        # another.
        if not isbox(gradient) and (gradient.base is not None or id(gradient) in settled_ids):
            gradient = gradient.copy()
        settled_ids.add(id(gradient))
        settled[key] = gradient
    return settled


def _settle_one(key: Any, value: Array, gradient: Any) -> Array:
    if gradient is None:
        return np.zeros(value.shape, value.dtype)
    gradient = _cast(gradient, value.dtype)
    # As where autograd's own rule of numpy.where meets operands that were broadcast.
    if gradient.shape != value.shape:
        raise GradientError(
            f"autograd computed a gradient of shape {gradient.shape} for {key!r} of shape {value.shape}: "
            "broadcast the operands of numpy.where by hand, or use xp.where"
        )
    return gradient


def _unreached(losses: Sequence[Any], values: Mapping[str, Array]) -> str:
    subject = "the loss depends" if len(losses) == 1 else "the losses depend"
    names = ", ".join(map(repr, [*values][:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
    return (
        f"{subject} on none of {names}: compute it from learner.model(...) or the parameters inside "
        "the objective, without stop_gradient; what is computed outside is a constant"
    )


def _title(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)
