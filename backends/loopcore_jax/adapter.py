"""The JAX adapter: the backend protocol, answered with JAX and optax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Array, DrawKey, RandomBackend, Tree
from loopcore.backend.composed import ComposedBackend
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
from loopcore_jax.user_objects import UserObjects


class Backend(ComposedBackend):
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
    is_array = staticmethod(arrays.is_array)
    is_bounded = staticmethod(arrays.is_bounded)
    is_traced = staticmethod(arrays.is_traced)
    signature = staticmethod(arrays.signature)
    tree_names = staticmethod(names_of)
    to_words = staticmethod(packed_scalars.to_words)
    from_words = staticmethod(packed_scalars.from_words)

    def __init__(self, *, device: Any = None, compile: Any = "auto") -> None:
        self._current = CurrentArrays()
        self._arrays = arrays.Arrays()
        self._arrays.device = _device(device)
        self._models = Models(self._current, self._arrays)
        self._optimizers = Optimizers(self._models, self._current)
        gradients, self._programs = Gradients(self._current, self._arrays), Programs(self._current)
        super().__init__(self._models, self._optimizers, gradients, self._arrays)
        self._bind_extras(gradients)
        self._follow_user_objects(gradients)
        self.xp = Namespace(self._arrays.dtype, self._arrays.device)
        self.random: RandomBackend = Random(self._arrays.dtype)

    def _bind_extras(self, gradients: Gradients) -> None:
        """Take from the parts what this backend has besides."""
        self.frozen_by_user = self._models.frozen_by_user
        self.eval_parts = self._models.eval_parts
        self.has_method = self._models.has_method
        self.unreached = gradients.unreached
        self.piece, self.pull = gradients.piece, gradients.pull
        self.compile = self._programs.compile
        self.hyper_values, self.put_hyper_values = self._optimizers.hyper_values, self._optimizers.put_hyper_values
        self.feed, self.place = self._arrays.feed, self._arrays.place

    def _follow_user_objects(self, gradients: Gradients) -> None:
        """Outside a run, let what reads go on from the user's own objects, and what writes leave its values there."""
        users = self._user_objects = UserObjects(self._models, self._optimizers, gradients, self._current)
        self.scope, self.show, self.take = users.scope, users.show, users.take
        self.forward, self.gradient, self.update = users.forward, users.gradient, users.update
        self.native = users.read_by(self.native)
        self.get = users.read_by(self.get)
        self.snapshot = users.read_by(self.snapshot)
        self.apply = users.read_by(self.apply)
        self.get_hyper = users.read_by(self.get_hyper)
        self.export_optimizers = users.read_by(self.export_optimizers)
        self.set = users.written_by(self.set)
        self.call_method = users.written_by(self._models.call_method)
        self.set_hyper = users.written_by(self.set_hyper)
        self.import_optimizers = users.written_by(self.import_optimizers)

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

    def to_device(self, device: Any) -> None:
        """Move parameters, buffers and optimizer state to a device, and make new arrays there.

        Raises:
            BackendError: JAX does not have the device.
        """
        target = _device(device)
        self._user_objects.written_by(self._move)(target)

    def _move(self, target: Any) -> None:
        """Move what the learner has, and leave the user's own objects alone."""
        self._arrays.device = self.xp.device = target
        # None is JAX's own choice for new arrays, and nothing to move to.
        if target is not None:
            self.put_carried(jax.device_put(self.carried(), target))

    # -- inside a step -----------------------------------------------------------------------------------------

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body; the random keys of its models follow from ``key``."""
        with self._current.body(key):
            call(*args)

    @property
    def takes_value(self) -> bool:
        """Whether an optimizer takes the loss, a third argument of `update`."""
        return self._optimizers.takes_value

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

    def constant(self, value: float) -> Array:
        """A 0-d array that is as weakly typed as the float."""
        return jax.device_put(jnp.asarray(value), self._arrays.device)

    def copy(self, tree: Tree) -> Tree:
        """Copy the arrays of a tree, which may be donated then."""
        return arrays.transform(arrays.copied, tree)

    # -- arrays ------------------------------------------------------------------------------------------------

    def restore(self, host: np.ndarray[Any, Any], old: Any) -> Any:
        """Convert an array of a checkpoint: random keys from their data, anything else as a batch is."""
        return self._arrays.like(host, old) if arrays.is_key(old) else self._arrays.convert(host)

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether a leaf depends on what an open objective is differentiated by."""
        return any(map(self._current.is_differentiated, jax.tree_util.tree_leaves(tree)))

    def concrete(self, tree: Tree) -> Tree:
        """Return the values without the gradients they are part of."""
        return arrays.transform(arrays.primal, tree)

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

    def tree_map(self, fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
        """Map a function over the leaves of trees of one structure; None is an empty tree, as everywhere in JAX."""
        return jax.tree_util.tree_map(fn, tree, *rest)

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
