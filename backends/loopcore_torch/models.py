"""The models of one learner: their arrays by path, forward passes, and arrays that stand in for parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loopcore.backend import Kind, Leaves, Tree
from loopcore.errors import BackendError, GradientError, UnknownModelError
from loopcore_torch.arrays import Arrays
from loopcore_torch.binding import bind_model
from loopcore_torch.bound_module import Bound
from loopcore_torch.objectives import Inputs, Reach


class Models:
    """The bound models, and the arrays that stand in for their parameters while an objective runs.

    Attributes:
        depth: how many objectives are running, one inside the other.
        params: the trainable tensors of all models, by path.
        sparse: paths of those whose gradients are sparse.
        shared: path of a parameter that several models have -> the paths that it would have in the others.
        inputs: what `inputs_of` has made, by paths.
        hooked: whether one of them works on ``.grad`` while gradients arrive: DistributedDataParallel, or parameters
            of another type than torch's own, as FSDP makes them.
        reentrant: whether a part is checkpointed so that only a plain ``backward()`` gives it gradients.
        reach: what gradients did not reach.
        kind: of the device, as ``torch.autocast`` calls it.
        autocast: the same, while a step runs within ``torch.autocast``; else None.
        states: tensors that calls replace, by path, for each model that has such.
    """

    def __init__(self, arrays: Arrays, compile: str | None) -> None:
        self._arrays = arrays
        self._compile = compile
        self._bound: dict[str, Bound] = {}
        self._owner: dict[str, str] = {}
        self.params: dict[str, nn.Parameter] = {}
        self.shared: dict[str, list[str]] = {}
        self.sparse: frozenset[str] = frozenset()
        self.depth = 0
        self.hooked = self.reentrant = False
        self.reach = Reach()
        self.kind = "cpu"
        self.autocast: str | None = None
        self.states: list[dict[str, Tensor]] = []
        self._stand_ins: dict[str, Tensor] = {}
        self.inputs: dict[tuple[str, ...], Inputs] = {}

    def bind(self, models: Mapping[str, Any], device: torch.device | None) -> None:
        """Take the models; sets the dtype and the device of `Arrays` from their first floating parameter."""
        self._bound, self._stand_ins, self.inputs, self.depth = {}, {}, {}, 0
        self.reentrant, self.reach = False, Reach()
        # NumPy arrays of a model that is no module take the dtype of the modules, and go where these are.
        ordered = sorted(models.items(), key=lambda item: not isinstance(item[1], nn.Module))
        dtype: torch.dtype | None = None
        for name, model in ordered:
            self._bound[name] = bind_model(name, model, dtype, device, self._compile)
            dtype = next((p.dtype for p in self._bound[name].params.values() if p.is_floating_point()), None) or dtype
            if device is None:
                device = next((p.device for p in self._bound[name].params.values()), None)
        self._bound = {name: self._bound[name] for name in models}
        # Before the rest, since it takes shared parameters away from all models but the first.
        self.shared = self._shared()
        self.params = {path: p for bound in self._bound.values() for path, p in bound.params.items()}
        self._owner = {
            path: name
            for name, bound in self._bound.items()
            for path in (*bound.paths("params"), *bound.paths("buffers"))
        }
        self.sparse = frozenset(path for bound in self._bound.values() for path in bound.sparse())
        self.states = [bound.state for bound in self._bound.values() if bound.state]
        # FSDP makes parameters of a type of its own; those of a pair may be plain tensors.
        plain = all(type(parameter) in (nn.Parameter, Tensor) for parameter in self.params.values())
        self.hooked = not plain or any(bound.distributed for bound in self._bound.values())
        self._arrays.place(dtype or torch.float32, device or torch.device("cpu"))

    def _shared(self) -> dict[str, list[str]]:
        """Leave a parameter of several models to the first; returns its path there -> its paths in the others."""
        owners: dict[int, tuple[str, str]] = {}
        shared: dict[str, list[str]] = {}
        for name, bound in self._bound.items():
            for path, parameter in list(bound.params.items()):
                first, owner = owners.setdefault(id(parameter), (path, name))
                if owner == name:
                    continue
                if not bound.shares:
                    raise UnknownModelError(
                        f"the models {owner!r} and {name!r} share {first}, and {name!r} is no module: make one model "
                        "of both, such as (apply_fn, {'a': ..., 'b': ...})"
                    )
                del bound.params[path]
                # The second module keeps its own name for it, under which a stand-in for the first path is passed.
                bound.names[first] = bound.names.pop(path)
                shared.setdefault(first, []).append(path)
        return shared

    def eval_parts(self) -> tuple[str, ...]:
        """Return the paths of the parts that stay in eval mode."""
        return tuple(path for bound in self._bound.values() for path in bound.eval_parts())

    def native(self, model: str) -> Any:
        """Return the user's own object."""
        return self._bound[model].native()

    def paths(self, kind: Kind) -> dict[str, tuple[str, ...]]:
        """Return the paths of the arrays of each model."""
        return {name: bound.paths(kind) for name, bound in self._bound.items()}

    def frozen_by_user(self) -> frozenset[str]:
        """Return the paths of the parameters that the user froze."""
        return frozenset(path for bound in self._bound.values() for path in bound.frozen_by_user())

    def to_device(self, device: torch.device) -> None:
        """Move all models in place.

        Raises:
            BackendError: torch made new parameters for that device, so that optimizers would hold the old ones.
        """
        for name, bound in self._bound.items():
            # Module.to sets new parameters where tensors of the two devices cannot exchange their data.
            before = dict(bound.module.named_parameters())
            bound.move(device)
            if any(before[path] is not parameter for path, parameter in bound.module.named_parameters()):
                raise BackendError(
                    f"torch cannot move the parameters of {name or 'the model'} to {device} in place: build the "
                    f"Learner anew with device={str(device)!r}"
                )
        self._arrays.place(self._arrays.dtype, device)

    # -- weights -----------------------------------------------------------------------------------------------

    def array(self, path: str) -> Tensor:
        """Return the present array: what stands in for it in the running objective, else the model's own."""
        stand_in = self._stand_ins.get(path)
        return self._own_array(path) if stand_in is None else stand_in

    def inputs_of(self, paths: tuple[str, ...]) -> Inputs:
        """Return the models' own parameters at some paths as inputs of gradients, and keep them for the next step."""
        inputs = self.inputs[paths] = Inputs(paths, tuple(self.params[path] for path in paths))
        return inputs

    def keras_variables(self, paths: Iterable[str]) -> dict[str, Any]:
        """Return those of these paths that are variables of Keras, with the variables."""
        variables = {path: v for bound in self._bound.values() for path, v in bound.keras_variables.items()}
        return {path: variables[path] for path in paths if path in variables}

    def constraints(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return, by path, the functions that Keras models have for parameters after an update."""
        constraints = {path: getattr(v, "constraint", None) for path, v in self.keras_variables(self.params).items()}
        return {path: constraint for path, constraint in constraints.items() if constraint is not None}

    def check_trained(self, paths: Iterable[str]) -> None:
        """Refuse to train a model that cannot be trained here.

        Raises:
            OptimizerError: says what to write.
        """
        trained = set(paths)
        for bound in self._bound.values():
            if not trained.isdisjoint(bound.params):
                bound.check_trained()

    def _own_array(self, path: str) -> Tensor:
        """Return the model's own array, whatever stands in for it."""
        parameter = self.params.get(path)
        return self._bound[self._owner[path]].buffer(path) if parameter is None else parameter

    def get(self, paths: Iterable[str]) -> Leaves:
        """Return the present arrays by path; inside an objective those that stand in for parameters."""
        return {path: self.array(path) for path in paths}

    def set(self, leaves: Mapping[str, Any]) -> None:
        """Copy values into the models' own arrays."""
        torch.clear_autocast_cache()  # it keeps casted weights
        with torch.no_grad():
            for path, value in leaves.items():
                tensor = self._arrays.tensor(value)
                if path in self.params:
                    self.params[path].copy_(tensor)
                else:
                    self._bound[self._owner[path]].set_buffer(path, tensor)

    def snapshot(self, paths: Iterable[str]) -> Leaves:
        """Return copies of arrays; inside an objective they belong to its graph."""
        if self.depth:
            return {path: self.array(path).clone() for path in paths}
        return {path: self._own_array(path).detach().clone() for path in paths}

    def pack(self, model: str, kind: Kind, leaves: Leaves) -> Tree:
        """Return leaves by relative name in the structure that users of the model know."""
        return self._bound[model].pack(kind, leaves)

    def unpack(self, model: str, kind: Kind, tree: Tree) -> Leaves:
        """Return the leaves of a structure that `pack` made, by relative name."""
        return self._bound[model].unpack(kind, tree)

    def drop_gradients(self) -> None:
        """Set ``.grad`` of all parameters to None."""
        for parameter in self.params.values():
            if parameter.grad is not None:
                parameter.grad = None

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(
        self, model: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, update_state: bool
    ) -> Any:
        """Call a model in train or eval mode, with the arrays that stand in for its parameters."""
        bound = self._bound[model]
        if bound.moded.training is not training:
            bound.set_mode(training)
        if not self.depth and torch.is_grad_enabled():
            with torch.no_grad():
                return self.forward(model, args, kwargs, training=training, update_state=update_state)
        # What torch.compile and DistributedDataParallel make of a module has neither second derivatives nor other
        # parameters.
        if self.depth > 1 or self._stand_ins or not update_state:
            return bound.call_apart(self._stand_ins_of(bound), args, kwargs, update_state)
        return bound.call(*args, **kwargs)

    def apply(
        self, model: str, leaves: Leaves, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> Any:
        """Call a model with other parameters; its buffers stay as they are."""
        bound = self._bound[model]
        if bound.moded.training is not training:
            bound.set_mode(training)
        if not self.depth and torch.is_grad_enabled():
            with torch.no_grad():
                return self.apply(model, leaves, args, kwargs, training=training)
        replacements = {
            bound.names[path]: self._arrays.tensor(leaf) for path, leaf in leaves.items() if path in bound.names
        }
        return bound.call_apart(self._stand_ins_of(bound) | replacements, args, kwargs, False)

    def _stand_ins_of(self, bound: Bound) -> dict[str, Tensor]:
        """Return the arrays that stand in for parameters of a model, by their names in its inner module."""
        stand_ins = self._stand_ins
        replacements = (
            {bound.names[path]: stand_ins[path] for path in bound.names if path in stand_ins} if stand_ins else {}
        )
        if replacements and bound.distributed:
            raise GradientError(
                "gradients at other values, and gradients inside an objective, are not averaged over processes: pass "
                "the module itself instead of DistributedDataParallel(module)"
            )
        return replacements

    # -- objectives --------------------------------------------------------------------------------------------

    def enter(self, stand_ins: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """Begin an objective in which these arrays stand in for parameters. Returns what `leave` takes."""
        # Handed to `leave`, so that objectives nest without a stack of their own.
        outer = (self.depth, self._stand_ins)
        self.depth += 1
        if stand_ins:
            unknown = sorted(stand_ins.keys() - self.params.keys())
            if unknown:
                # The caller gets the error, and not what `leave` takes.
                self.leave(outer)
                raise GradientError(f"at= has values for {', '.join(unknown)}, which are no parameters of the models")
            self._stand_ins = {**self._stand_ins, **stand_ins}
        return outer

    def leave(self, outer: tuple[int, dict[str, Tensor]]) -> None:
        """End an objective: what it had replaced stands in again."""
        self.depth, self._stand_ins = outer
