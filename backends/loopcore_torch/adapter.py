"""The PyTorch adapter: the backend protocol, answered with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loopcore.backend import Array, DrawKey, RandomBackend, Tree
from loopcore.backend.composed import ComposedBackend
from loopcore.backend.pairs import recognises
from loopcore.errors import BackendError, GradientError
from loopcore_torch import arrays, binding, losses
from loopcore_torch.containers import flatten, tree_map
from loopcore_torch.gradients import Gradients
from loopcore_torch.models import Models
from loopcore_torch.namespace import Namespace
from loopcore_torch.optimizers import Optimizers
from loopcore_torch.random import MASK, STRIDE, GlobalGenerators, Random, stream_seed

_NOTHING = nullcontext()


class Backend(ComposedBackend):
    """PyTorch's side of one Learner; see ``loopcore.backend.Backend`` for what each method promises.

    Models are an ``nn.Module``, also one wrapped by torch.compile or DistributedDataParallel (names are those of the
    inner module), ``(apply_fn, params[, state])``, or a tree of arrays, which has no forward pass. Steps run eagerly;
    ``compile`` is about forward passes: they are what can be compiled whatever a step does around them. (A compiled
    objective would record the Python state of the loop as a constant, and be compiled anew each step until torch gives
    up.) Forward passes inside a nested gradient, with other parameters (``at=``, ``apply``) or with
    ``update_state=False`` run eagerly.

    Gradients are values and not attributes: what is in ``.grad`` of a bound parameter is never added to. It is dropped
    when an outermost run begins (a fit, else an epoch, else a step), and by an update for the parameters of the
    optimizers that step.

    The mode is the phase's. Of a model whose parts differ in mode when it is bound, those in eval mode stay in it, as a
    pretrained BatchNorm may have to; one that is in eval mode as a whole is trained as any other.

    Within ``torch.autocast`` each objective runs with it, as each step of a loop by hand would, and gradients and
    updates without it. Each step seeds torch's global generators and puts them back.

    A parameter that several models share belongs to the first of them, and is updated once.

    Args:
        device: a torch.device or its name, or ``"gpu"`` for the accelerator; models move there. Default: where the
            first parameter is.
        compile: True compiles each module by ``torch.compile(module, backend="inductor")``; another string names the
            torch.compile backend; ``"auto"`` and False do not compile. The first call takes about 20 seconds and, on
            a CPU, a C++ compiler. Dropout then draws other numbers than eager dropout.

    Raises:
        BackendError: torch does not know the device.
    """

    name = "torch"
    compiles = False
    xp: Any = Namespace(torch.float32, torch.device("cpu"))
    losses: Any = losses
    stop_gradient = concrete = staticmethod(arrays.detached)  # shares memory with the originals
    is_bounded = staticmethod(arrays.is_bounded)
    is_array = staticmethod(arrays.is_array)
    signature = staticmethod(arrays.signature)

    def __init__(self, *, device: Any = None, compile: Any = "auto") -> None:
        self._device = None if device is None else _device(device)
        backends = {"auto": None, False: None, True: "inductor"}
        self._arrays = arrays.Arrays()
        if self._device is not None:
            self._arrays.place(torch.float32, self._device)
        self._models = Models(self._arrays, backends.get(compile, compile))
        # All of these hold the same `Models` and `Arrays`, which `bind` and `to_device` change in place.
        self._optimizers = Optimizers(self._models)
        super().__init__(self._models, self._optimizers, Gradients(self._models, self._arrays), self._arrays)
        self.frozen_by_user = self._models.frozen_by_user
        self.eval_parts = self._models.eval_parts
        self.xp = Namespace(self._arrays.dtype, self._arrays.device)
        self._place()

    @staticmethod
    def recognises(model: Any) -> bool:
        """Whether it is an ``nn.Module``, or a pair or a tree with a tensor in it."""
        return isinstance(model, nn.Module) or recognises(model, lambda leaf: isinstance(leaf, Tensor))

    @staticmethod
    def compilers() -> list[str]:
        """List the backends of torch.compile, which takes two seconds that the first compilation then saves."""
        return [name for name in torch.compiler.list_backends(exclude_tags=()) if "TESTING" not in name]

    def _place(self) -> None:
        """Follow the dtype and the device of the arrays; ``xp`` stays the same object, since others hold it."""
        dtype, device = self._arrays.dtype, self._arrays.device
        self.xp.dtype, self.xp.device = dtype, device
        self.random: RandomBackend = Random(dtype, device)
        generators = GlobalGenerators(device)
        # Every step calls these three.
        self._state, self._seed, self._put_back = generators.state, generators.seed, generators.put_back
        self._models.kind = device.type

    def accelerator(self) -> torch.device | None:
        """The device of ``torch.accelerator``, if there is one."""
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None

    @contextmanager
    def profile(self, folder: Path) -> Iterator[None]:
        """Profile a block with torch.profiler; the file is a trace for TensorBoard, Perfetto or Chrome."""
        with torch.profiler.profile(on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder))):
            yield

    # -- models and optimizers ---------------------------------------------------------------------------------

    def build(self, model: Any, batch: Callable[[], Any]) -> None:
        """Call a Keras model that is not built, or a module with lazy parameters, on a batch."""
        if isinstance(model, nn.Module):
            binding.build(model, batch)

    def bind(self, models: Mapping[str, Any]) -> None:
        """Take the user's models, and forget those before.

        Raises:
            UnknownModelError: one is neither an ``nn.Module`` nor a tree of floating arrays.
        """
        self._models.bind(models, self._device)
        self._optimizers.attach(())
        self._place()

    def wake(self, paths: Iterable[str]) -> None:
        """Set ``requires_grad`` of the parameters at these paths."""
        for path in paths:
            self._models.params[path].requires_grad_(True)

    def unreached(self) -> tuple[str, ...]:
        """Parameters that no gradient has reached so far, of those that were to be reached."""
        return tuple(self._models.reach.never)

    def to_device(self, device: Any) -> None:
        """Move models and optimizer state in place.

        Raises:
            BackendError: torch does not know the device, or cannot move parameters there in place.
        """
        self._device = _device(device)
        self._models.to_device(self._device)
        self._optimizers.to_device(self._device)
        self._place()

    # -- inside a step -----------------------------------------------------------------------------------------

    def scope(self) -> AbstractContextManager[None]:
        """Drop every ``.grad``. There is nothing to undo at the end: each step puts back what it changes globally."""
        self._models.drop_gradients()
        return _NOTHING

    def run_body(self, call: Callable[..., None], key: DrawKey, *args: Any) -> None:
        """Run a step body without gradients; torch's global generators are seeded by the key, and put back after it."""
        # Dropout and the like draw from torch's global generators. They are seeded by the key alone, so that a step
        # draws the same numbers whatever was drawn before it, and what the user draws outside is not disturbed.
        state = self._state()
        self._seed((stream_seed(key[0], key[1]) + key[2] * STRIDE) & MASK)
        models = self._models
        # Asked once a step: objectives then run within autocast, but their gradients and the updates do not.
        models.autocast = models.kind if torch.is_autocast_enabled(models.kind) else None
        grad_enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # as a function: a third of the cost of a context manager
        try:
            call(*args)
        except RuntimeError as error:
            # Somebody called loss.backward(), and torch's message does not say what to write instead.
            if "does not require grad" not in str(error):
                raise
            raise GradientError(
                "a step body runs without gradients, so that there is no graph for backward(): write "
                "learner.minimize(objective), where objective() computes state.loss and returns it, or take the "
                "gradients yourself by learner.gradient(objective)"
            ) from error
        finally:
            torch.set_grad_enabled(grad_enabled)
            self._put_back(state)

    # -- arrays ------------------------------------------------------------------------------------------------

    def is_differentiated(self, tree: Tree) -> bool:
        """Whether an objective is open and a leaf belongs to its graph."""
        return self._models.depth > 0 and arrays.detached(tree) is not tree

    def lerp(self, a: Array, b: Array, t: Any) -> Array:
        """``a + t * (b - a)``; of floating tensors of one kind in one pass over the memory and not in three."""
        # torch.lerp neither promotes dtypes nor takes integers.
        alike = isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return torch.lerp(a, b, t) if alike and a.is_floating_point() else a + t * (b - a)

    def to_host(self, tree: Tree) -> Tree:
        """NumPy copies of all tensors and arrays; 0-d tensors that are fetched together count as one transfer."""
        host_tree, copies = arrays.to_host(tree)
        self.transfers += copies
        return host_tree

    def number(self, value: Any) -> Any:
        """A number for a 0-d tensor on the CPU, anything else as it is."""
        return value.item() if type(value) is Tensor and value.ndim == 0 and value.is_cpu else value

    def is_ready(self, array: Any) -> bool:
        """True: on a CPU nothing is pending, and torch does not tell for one tensor of an accelerator."""
        return True

    def tree_map(self, fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
        """Map over the leaves of trees of one structure; None is a leaf, and a sparse gradient is dense for ``fn``."""
        if self._models.sparse:
            # `fn` is anybody's, and few functions of torch take sparse tensors.
            return tree_map(fn, *map(arrays.dense, (tree, *rest)))
        return tree_map(fn, tree, *rest)

    def tree_leaves(self, tree: Tree) -> list[Any]:
        """The leaves; dict entries in the order of their keys, and sparse gradients dense."""
        return flatten(arrays.dense(tree) if self._models.sparse else tree)[0]

    def tree_structure(self, tree: Tree) -> Any:
        """Return the structure of a tree, without its leaves."""
        return flatten(tree)[1]


def _device(device: Any) -> torch.device:
    """Return a device as torch names it, such as ``cuda:0`` for ``"cuda"``."""
    if device == "gpu":
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            raise BackendError('device="gpu": torch has no accelerator here. Leave device out, or write "cpu"')
    try:
        return torch.empty(0, device=torch.device(device)).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, TypeError, AssertionError) as error:
        raise BackendError(
            f'device={device!r} is none of torch: {error}. Write for instance "cpu" or "cuda:0"'
        ) from None
