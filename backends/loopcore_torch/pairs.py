"""Models that belong to no framework on torch: their arrays as parameters, their state as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopcore.backend import Kind, Tree
from loopcore.backend.pairs import read
from loopcore.errors import BackendError
from loopcore_torch.bound_module import Bound
from loopcore_torch.random import generator_of


class Holder:
    """Stands in for an ``nn.Module`` where a model is none: it has a mode, and tensors that move.

    Args:
        tensors: parameters by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.training = False
        self._tensors = tensors

    def train(self, mode: bool = True) -> None:
        """Set the mode that the next call gets."""
        self.training = mode

    def to(self, device: torch.device) -> None:
        """Move the tensors in place, as modules do."""
        for tensor in self._tensors.values():
            tensor.data = tensor.data.to(device)

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Return the parameters with their names."""
        return self._tensors.items()


class BoundPair(Bound):
    """A bound ``(apply_fn, params[, state])``, or a tree of arrays.

    Leaf tensors that require a gradient, such as an ``nn.Parameter``, stay the user's own, so that an optimizer which
    holds them trains them. Other arrays are copied. The state is replaced at each call and never written in place: a
    graph may still need what it was.

    Args:
        name: prefix of its paths; ``""`` for none.
        model: what the user gave.
        dtype: what NumPy arrays among the parameters become; None keeps theirs.
        device: where arrays go; None leaves tensors where they are.
        compile: name of a torch.compile backend, or None.

    Raises:
        UnknownModelError: it is no such model.
        BackendError: it shall be compiled.
    """

    def __init__(
        self, name: str, model: Any, dtype: torch.dtype | None, device: torch.device | None, compile: str | None
    ) -> None:
        self._pair, params, state = read(name, model, lambda leaf: isinstance(leaf, Tensor), "torch")
        parameters: dict[str, Any] = {path: _parameter(leaf, dtype, device) for path, leaf in params.items()}
        super().__init__(name, Holder(parameters), self._call)
        self.params = parameters
        # The user's own tensors; the others are copies.
        self._users = frozenset(path for path, leaf in params.items() if parameters[path] is leaf)
        # Building the tree of a call takes the parameters in the order of its leaves.
        self._spec, self._in_order = self._pair.part("params").spec, tuple(parameters.values())
        self.names = {path: path for path in (*params, *state)}
        if device is None:
            device = next((parameter.device for parameter in parameters.values()), None)
        self.state = {path: _tensor(leaf, device) for path, leaf in state.items()}
        # The function gets torch's global generator, which every step seeds.
        self._rng = generator_of(device or torch.device("cpu")) if self._pair.takes_rng else None
        if compile is not None and self._pair.apply_fn is not None:  # what finds the backend of lc.xp breaks its graph
            raise BackendError(
                f"compile={compile!r} compiles the forward pass of modules, and {self._pair.title} is a function: "
                'leave it at "auto", or pass (torch.compile(apply_fn), params) of a function that calls torch itself'
            )

    def native(self) -> Any:
        """Return the pair or the tree with the present values; the user's own parameters where he gave such."""
        return self._pair.native(self._native_array)

    def _native_array(self, path: str) -> Tensor:
        """Return the user's own parameter, or a copy of the present value."""
        parameter = self.params.get(path)
        if parameter is None:
            return self.state[path].detach().clone()
        return parameter if path in self._users else parameter.detach().clone()

    # -- calling -----------------------------------------------------------------------------------------------

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the present arrays, and store the state that it returns."""
        params = self._spec.unflatten(self._in_order)  # a tree of its own: the function may change it
        result, state = self._pair.call(params, self._lent(), args, kwargs, self.module.training, self._rng)
        if state:
            self._keep(state)
        return result

    def _lent(self) -> dict[str, Tensor]:
        """Return the state as copies: a function may write into them."""
        return {path: tensor.clone() for path, tensor in self.state.items()} if self.state else self.state

    def call_apart(
        self, stand_ins: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], update: bool
    ) -> Any:
        """Call with other arrays in place of parameters, eagerly."""
        params = self._spec.unflatten([stand_ins.get(path, tensor) for path, tensor in self.params.items()])
        with torch.compiler.set_stance("force_eager"):  # of a function that the user compiled
            result, state = self._pair.call(params, self._lent(), args, kwargs, self.module.training, self._rng)
        if update and state:
            self._keep(state)
        return result

    def _keep(self, state: Mapping[str, Any]) -> None:
        """Store copies of a state that a call returned, in the dtypes of the old one; an open graph goes on to them."""
        for path, value in state.items():
            old = self.state[path]
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, device=old.device)
            # A copy, since the function may go on writing into what it returned.
            self.state[path] = tensor.to(old, copy=True)

    # -- arrays ------------------------------------------------------------------------------------------------

    def paths(self, kind: Kind) -> tuple[str, ...]:
        """Paths of the arrays, in the order of the tree."""
        return self._pair.part(kind).paths

    def buffer(self, path: str) -> Tensor:
        """Return the present array of the state."""
        return self.state[path]

    def set_buffer(self, path: str, value: Tensor) -> None:
        """Replace an array of the state."""
        self.state[path] = value.detach().to(self.state[path], copy=True)

    def move(self, device: torch.device) -> None:
        """Move all arrays."""
        self.module.to(device)
        self.state = {path: tensor.to(device) for path, tensor in self.state.items()}
        self._rng = generator_of(device) if self._pair.takes_rng else None

    def pack(self, kind: Kind, leaves: dict[str, Any]) -> Tree:
        """Return leaves by relative name in the user's own structure."""
        return self._pair.part(kind).pack(leaves)

    def unpack(self, kind: Kind, tree: Tree) -> dict[str, Any]:
        """Return the leaves of such a structure by relative name.

        Raises:
            ValueError: the structure differs.
        """
        return self._pair.part(kind).unpack(tree)


def _is_own(leaf: Any) -> bool:
    """Whether a leaf is a tensor to train as it is, such as an ``nn.Parameter``, and not to copy."""
    return isinstance(leaf, nn.Parameter) or (isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf)


def _parameter(leaf: Any, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """Return a leaf as a parameter: the user's own tensor if it is one to train, else a copy."""
    if _is_own(leaf):
        if device is not None:
            leaf.data = leaf.data.to(device)
        return leaf  # type: ignore[no-any-return]
    if isinstance(leaf, Tensor):
        return nn.Parameter(leaf.detach().to(device, copy=True))
    return nn.Parameter(torch.tensor(np.asarray(leaf), dtype=dtype, device=device))


def _tensor(leaf: Any, device: torch.device | None) -> Tensor:
    """Return a leaf of the state as a tensor: a copy."""
    if isinstance(leaf, Tensor):
        return leaf.detach().to(device, copy=True)
    return torch.tensor(np.asarray(leaf), device=device)
