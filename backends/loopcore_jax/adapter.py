"""The JAX adapter: the backend protocol, answered with JAX and optax.

The file is long because the protocol has many methods; most of them hand on to the modules beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Array, DrawKey, Kind, Leaves, RandomBackend, Tree
from loopcore.errors import BackendError, UnknownModelError
from loopcore_jax import arrays, losses, packed_scalars
from loopcore_jax.array_store import CurrentArrays
from loopcore_jax.gradients import Gradients
from loopcore_jax.model_kinds import is_keras
from loopcore_jax.models import Models, names_of
from loopcore_jax.namespace import Namespace
from loopcore_jax.optimizers import Optimizers
from loopcore_jax.programs import Programs, TracedRead
from loopcore_jax.random import LOOPS, Random


class Backend:
    """JAX's side of one Learner; see ``loopcore.backend.Backend`` for what each method promises.

    Models are modules of flax.nnx and equinox, ``(module, variables)`` of flax.linen, ``(transformed, params)`` of
    haiku, ``(apply_fn, params)``, these three with a state too, or a tree of arrays, which has no forward pass. Their
    arrays are copied: what the user holds is never donated.

    A module of nnx, an ``nnx.Optimizer``, and models and optimizers of Keras hold arrays themselves. They get copies of
    the present ones whenever an outermost run ends and before a handler that may look, see `show`; what the user writes
    into them counts as soon as it has ended, or as the next run begins, see `take`.

    The same methods run op by op on arrays, and within a program on what stands for them while it is traced.

    Args:
        device: a ``jax.Device``, or a platform with or without a number, such as ``"gpu:1"``. Default: JAX's own.
        compile: accepted for symmetry; the learner decides what becomes a program.

    Raises:
        BackendError: JAX does not have the device.
    """

    name = "jax"
    # Nothing is changed in place: a program may run a body from its begin again, and go on from pieces of gradients.
    compiles = replays = chains = True
    loops = LOOPS
    tracing_errors: tuple[type[Exception], ...] = (
        TracedRead,
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
    )
    leak_errors: tuple[type[Exception], ...] = (jax.errors.UnexpectedTracerError,)
    xp: Any = Namespace(np.dtype(np.float32))
    losses: Any = losses

    def __init__(self, *, device: Any = None, compile: Any = "auto") -> None:
        self.transfers = 0
        self._open = False
        self._current = CurrentArrays()
        self._arrays = arrays.Arrays()
        self._arrays.device = _device(device)
        self._models = Models(self._current, self._arrays)
        self._gradients = Gradients(self._current, self._arrays)
        self._optimizers = Optimizers(self._models, self._current)
        self._programs = Programs(self._current)
        self.xp = Namespace(self._arrays.dtype, self._arrays.device)
        self.random: RandomBackend = Random(self._arrays.dtype)

    @staticmethod
    def recognises(model: Any) -> bool:
        """Whether an object can be the model of a learner on JAX: one of the kinds above."""
        try:
            Backend().bind({"": model})
        except UnknownModelError:
            return False
        return True

    def accelerator(self) -> Any:
        """The first of JAX's devices that is no CPU, None without one."""
        return next((device for device in jax.devices() if device.platform != "cpu"), None)

    @contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        """Profile a block with jax.profiler, to the end of the programs it started."""
        with jax.profiler.trace(str(folder)):
            yield
            jax.block_until_ready(self.carried())  # type: ignore[no-untyped-call]

    # -- models and optimizers ---------------------------------------------------------------------------------

    def build(self, model: Any, batch: Callable[[], Any]) -> None:
        """Call a Keras model that is not built on a batch."""
        if is_keras(model):
            from loopcore_keras.models import build

            build(model, batch)

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the user's models; their arrays are copied.

        Raises:
            UnknownModelError: one is of no kind that JAX's users know; names the leaf that does not fit.
        """
        self._models.bind(models)
        self.compiles = not self._models.eager()
        self._optimizers.attach(())
        self.xp.dtype = self._arrays.dtype
        self.random = Random(self._arrays.dtype)

    def native(self, model: str) -> Any:
        """The user's own module with the present arrays, or what the user gave with copies of them.

        In an objective and in a program it has what stands for them there, so that it is differentiated; a module that
        holds arrays itself is copied then.
        """
        self._take_outside()
        return self._models.native(model)

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

    # Within a run the user's objects are not looked at, which would cost every call of a model the comparison of all
    # arrays. Outside each method that reads goes on from them, and each that writes leaves its values in them.

    def _take_outside(self) -> None:
        """Outside a run, go on from what the user's own objects hold."""
        if not self._open:
            self.take()

    def _show_outside(self) -> None:
        """Outside a run, leave the present values in the user's own objects."""
        if not self._open:
            self.show()

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """For each model name the full paths of its arrays."""
        return self._models.paths(kind)

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take neutral specs, transformations of optax or the one of an ``nnx.Optimizer``, with the paths they train.

        One of optax that trains a whole model sees the model's own tree, else a dict by path.

        Raises:
            OptimizerError: one of another framework.
        """
        self._optimizers.attach(optimizers)

    def frozen_by_user(self) -> frozenset[str]:
        """What is frozen by ``layer.trainable = False`` of Keras."""
        return self._models.frozen()

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """What the ``wrt`` of an ``nnx.Optimizer`` takes; None for a transformation, made for nothing in particular.

        Raises:
            OptimizerError: it takes nothing, or variables that are no parameters.
        """
        return self._optimizers.native_paths(optimizer)

    def optimizer_name(self, optimizer: int) -> str:
        """The name of an optimizer for messages and logs."""
        return self._optimizers.name(optimizer)

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """Which of ``learning_rate, momentum, weight_decay`` an optimizer has; momentum is beta1 in Adam's family."""
        return self._optimizers.hyper_names(optimizer)

    def get_hyper(self, optimizer: int, name: str) -> Any:
        """The present value of a hyperparameter; within a program the tracer that stands for it.

        Raises:
            OptimizerError: optax keeps it where nobody can read it.
        """
        self._take_outside()
        return self._optimizers.get_hyper(optimizer, name)

    def set_hyper(self, optimizer: int, name: str, value: float) -> None:
        """Set a hyperparameter for the next update, without recompiling; all values of that name, if there are several.

        Raises:
            OptimizerError: optax keeps it where nobody can set it.

        Warns:
            UserWarning: there are several, and they differ.
        """
        self._take_outside()
        self._optimizers.set_hyper(optimizer, name, value)
        self._show_outside()

    def to_device(self, device: Any) -> None:
        """Move parameters, buffers and optimizer state to a device, and make new arrays there.

        Raises:
            BackendError: JAX does not have the device.
        """
        self._take_outside()
        self._arrays.device = self.xp.device = target = _device(device)
        # None is JAX's own choice for new arrays, and nothing to move to.
        if target is not None:
            self.put_carried(jax.device_put(self.carried(), target))
        self._show_outside()

    def export_optimizers(self) -> dict[str, Any]:
        """The state of all optimizers, by name."""
        self._take_outside()
        return self._optimizers.export()

    def import_optimizers(self, state: Mapping[str, Any]) -> None:
        """Go on from what `export_optimizers` gave.

        Raises:
            ValueError: it is that of other optimizers.
        """
        self._take_outside()
        self._optimizers.load(state)
        self._show_outside()

    # -- weights -----------------------------------------------------------------------------------------------

    def get(self, paths: Iterable[str]) -> Leaves:
        """The present arrays by path; inside an objective the tracers that stand in for parameters."""
        self._take_outside()
        return {path: self._current.array(path) for path in paths}

    def set(self, leaves: Mapping[str, Any]) -> None:
        """Copy values in, in the dtype of what they replace."""
        self._take_outside()
        store = self._current.store
        for path, value in leaves.items():
            # The old array tells the dtype and whether it holds random keys.
            group = store.params if path in store.params else store.buffers
            group[path] = self._arrays.like(value, group[path])
        self._show_outside()

    def snapshot(self, paths: Iterable[str]) -> Leaves:
        """Copy arrays by path; in an objective and in a program return the tracers, which nothing can change."""
        return {path: arrays.copied(array) for path, array in self.get(paths).items()}

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Build the model's own tree of arrays by relative path."""
        return self._models.pack(model, kind, leaves)

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """Sort the leaves of a model's own tree by relative path, the inverse of `pack`.

        Raises:
            ValueError: the structure differs.
        """
        return self._models.unpack(model, kind, tree)

    # -- inside a step -----------------------------------------------------------------------------------------

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

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body; the random keys of its models follow from ``key``."""
        with self._current.body(key):
            call(*args)

    def eval_parts(self) -> tuple[str, ...]:
        """Names of the parts of modules that were in evaluation mode when others were not, and stay in it."""
        return self._models.eval_parts()

    def has_method(self, model: str, name: str) -> bool:
        """Whether `call_method` can call a method of this name of a model."""
        return self._models.has_method(model, name)

    def call_method(
        self,
        model: str,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        training: bool,
        update_state: bool,
    ) -> Any:
        """Call another method of a module of nnx, linen or equinox as `forward` calls its ``__call__``."""
        self._take_outside()
        options: dict[str, Any] = {"training": training, "update_state": update_state, "method": name}
        result = self._models.forward(model, args, kwargs, **options)
        self._show_outside()
        return result

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model with the present arrays and keep its new state."""
        # The usual case first, without a further call.
        if self._open:
            return self._models.forward(model, args, kwargs, training=training, update_state=update_state)
        self.take()
        result = self._models.forward(model, args, kwargs, training=training, update_state=update_state)
        self.show()
        return result

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its state stays."""
        self._take_outside()
        return self._models.apply(model, leaves, args, kwargs, training=training)

    def gradient(
        self,
        objective: Callable[[], Any],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Sequence[MutableMapping[str, Any]],
    ) -> list[list[Leaves]]:
        """Differentiate a closure, by ``jax.vjp``: one forward, one backward per scalar it returns."""
        if not self._open:
            self.take()
        return self._gradients.gradient(objective, wrt, at, scopes)

    def unreached(self) -> tuple[str, ...]:
        """Paths that gradients were taken by, and that no objective has reached so far."""
        return self._gradients.unreached()

    def piece(
        self,
        objective: Callable[[], Any],
        wrt: Sequence[tuple[str, ...]],
        at: Leaves | None,
        scopes: Sequence[MutableMapping[str, Any]],
        inputs: Sequence[Array],
        receive: Callable[[list[Array]], None],
    ) -> list[tuple[list[Leaves], list[Array]]]:
        """Differentiate the last piece of a closure that is cut, also by the inputs of the piece."""
        return self._gradients.piece(objective, wrt, at, scopes, inputs, receive)

    def pull(
        self, pullback: Any, cotangents: list[Array], wrt: Sequence[tuple[str, ...]]
    ) -> tuple[list[Leaves], list[Array]]:
        """Take gradients backwards through an earlier piece of a closure that is cut."""
        return self._gradients.pull(pullback, cotangents, wrt)

    def grad(self, fn: Callable[..., Any], scopes: Sequence[MutableMapping[str, Any]]) -> Callable[..., Any]:
        """Make a function that returns the gradient of a scalar function of trees of arrays."""
        return self._gradients.grad(fn, scopes)

    @property
    def takes_value(self) -> bool:
        """Whether an optimizer takes the loss, a third argument of `update`."""
        return self._optimizers.takes_value

    def update(self, grads: Leaves, apply: Any, value: Any = None) -> Any:
        """Make one step of every optimizer that trains one of these paths, or of none where an array decides so."""
        if self._open:
            return self._optimizers.update(grads, apply, value)
        self.take()
        updated = self._optimizers.update(grads, apply, value)
        self.show()
        return updated

    def stop_gradient(self, tree: Tree) -> Tree:
        """Return the same values as constants for every gradient."""
        return arrays.transform(arrays.constant, tree)

    @property
    def depth(self) -> int:
        """How many objectives and functions are being differentiated, one inside the other."""
        return self._current.context.depth

    # -- programs ----------------------------------------------------------------------------------------------

    @property
    def traces(self) -> int:
        """How often a program was traced."""
        return self._programs.traces

    def compile(
        self, fn: Callable[..., tuple[Tree, Any]], donate: tuple[int, ...] = ()
    ) -> Callable[..., tuple[Tree, Any]]:
        """``fn(*trees) -> (tree of arrays, static)`` as one program, by ``jax.jit``.

        Args:
            fn: array code; ``static`` is any object that its trace recorded.
            donate: which arguments the program may write its results over.

        Returns:
            A function of trees of arrays and Python floats, that returns the tree and the ``static`` of its trace.
        """
        return self._programs.compile(fn, donate)

    def carried(self) -> Tree:
        """All that a step may change, by reference; inside an objective as constants."""
        store = self._current.store
        # The core asks before every program: most often nothing was replaced since the last one.
        if store.is_tree():
            return store.tree
        # What model calls of an open objective left in the buffers are its tracers.
        buffers = dict(store.buffers)
        if self._current.in_objective:
            buffers = {path: arrays.primal(value) for path, value in buffers.items()}
        store.tree = {"params": dict(store.params), "buffers": buffers, "optimizers": list(store.states)}
        return store.tree

    def put_carried(self, tree: Tree) -> None:
        """Make these the present ones: arrays, or what stands for them while a program is traced."""
        store = self._current.store
        store.params, store.buffers = dict(tree["params"]), dict(tree["buffers"])
        store.states = list(tree["optimizers"])
        store.tree = tree

    def hyper_values(self) -> dict[str, Any]:
        """The present hyperparameters of all optimizers, under ``"index.name"``."""
        return self._optimizers.hyper_values()

    def put_hyper_values(self, values: Mapping[str, Any]) -> None:
        """The inverse of `hyper_values`; takes 0-d arrays while a program is traced."""
        self._optimizers.put_hyper_values(values)

    def constant(self, value: float) -> Array:
        """A 0-d array that is as weakly typed as the float."""
        return jax.device_put(jnp.asarray(value), self._arrays.device)

    def to_words(self, values: Sequence[Array]) -> Array:
        """Pack small arrays into one vector, by their bits."""
        return packed_scalars.to_words(values)

    def from_words(self, vector: Array, start: int, shape: tuple[int, ...], dtype: str) -> Array:
        """Unpack one array from the vector of `to_words`."""
        return packed_scalars.from_words(vector, start, shape, dtype)

    def is_traced(self, value: Any) -> bool:
        """Whether a value is a tracer, which stands for an array in a trace or a gradient."""
        return arrays.is_traced(value)

    def copy(self, tree: Tree) -> Tree:
        """Copy the arrays of a tree, which may be donated then."""
        return arrays.transform(arrays.copied, tree)

    # -- arrays ------------------------------------------------------------------------------------------------

    def convert(self, tree: Tree) -> Tree:
        """Convert a batch from any loader to JAX arrays; NumPy leaves are copied first, as programs start later."""
        return self._arrays.convert(tree)

    def feed(self, tree: Tree) -> Tree:
        """Prepare a batch for a program: NumPy leaves are copied, and stay NumPy arrays."""
        return self._arrays.feed(tree)

    def place(self, tree: Tree) -> Tree:
        """Make JAX arrays of the NumPy arrays that `feed` left."""
        return self._arrays.place(tree)

    def restore(self, host: np.ndarray[Any, Any], old: Any) -> Any:
        """Convert an array of a checkpoint: random keys from their data, anything else as a batch is."""
        return self._arrays.like(host, old) if arrays.is_key(old) else self._arrays.convert(host)

    def adopt(self, old: Tree, new: Tree) -> Tree:
        """Convert what a handler wrote; leaves it handed back stay those of ``old``."""
        return self._arrays.adopt(old, new)

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether a leaf depends on what an open objective is differentiated by."""
        return any(map(self._current.is_differentiated, jax.tree_util.tree_leaves(tree)))

    def concrete(self, tree: Tree) -> Tree:
        """Return the values without the gradients they are part of."""
        return arrays.transform(arrays.primal, tree)

    def is_bounded(self, leaves: Sequence[Array]) -> Any:
        """Whether the sum of their squares is finite."""
        return arrays.is_bounded(leaves)

    def to_host(self, tree: Tree) -> Tree:
        """Copy all arrays to the host."""
        return arrays.transform(self._fetch, tree)

    def _fetch(self, leaf: Any) -> Any:
        """A NumPy copy of an array; anything else as it is. Counts what had to come from JAX."""
        if isinstance(leaf, jax.Array):
            self.transfers += 1
        elif not arrays.is_array(leaf):
            return leaf
        return arrays.to_numpy(leaf)

    def number(self, value: Any) -> Any:
        """Return the value itself: to read a number from an array of JAX may have to wait for the device."""
        return value

    def is_ready(self, array: Array) -> bool:
        """Whether its value has been computed."""
        ready = getattr(array, "is_ready", None)  # a NumPy array has none
        return True if ready is None else bool(ready())

    def is_array(self, value: Any) -> bool:
        """Whether it is a JAX array, a NumPy array or a NumPy scalar."""
        return arrays.is_array(value)

    def signature(self, array: Array) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and NumPy dtype, without fetching it."""
        return arrays.signature(array)

    def tree_map(self, fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
        """Map a function over the leaves of trees of one structure; None is an empty tree, as everywhere in JAX."""
        return jax.tree_util.tree_map(fn, tree, *rest)

    def tree_names(self, tree: Tree) -> list[str]:
        """Name the leaves of a tree as in exported weights, such as ``layers.0.kernel``."""
        return names_of(tree)

    def tree_leaves(self, tree: Tree) -> list[Any]:
        """List the leaves of a tree; dict entries in the order of their keys."""
        return jax.tree_util.tree_leaves(tree)

    def tree_structure(self, tree: Tree) -> Any:
        """The structure of a tree, which is equal for trees that differ in their leaves alone."""
        return jax.tree_util.tree_structure(tree)


def _device(device: Any) -> Any:
    """The device of JAX for what the user wrote; None for JAX's own choice.

    Raises:
        BackendError: JAX has no such device.
    """
    if device is None or isinstance(device, jax.Device):
        return device
    platform, _, number = str(device).partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise BackendError(
            f'device={device!r} is none of JAX: {error}. Write for instance "cpu", "gpu:1", or one of jax.devices()'
        ) from None
