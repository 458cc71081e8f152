"""The TensorFlow adapter: the backend protocol, answered with TensorFlow and Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optree
import tensorflow as tf

from loopcore.backend import Array, DrawKey, RandomBackend, Tree
from loopcore.backend.composed import ComposedBackend
from loopcore.backend.pairs import recognises
from loopcore.errors import BackendError
from loopcore_keras.models import build, is_model
from loopcore_tensorflow import arrays, losses, packed_scalars
from loopcore_tensorflow.autodiff_context import AutodiffContext
from loopcore_tensorflow.gradients import Gradients
from loopcore_tensorflow.models import Models
from loopcore_tensorflow.namespace import Namespace
from loopcore_tensorflow.optimizers import Optimizers
from loopcore_tensorflow.pairs import is_native
from loopcore_tensorflow.programs import LeakedTensor, Programs, TracedRead
from loopcore_tensorflow.random import LOOPS, Random
from loopcore_tensorflow.step_parts import StepParts


class Backend(ComposedBackend):
    """TensorFlow's side of one Learner; see ``loopcore.backend.Backend`` for what each method promises.

    Models are Keras models and layers, ``tf.Module`` objects, ``(apply_fn, params[, state])``, or trees of arrays,
    which have no forward pass. Their variables, the user's own where he gave such, are assigned in place, in a program
    too. So a step that is cut is not run again from its begin: it runs eagerly, with each call of a Keras model or a
    module and each update a program of its own.

    Args:
        device: a device of TensorFlow, such as ``"GPU:0"``. Default: TensorFlow's own choice.
        compile: ``"xla"`` compiles programs with ``jit_compile``.

    Raises:
        BackendError: TensorFlow does not have the device.
    """

    name = "tensorflow"
    compiles = True
    loops = LOOPS
    chains = replays = False
    tracing_errors: tuple[type[Exception], ...] = (TracedRead,)
    leak_errors: tuple[type[Exception], ...] = (LeakedTensor,)
    xp: Any = Namespace(tf.float32)
    losses: Any = losses
    is_array = staticmethod(arrays.is_array)
    signature = staticmethod(arrays.signature)
    to_words = staticmethod(packed_scalars.to_words)
    from_words = staticmethod(packed_scalars.from_words)

    def __init__(self, *, device: Any = None, compile: Any = "auto") -> None:
        self._context = AutodiffContext()
        self._arrays = arrays.Arrays(self._context)
        self._arrays.device = _device(device)
        xla = compile == "xla"
        # Two caches: programs of whole steps, and of parts of steps that are cut.
        self._programs, parts = Programs(self._arrays, xla), StepParts(self._arrays, xla)
        self._models = Models(self._arrays, self._context, parts)
        self._gradients = Gradients(self._models, self._arrays, self._context)
        self._optimizers = Optimizers(self._models, self._arrays, self._context, parts)
        super().__init__(self._models, self._optimizers, self._gradients, self._arrays)
        self.frozen_by_user = self._models.frozen_by_user
        self.compile = self._programs.compile
        self.constant = self._arrays.tensor
        self._place()

    def _place(self) -> None:
        """Make what creates arrays anew, in the dtype of the parameters and on the device."""
        self.xp = Namespace(self._arrays.dtype, self._arrays.device)
        self.random: RandomBackend = Random(self._arrays.dtype)

    @staticmethod
    def recognises(model: Any) -> bool:
        """Whether an object is a Keras model or layer, a ``tf.Module``, or a pair or a tree with a tensor in it."""
        return is_model(model) or isinstance(model, tf.Module) or recognises(model, is_native)

    def accelerator(self) -> str | None:
        """The first of TensorFlow's devices that is no CPU."""
        devices = [
            device for device in tf.config.list_logical_devices() if device.device_type not in ("CPU", "TPU_SYSTEM")
        ]
        return devices[0].name if devices else None

    @contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        """Profile a block with tf.profiler; TensorBoard shows the files."""
        with tf.profiler.experimental.Profile(str(folder)):
            yield

    # -- models and optimizers ---------------------------------------------------------------------------------

    def build(self, model: Any, batch: Callable[[], Any]) -> None:
        """Call a Keras model that is not built on a batch."""
        if is_model(model):
            build(model, batch)

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the user's models, and forget those before.

        Raises:
            UnknownModelError: one is of no kind that TensorFlow's users know, or has no variables yet.
        """
        self._models.bind(models)
        self.compiles = not self._models.eager()
        self._optimizers.attach(())
        self._place()

    def to_device(self, device: Any) -> None:
        """Convert batches to arrays of a device from now on. Variables of TensorFlow stay where they were made.

        Raises:
            BackendError: TensorFlow does not have the device, or the variables are on another one.
        """
        target = _device(device)
        for path in self._models.params:
            where = self._models.variable(path).device
            if target is not None and where and not where.endswith(target):
                raise BackendError(
                    f"TensorFlow cannot move {path} from {where} to {target}: build the model within "
                    f"tf.device({target!r}), and the Learner with device={target!r}"
                )
        self._arrays.device = self.xp.device = target

    # -- inside a step -----------------------------------------------------------------------------------------

    def scope(self) -> AbstractContextManager[Any]:
        """Return an empty context: no global state is changed, since every draw has a seed of its own."""
        return nullcontext()

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body; the seeds of its models follow from ``key``."""
        with self._context.body(key, parts=False):
            call(*args)

    def run_parts(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body whose model calls and updates are compiled, each by itself."""
        with self._context.body(key, parts=True):
            call(*args)

    def stop_gradient(self, tree: Tree) -> Tree:
        """Return the same values as constants for every gradient."""
        if not self._context.tapes:
            return tree
        return _mapped(lambda leaf: tf.stop_gradient(leaf) if isinstance(leaf, tf.Tensor) else leaf, tree)

    @property
    def depth(self) -> int:
        """How many objectives and functions are being differentiated, one inside the other."""
        return len(self._context.tapes)

    # -- programs ----------------------------------------------------------------------------------------------

    @property
    def traces(self) -> int:
        """How often a program was traced."""
        return self._programs.traces

    def carried(self) -> Tree:
        """Return nothing: programs read and assign the models' own variables."""
        return ()

    def put_carried(self, tree: Tree) -> None:
        """Do nothing: programs have assigned the variables."""

    def hyper_values(self) -> dict[str, Any]:
        """Return nothing: hyperparameters are variables too, which programs read."""
        return {}

    def put_hyper_values(self, values: Mapping[str, Any]) -> None:
        """Do nothing: programs read the variables of the hyperparameters."""

    # -- arrays ------------------------------------------------------------------------------------------------

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether a leaf depends on what an open objective is differentiated by."""
        return any(map(self._gradients.is_differentiated, self.tree_leaves(tree)))

    def concrete(self, tree: Tree) -> Tree:
        """Return the values as tensors that no open tape knows."""
        if not self._context.tapes:
            return tree
        return _mapped(lambda leaf: self._context.lend(leaf) if isinstance(leaf, tf.Tensor) else leaf, tree)

    def lerp(self, a: Array, b: Array, t: Any) -> Array:
        """``a + t * (b - a)``; of large arrays by XLA, in one pass over the memory and not in three."""
        # The shape may be unknown in a program, and then counts as small.
        if not isinstance(a, tf.Tensor) or (a.shape.num_elements() or 0) < _LARGE or a.shape != b.shape:
            return a + t * (b - a)
        return _lerp(a, tf.convert_to_tensor(b), tf.convert_to_tensor(t, a.dtype))

    def is_bounded(self, leaves: Sequence[Array]) -> Any:
        """Whether the sum of their squares is finite, by a kernel that makes no array of squares."""
        # Squares of float16 overflow where the numbers themselves are harmless; the sum of squares is in float64.
        floats = [tf.cast(leaf, tf.float32) if leaf.dtype.size < 4 else tf.convert_to_tensor(leaf) for leaf in leaves]
        return self.number(tf.math.is_finite(tf.add_n([tf.cast(tf.nn.l2_loss(leaf), tf.float64) for leaf in floats])))

    def to_host(self, tree: Tree) -> Tree:
        """Copy all arrays to the host."""
        return _mapped(self._fetch, tree)

    def _fetch(self, leaf: Any) -> Any:
        """A NumPy copy of an array; anything else as it is. Counts what had to come from TensorFlow."""
        if not arrays.is_array(leaf):
            return leaf
        self.transfers += isinstance(leaf, (tf.Tensor, tf.Variable))
        return arrays.to_numpy(leaf)

    def number(self, value: Any) -> Any:
        """Read a 0-d tensor on the CPU as a Python number; return anything else as it is.

        A tensor on an accelerator stays one: to read it would wait for all that was started there.
        """
        if type(value) is not arrays.Eager or value.ndim or "CPU" not in value.device:
            return value
        return value.numpy().item()

    def is_ready(self, array: Array) -> bool:
        """Whether a value has been computed: always, since operations on a CPU return when they are done."""
        return True

    def advice(self, error: Exception) -> str | None:
        """What to write instead of an operator between arrays of two dtypes, if that is the error; else None."""
        # The messages differ: of the eager kernels, of the conversion of an operand, and of symbolic tensors.
        text = str(error)
        if not any(words in text for words in ("does not match type", "tensor but is a", "requested dtype")):
            return None
        return (
            "operators of TensorFlow take arrays of one dtype; for every backend write xp.astype(a, b.dtype), as in "
            "xp.astype(xp.argmax(y, axis=-1), ys.dtype) == ys, and xp.asarray for arrays of NumPy"
        )

    def tree_map(self, fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
        """Map a function over the leaves of trees of one structure; None stays."""
        return optree.tree_map(fn, tree, *rest)

    def tree_leaves(self, tree: Tree) -> list[Any]:
        """List the leaves of a tree; dict entries in the order of their keys."""
        return optree.tree_leaves(tree)

    def tree_structure(self, tree: Tree) -> Any:
        """The structure of a tree, which is equal for trees that differ in their leaves alone."""
        return optree.tree_structure(tree)


def _mapped(fn: Callable[[Any], Any], tree: Tree) -> Tree:
    """Map over the leaves; a tree in which nothing changes is returned as it is."""
    if isinstance(tree, tf.Tensor):
        return fn(tree)
    leaves, spec = arrays.flatten(tree)
    mapped = [fn(leaf) for leaf in leaves]
    if all(new is old for new, old in zip(mapped, leaves, strict=True)):
        return tree
    return optree.tree_unflatten(spec, mapped)


_LARGE = 2**16  # elements: below, a call of XLA's costs more than it saves
# TensorFlow alone writes two intermediate arrays; XLA fuses the three operations.
_lerp: Any = tf.function(lambda a, b, t: a + t * (b - a), autograph=False, jit_compile=True)


def _device(device: Any) -> str | None:
    """The end of TensorFlow's long device name for what the user wrote; None for TensorFlow's own choice.

    Raises:
        BackendError: TensorFlow has no such device.
    """
    if device is None:
        return None
    kind, _, number = str(device).removeprefix("/device:").upper().partition(":")
    candidates = tf.config.list_logical_devices(kind)
    name = f"{kind}:{number or 0}"
    if not any(candidate.name.endswith(name) for candidate in candidates):
        have = ", ".join(candidate.name.removeprefix("/device:") for candidate in tf.config.list_logical_devices())
        raise BackendError(f"device={device!r} is none of TensorFlow's, which are {have}")
    return name
