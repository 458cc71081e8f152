"""A bound model: what is called, and where its arrays live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from loopcore.backend import Kind, Tree
from loopcore.errors import UnknownModelError

_WRAPPER = "_orig_mod"  # what torch.compile puts in front of names


class Bound:
    """A model with paths for its arrays, and the ways to call it: what the adapter needs of every kind of model.

    Attributes:
        module: what the user gave; of another model than a module what has its mode.
        moded: has the mode of the model; ``module``, unless that itself stays in eval mode.
        call: runs the forward pass; ``module``, compiled if that was asked for.
        inner: the module without torch.compile and DDP around it, which calls with stand-ins go to.
        outer_prefix: what a name of ``inner`` has in front within ``module``.
        params: trainable tensors by path, tied ones once.
        names: path -> name within ``inner``, of params and buffers.
        keras_variables: of a model of Keras its variables, by path.
        state: tensors that calls replace, by path; those of modules are written in place.
        shares: whether it may have parameters that are another model's.
    """

    shares = False

    def __init__(self, name: str, module: Any, call: Callable[..., Any]) -> None:
        self.module: Any = module
        self.moded: Any = module
        self.call = call
        self.inner, self.outer_prefix = unwrapped(module)
        self.params: dict[str, nn.Parameter] = {}
        self.names: dict[str, str] = {}
        self.keras_variables: dict[str, Any] = {}
        self.state: dict[str, Tensor] = {}
        self._prefix = f"{name}." if name else ""
        self._owners: dict[str, tuple[nn.Module, str]] = {}

    def native(self) -> Any:
        """Return the user's object."""
        return self.module

    def call_apart(
        self, stand_ins: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], update: bool
    ) -> Any:
        """Call with other arrays by inner name, eagerly: what torch.compile made cannot be differentiated twice."""
        with torch.compiler.set_stance("force_eager"):
            # A call writes to the buffers it finds: to clones, where the model's own shall stay as they are.
            if stand_ins:
                arrays = stand_ins if update else {**self.cloned_buffers(), **stand_ins}
                return torch.func.functional_call(self.inner, arrays, args, kwargs)
            buffers = {} if update else self.cloned_buffers(self.outer_prefix)
            if buffers:
                return torch.func.functional_call(self.module, buffers, args, kwargs)
            return self.call(*args, **kwargs)

    @property
    def distributed(self) -> bool:
        """Whether gradients are averaged over processes while they are computed."""
        return "module." in self.outer_prefix

    # -- modes -------------------------------------------------------------------------------------------------

    def set_mode(self, training: bool) -> None:
        """Put the model into train or eval mode."""
        self.module.train(training)

    def eval_parts(self) -> list[str]:
        """Return the paths of the parts that stay in eval mode when the model is trained."""
        return []

    # -- arrays ------------------------------------------------------------------------------------------------

    def paths(self, kind: Kind) -> tuple[str, ...]:
        """Paths of the arrays, in the model's order."""
        return tuple(self.params if kind == "params" else self._owners)

    def frozen_by_user(self) -> list[str]:
        """Paths of the parameters that the user froze."""
        return [path for path, parameter in self.params.items() if not parameter.requires_grad]

    def sparse(self) -> list[str]:
        """Paths of the parameters whose gradients are sparse."""
        return []

    def check_trained(self) -> None:
        """Raise an OptimizerError if the model cannot be trained here; most can."""

    @cached_property
    def relative(self) -> dict[Kind, dict[str, str]]:
        """For each kind of array the names relative to the model -> their paths."""
        kinds: tuple[Kind, ...] = ("params", "buffers")
        return {kind: {path.removeprefix(self._prefix): path for path in self.paths(kind)} for kind in kinds}

    def buffer(self, path: str) -> Tensor:
        """The present buffer; looked up each time, since a forward pass may assign a new one."""
        owner, name = self._owners[path]
        buffer: Tensor = getattr(owner, name)
        return buffer

    def cloned_buffers(self, prefix: str = "") -> dict[str, Tensor]:
        """Return copies of the buffers by name, for a call that leaves the buffers alone."""
        return {prefix + self.names[path]: self.buffer(path).detach().clone() for path in self._owners}

    def set_buffer(self, path: str, value: Tensor) -> None:
        """Copy a value into a buffer."""
        self.buffer(path).copy_(value)

    def move(self, device: torch.device) -> None:
        """Move all arrays to a device, in place."""
        self.module.to(device)

    # -- trees -------------------------------------------------------------------------------------------------

    def pack(self, kind: Kind, leaves: dict[str, Any]) -> Tree:
        """Return leaves by relative name in the structure that users of the model know: the dict itself."""
        return leaves

    def unpack(self, kind: Kind, tree: Tree) -> dict[str, Any]:
        """Return the leaves of such a structure by relative name.

        Raises:
            ValueError: it is no dict with the names of all arrays.
        """
        names = self.relative[kind].keys()
        if not isinstance(tree, Mapping) or tree.keys() != names:
            keys = list(tree) if isinstance(tree, Mapping) else type(tree).__name__
            raise ValueError(f"expected a dict with the keys {list(names)}, got {keys}")
        return tree if type(tree) is dict else dict(tree)


class BoundModule(Bound):
    """A bound ``nn.Module``, compiled if that was asked for."""

    shares = True

    def __init__(self, name: str, module: nn.Module, compile: str | None) -> None:
        super().__init__(name, module, module)
        if compile is not None and not _is_compiled(module):
            self.call = torch.compile(module, backend=compile)
        for inner_name, parameter in self.inner.named_parameters():
            path = self._named(inner_name)
            if nn.parameter.is_lazy(parameter):
                raise UnknownModelError(
                    f"the parameter {path} has no shape yet, and there is no data to find it: call the lazy module "
                    "once on a batch before Learner(...)"
                )
            # A tied parameter comes once here, under the first of its names.
            if parameter.is_floating_point() or parameter.is_complex():
                self.params[path] = parameter
            else:  # an integer parameter cannot be trained
                self._own(path, inner_name)
        for inner_name, _ in self.inner.named_buffers():
            self._own(self._named(inner_name), inner_name)
        parts = list(module.modules())
        self._eval_modules = [part for part in parts if not part.training]
        if len(self._eval_modules) == len(parts):  # the phase decides on the mode of the whole model
            self._eval_modules = []
        elif self._eval_modules:
            # `Models` compares the mode with that of this part, which has to be one whose mode changes.
            self.moded = next(part for part in parts if part.training)

    def set_mode(self, training: bool) -> None:
        """Train or eval mode, but for the parts that were in eval mode when the model was bound, and others not."""
        self.module.train(training)
        for part in self._eval_modules:
            # Not by eval(), which would reach the parts within it, and some of these may be trained.
            part.training = False

    def eval_parts(self) -> list[str]:
        """Paths of the parts that stay in eval mode, of a part with all its parts the path alone."""
        in_eval, paths = set(self._eval_modules), list[str]()
        complete: list[nn.Module] = []  # with all their parts; these are not listed again
        for name, part in self.inner.named_modules():
            if part not in in_eval or any(part in outer.modules() for outer in complete):
                continue
            if in_eval.issuperset(part.modules()):
                complete.append(part)
            path = self._prefix + name if name else self._prefix.removesuffix(".") or "the model"
            paths.append(path if part in complete else f"{path} itself")
        return paths

    def sparse(self) -> list[str]:
        """Paths of the weights of embeddings with ``sparse=True``."""
        kinds = (nn.Embedding, nn.EmbeddingBag)
        weights = {id(part.weight) for part in self.inner.modules() if isinstance(part, kinds) and part.sparse}
        return [path for path, parameter in self.params.items() if id(parameter) in weights]

    def _named(self, inner_name: str) -> str:
        """Note the name of an array within ``inner``, and return its path."""
        parts = [part for part in inner_name.split(".") if part != _WRAPPER]  # submodules may be compiled too
        path = self._prefix + ".".join(parts)
        self.names[path] = inner_name
        return path

    def _own(self, path: str, inner_name: str) -> None:
        # The submodule is kept and not the tensor: a forward pass may assign another one to the attribute.
        """Note which submodule has a buffer."""
        owner, _, attribute = inner_name.rpartition(".")
        self._owners[path] = (self.inner.get_submodule(owner), attribute)


def unwrapped(module: Any) -> tuple[Any, str]:
    """Return the module inside torch.compile, DistributedDataParallel and DataParallel, and the prefix of its names."""
    prefix = ""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module, prefix = module.module, f"{prefix}module."
        elif _is_compiled(module):
            module, prefix = module.get_submodule(_WRAPPER), f"{prefix}{_WRAPPER}."
        else:
            return module, prefix


def _is_compiled(module: Any) -> bool:
    """Whether torch.compile made the module."""
    return isinstance(module, nn.Module) and any(name == _WRAPPER for name, _ in module.named_children())
