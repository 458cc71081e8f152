"""Optimizers: neutral specs become torch's own, native ones are taken as they are."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loopcore.backend import Leaves
from loopcore.errors import OptimizerError
from loopcore.handles.parameters import differences
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from loopcore_torch.arrays import to_numpy
from loopcore_torch.models import Models

# torch does not tell which of its optimizers take sparse gradients. One of another library is not
# refused: it may take them.
_SPARSE = (torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad)
_DENSE = {kind for kind in vars(torch.optim).values() if isinstance(kind, type)} - {*_SPARSE, Optimizer}


class Attached(NamedTuple):
    """An attached optimizer: its name, the optimizer, its hyperparameters' names and all tensors it holds."""

    name: str
    optimizer: Optimizer
    hyper: tuple[str, ...]
    tensors: tuple[Tensor, ...]


class Plan(NamedTuple):
    """What an update with certain paths does, found once for them.

    Parameters that get a gradient, those that get none, who steps, whether one does with a fused kernel, and whether a
    gradient may be sparse. ``constrained`` are parameters that their model keeps within bounds after an update, and
    how; an optimizer of Keras does that itself.
    """

    params: tuple[nn.Parameter, ...]
    idle: tuple[Tensor, ...]
    optimizers: tuple[Optimizer, ...]
    fused: bool
    sparse: bool
    constrained: tuple[tuple[nn.Parameter, Callable[[Tensor], Tensor]], ...]


class Restore(NamedTuple):
    """How `Optimizers.load` restores a parameter's state, or an optimizer of Keras.

    ``names`` of the state that it uses, ``problems`` of what does not fit, and what writes the values.
    """

    names: Set[str]
    problems: list[str]
    write: Callable[[], None]


class Optimizers:
    """The attached optimizers of one learner."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._attached: list[Attached] = []
        self._sources: list[Any] = []
        self._of_path: dict[str, int] = {}
        self._plans: dict[tuple[str, ...], Plan] = {}

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take optimizers with the paths they train.

        Raises:
            OptimizerError: one of another framework, or one whose parameters are not those of its paths.
        """
        for _, paths in optimizers:
            self._models.check_trained(paths)
        # All are built before any takes its place: after an error those from before are still attached.
        attached = [self._attach(source, paths) for source, paths in optimizers]
        self._attached = attached
        self._sources = [source for source, _ in optimizers]
        self._of_path = {path: index for index, (_, paths) in enumerate(optimizers) for path in paths}
        self._plans = {}
        self._check_shared()

    def _check_shared(self) -> None:
        """Refuse optimizers that would train twice, or not at all, what several models share."""
        for path, aliases in self._models.shared.items():
            parameter = self._models.params[path]
            holders = [
                attached.name for attached in self._attached if any(tensor is parameter for tensor in attached.tensors)
            ]
            if len(holders) > 1:
                raise OptimizerError(
                    f"{' and '.join(holders)} both hold {path}, which is {', '.join(aliases)} too and would be updated "
                    "twice: give the models one optimizer, or leave it out of the parameters of one"
                )
            if holders or not parameter.requires_grad:
                continue
            models = {other.partition(".")[0] for other in aliases}
            training = sorted(models & {trained.partition(".")[0] for trained in self._of_path})
            if training:
                raise OptimizerError(
                    f"{training[0]!r} is trained and shares {path} with {path.partition('.')[0]!r}, which has no "
                    f"optimizer for it: add one, optimizer={{..., {path!r}: lc.Adam(1e-3)}}, or freeze it by "
                    "requires_grad_(False)"
                )

    def _attach(self, source: Any, paths: tuple[str, ...]) -> Attached:
        """Build or check one optimizer for its paths."""
        params = [self._models.params[path] for path in paths]
        if _is_recipe(source):
            source = source(params)
        if isinstance(source, OptimizerSpec):
            optimizer = _build(source, params)
            names = _spec_hyper(source)
        elif isinstance(source, Optimizer):
            optimizer = source
            self._check(optimizer, paths)
            names = _native_hyper(optimizer)
        elif any(cls.__module__.split(".")[0] == "keras" for cls in type(source).__mro__):
            return self._attach_keras(source, paths, params)
        else:
            kind = type(source)
            raise OptimizerError(
                f"the optimizer is a {kind.__module__}.{kind.__qualname__}, but the model is a torch one: pass "
                "loopcore.Adam(1e-3), or torch.optim.Adam(model.parameters(), 1e-3)"
            )
        return Attached(type(source).__name__, optimizer, names, _tensors_of(optimizer))

    def _attach_keras(self, source: Any, paths: tuple[str, ...], params: list[nn.Parameter]) -> Attached:
        """Attach an optimizer of Keras, which trains variables of Keras only."""
        from loopcore_torch.from_keras import KerasSteps

        variables = self._models.keras_variables(paths)
        missing = [path for path in paths if path not in variables]
        if missing:
            raise OptimizerError(
                f"the optimizer is one of Keras, which trains models of Keras, and {_some(missing)} is a parameter of "
                "an nn.Module: pass loopcore.Adam(1e-3), or torch.optim.Adam(model.parameters(), 1e-3)"
            )
        steps: Any = KerasSteps(source, variables)
        names = tuple(name for name in ("learning_rate", "momentum", "weight_decay") if name in steps.keras.names)
        # It steps like one of torch, so that an update need not tell them apart.
        return Attached(steps.keras.name, steps, names, tuple(params))

    def _check(self, optimizer: Optimizer, paths: tuple[str, ...]) -> None:
        """Refuse an optimizer of torch that needs a closure, or holds other parameters than those of its paths."""
        name = type(optimizer).__name__
        # LBFGS asks for one, to compute the loss at other parameters.
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise OptimizerError(
                f"{name} evaluates the loss several times a step and needs a closure, which a step cannot give: use "
                "an optimizer that steps on gradients, such as torch.optim.Adam"
            )
        sparse = [path for path in paths if path in self._models.sparse]
        if sparse and type(optimizer) in _DENSE:
            raise OptimizerError(
                f"{name} takes no sparse gradients, which the embedding of {_some(sparse)} has: set sparse=False, or "
                "train it by torch.optim.SparseAdam([...], 1e-3) under its own path, "
                f"optimizer={{{sparse[0]!r}: ..., '': ...}}"
            )
        tensor_ids = {id(tensor) for tensor in _tensors_of(optimizer)}
        missing = [path for path in paths if id(self._models.params[path]) not in tensor_ids]
        if missing:
            raise OptimizerError(
                f"{name} does not hold {_some(missing)}: build it from model.parameters() of the model that the "
                "Learner gets, after moving it to its device; for (apply_fn, params) let the Learner build it, "
                f"functools.partial(torch.optim.{name}, lr=1e-3)"
            )
        parameter_ids = {id(parameter) for parameter in self._models.params.values()}
        foreign = [str(list(tensor.shape)) for tensor in _tensors_of(optimizer) if id(tensor) not in parameter_ids]
        if foreign:
            raise OptimizerError(
                f"{name} holds tensors that are no parameters of the models, of shapes {_some(foreign)}: build it from "
                "model.parameters(), or pass the other model to the Learner too; for (apply_fn, params) let the "
                f"Learner build it, functools.partial(torch.optim.{name}, lr=1e-3)"
            )

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """Paths that a torch optimizer holds, in the models' order; None for a neutral spec."""
        if not isinstance(optimizer, Optimizer):
            return None
        tensor_ids = {id(tensor) for tensor in _tensors_of(optimizer)}
        return tuple(path for path, parameter in self._models.params.items() if id(parameter) in tensor_ids)

    # -- hyperparameters ---------------------------------------------------------------------------------------

    def optimizer_name(self, optimizer: int) -> str:
        """Return the name of an optimizer's class."""
        return self._attached[optimizer].name

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """Return the names of an optimizer's hyperparameters."""
        return self._attached[optimizer].hyper

    def get_hyper(self, optimizer: int, name: str) -> float:
        """Return the value of a hyperparameter in the first parameter group."""
        keras = getattr(self._attached[optimizer].optimizer, "keras", None)
        if keras is not None:
            return float(keras.get(name))
        return _get_in(self._attached[optimizer].optimizer.param_groups[0], name)

    def set_hyper(self, optimizer: int, name: str, value: float) -> None:
        """Set the value of a hyperparameter in all parameter groups.

        Raises:
            OptimizerError: Keras keeps it where it cannot be set.
        """
        keras = getattr(self._attached[optimizer].optimizer, "keras", None)
        if keras is not None:
            if name in keras.fixed:
                raise OptimizerError(keras.fixed[name])
            keras.set(name, value)
        groups = self._attached[optimizer].optimizer.param_groups
        # One value for all is what was asked, but it may not be what was meant.
        different = list(dict.fromkeys(_get_in(group, name) for group in groups))
        if len(different) > 1:
            warnings.warn(
                f"the groups of the optimizer had a {name} of {', '.join(map(str, different))}, and all have {value} "
                "now: to set each use one optimizer for each part of the model, optimizer={'body': lc.Adam(1e-4), "
                "'head': lc.Adam(1e-3)}, or lc.TorchScheduler",
                stacklevel=2,
            )
        for group in groups:
            _set_in(group, name, value)

    # -- updates -----------------------------------------------------------------------------------------------

    def update(self, grads: Leaves, apply: Any) -> bool:
        """Step with these gradients and no others; ``.grad`` is None afterwards. Returns whether it happened."""
        if apply is not True and not bool(apply):
            return False
        # Within autocast the operations of an update would be rounded to half precision.
        if self._models.autocast is not None:
            return self._without_autocast(self._models.autocast, grads)
        params, idle, optimizers, fused, sparse, constrained = self._plans.get(tuple(grads)) or self._plan(tuple(grads))
        if self._models.reach.since:
            grads = self._of_reached(grads)
        if sparse:
            grads = {path: self._fitting(path, grad) for path, grad in grads.items()}
        try:
            # An optimizer steps on whatever is in .grad. The user may have left something there.
            for tensor in idle:
                tensor.grad = None
            for parameter, grad in zip(params, grads.values(), strict=True):
                parameter.grad = _laid_out(grad, parameter) if fused and grad is not None else grad
            for optimizer in optimizers:
                optimizer.step()
            if constrained:
                _constrain(constrained)
        finally:
            for parameter in params:
                parameter.grad = None
        return True

    def _without_autocast(self, kind: str, grads: Leaves) -> bool:
        """Update within ``torch.autocast`` as outside of it."""
        self._models.autocast = None
        try:
            with torch.autocast(kind, enabled=False):
                return self.update(grads, True)
        finally:
            self._models.autocast = kind
            torch.clear_autocast_cache()

    def _of_reached(self, grads: Leaves) -> Leaves:
        """Return the gradients with None for those that nothing has reached since the last update.

        torch's own optimizers leave these alone. So does a spec with what the user froze in the meantime.
        """
        since, grads_or_none = self._models.reach.since, dict(grads)
        for path, grad in grads.items():
            # Zeros that stand for a gradient are the same object still, unless a callback made something of them; then
            # their elements are looked at. With momentum or weight decay a step on zeros is not the same as none.
            zeros = since.pop(path, None)
            if zeros is not None and (grad is zeros or not (grad.is_sparse or grad.any())):
                is_native = not isinstance(self._sources[self._of_path[path]], OptimizerSpec)
                if is_native or not self._models.params[path].requires_grad:
                    grads_or_none[path] = None
        return grads_or_none

    def _fitting(self, path: str, grad: Any) -> Any:
        """Return a gradient as its optimizer takes it: sparse for SparseAdam, dense for a spec, else as it is."""
        if grad is None or path not in self._models.sparse:
            return grad
        attached = self._attached[self._of_path[path]]
        if isinstance(attached.optimizer, torch.optim.SparseAdam):
            return grad if grad.is_sparse else grad.to_sparse(1)  # a callback made it dense: rows of zeros are left out
        is_native = isinstance(self._sources[self._of_path[path]], Optimizer)
        return grad.to_dense() if grad.is_sparse and not is_native else grad

    def _plan(self, paths: tuple[str, ...]) -> Plan:
        """Work out, and keep, what an update with these paths does."""
        frozen = [path for path in paths if path not in self._of_path]
        if frozen:
            raise OptimizerError(f"no optimizer trains {_some(frozen)}: leave these out of the gradients")
        params = tuple(self._models.params[path] for path in paths)
        # What depends on the paths alone is worked out once, and kept until others are attached.
        stepping = [self._attached[index] for index in sorted({self._of_path[path] for path in paths})]
        trained_ids = {id(parameter) for parameter in params}
        idle = tuple(tensor for attached in stepping for tensor in attached.tensors if id(tensor) not in trained_ids)
        optimizers = tuple(attached.optimizer for attached in stepping)
        fused = any(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups)
        # An optimizer of Keras applies constraints itself, one of torch knows of none.
        constraints = self._models.constraints()
        by_torch = [path for path in paths if isinstance(self._attached[self._of_path[path]].optimizer, Optimizer)]
        constrained = tuple((self._models.params[p], constraints[p]) for p in by_torch if p in constraints)
        sparse = not self._models.sparse.isdisjoint(paths)
        plan = self._plans[paths] = Plan(params, idle, optimizers, fused, sparse, constrained)
        return plan

    # -- state -------------------------------------------------------------------------------------------------

    def export_optimizers(self) -> dict[str, Any]:
        """What each optimizer keeps for its parameters, by number, path and torch's own name; none before a step.

        Of several parameter groups also their hyperparameters, which `get_hyper` gives for the first alone.
        """
        state: dict[str, Any] = {name: np.array(value) for name, (_, _, value) in self._group_values().items()}
        for number, attached in enumerate(self._attached):
            # An optimizer of Keras lists the variables that it keeps.
            if not isinstance(attached.optimizer, Optimizer):
                state |= {
                    f"{number}.{n}": to_numpy(v.value) for n, v in cast(Any, attached.optimizer).keras.state().items()
                }
                continue
            for path, parameter in self._models.params.items():
                slots = attached.optimizer.state.get(parameter, {})
                state |= {
                    f"{number}.{path}.{key}": as_numpy(value) for key, value in slots.items() if value is not None
                }
        return state

    def import_optimizers(self, state: Mapping[str, Any]) -> None:
        """Restore what `export_optimizers` gave.

        Raises:
            ValueError: it has parameters that no optimizer trains, or other shapes.
        """
        groups = self._group_values()
        restores = list(self._restores(state))
        problems = [f"{name}: not there" for name in groups if name not in state]
        problems += chain.from_iterable(restore.problems for restore in restores)
        names = set(groups).union(*(restore.names for restore in restores))
        problems += [f"{name}: no optimizer keeps it" for name in state if name not in names]
        if problems:  # before anything is written: a state that does not fit changes nothing
            raise ValueError("\n".join(("the state of the optimizers does not fit:", *problems)))
        for name, (group, hyper, _) in groups.items():
            _set_in(group, hyper, float(state[name]))
        for restore in restores:
            restore.write()

    def _restores(self, state: Mapping[str, Any]) -> Iterator[Restore]:
        """Yield a restore for each optimizer of Keras, and for each parameter that one of torch trains."""
        for number, attached in enumerate(self._attached):
            if isinstance(attached.optimizer, Optimizer):
                for path, parameter in self._models.params.items():
                    if self._of_path.get(path) == number:
                        yield _restore_parameter(f"{number}.{path}.", attached.optimizer, parameter, state)
            else:
                yield _restore_keras(f"{number}.", cast(Any, attached.optimizer).keras, state)

    def _group_values(self) -> dict[str, tuple[dict[str, Any], str, float]]:
        """Hyperparameters of optimizers with several groups, by name: the group, what it is called, and the value."""
        return {
            f"{number}.param_groups[{place}].{hyper}": (group, hyper, _get_in(group, hyper))
            for number, attached in enumerate(self._attached)
            for place, group in enumerate(attached.optimizer.param_groups)
            for hyper in attached.hyper
            if len(attached.optimizer.param_groups) > 1
        }

    def to_device(self, device: torch.device) -> None:
        """Move the state of all optimizers, in place."""
        for attached in self._attached:
            if isinstance(attached.optimizer, Optimizer):
                move_state(attached.optimizer, device)


def _restore_keras(prefix: str, optimizer: Any, state: Mapping[str, Any]) -> Restore:
    """How to restore an optimizer of Keras from what ``state`` has under a prefix."""
    variables = {prefix + name: variable for name, variable in optimizer.state().items()}
    present = {name: to_numpy(variable.value) for name, variable in variables.items()}
    problems = differences(present, {name: value for name, value in state.items() if name in present})

    def write() -> None:
        for name, variable in variables.items():
            variable.assign(state[name])

    return Restore(variables.keys(), problems, write)


def _restore_parameter(prefix: str, optimizer: Optimizer, parameter: Tensor, state: Mapping[str, Any]) -> Restore:
    """How to restore what a torch optimizer keeps for a parameter from what ``state`` has under a prefix."""
    slots = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    problems = [prefix + line for line in _misfits(slots, parameter, optimizer.state)]

    def write() -> None:
        if slots:
            optimizer.state[parameter] = {key: _as_state(key, value, parameter) for key, value in slots.items()}
        else:  # it was saved before its first step
            optimizer.state.pop(parameter, None)

    return Restore({prefix + key for key in slots}, problems, write)


def _misfits(slots: Mapping[str, Any], parameter: Tensor, state: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with the state for a parameter: other shapes, and other dtypes than there are."""
    present = {key: as_numpy(value) for key, value in state.get(parameter, {}).items() if value is not None}
    problems = differences(present, {key: slots[key] for key in present if key in slots}) if present else []
    problems = [line for line in problems if not line.endswith(": not there")]  # a slot begins with the first step
    expected = list(parameter.shape)
    new_shapes = {key: list(np.shape(value)) for key, value in slots.items() if key not in present}
    # a scalar, such as Adam's step count, belongs to a parameter of any shape
    return problems + [
        f"{k}: shape {shape}, not {expected}" for k, shape in new_shapes.items() if shape not in ([], expected)
    ]


def as_numpy(value: Any) -> Any:
    """Convert a slot of an optimizer, which torch keeps as a tensor or as a number."""
    return to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)


def _as_state(key: str, value: Any, parameter: Tensor) -> Tensor:
    """Convert a slot back to a tensor: on its parameter's device, but a step count on the CPU, where torch keeps it."""
    device = torch.device("cpu") if key == "step" and not value.ndim else parameter.device
    return torch.tensor(value, device=device)


def move_state(optimizer: Optimizer, device: torch.device) -> None:
    """Move an optimizer's state; step counters stay on the CPU where torch keeps them there."""
    for group in optimizer.param_groups:
        on_device = group.get("capturable") or group.get("fused")
        for tensor in group["params"]:
            state = optimizer.state.get(tensor, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and (key != "step" or on_device):
                    state[key] = value.to(device)


@torch.no_grad()
def _constrain(constrained: tuple[tuple[nn.Parameter, Callable[[Tensor], Tensor]], ...]) -> None:
    """Apply constraints to parameters, in place."""
    for parameter, constraint in constrained:
        parameter.copy_(constraint(parameter))


def _laid_out(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient with the strides of its parameter: torch's fused kernels on a CPU take that for granted."""
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _is_recipe(source: Any) -> bool:
    """Whether it is a torch optimizer without its parameters, ``functools.partial(torch.optim.Adam, lr=1e-3)``."""
    maker = source.func if isinstance(source, partial) else None
    return isinstance(maker, type) and issubclass(maker, Optimizer)


def _build(spec: OptimizerSpec, params: list[nn.Parameter]) -> Optimizer:
    """Build the optimizer of torch that a neutral spec describes."""
    fused = _can_fuse(params)
    match spec:
        case AdamW():
            betas = (spec.beta1, spec.beta2)
            rate, decay = spec.learning_rate, spec.weight_decay
            return torch.optim.AdamW(params, rate, betas, spec.epsilon, decay, fused=fused)
        case Adam():
            return torch.optim.Adam(params, spec.learning_rate, (spec.beta1, spec.beta2), spec.epsilon, fused=fused)
        case Momentum():
            optimizer = torch.optim.SGD(params, spec.learning_rate, spec.momentum, fused=fused)
            for parameter in params:  # torch's fused kernel fails where some have a velocity and others none yet
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            return optimizer
        case SGD():
            return torch.optim.SGD(params, spec.learning_rate, fused=fused)
        case _:
            raise OptimizerError(
                f"torch has nothing for {spec!r}: use SGD, Momentum, Adam or AdamW, or pass a torch.optim optimizer"
            )


def _can_fuse(params: list[nn.Parameter]) -> bool:
    """Whether torch has one kernel for the whole update; a step of a small MLP takes a quarter less with it."""
    return all(
        type(p) in (nn.Parameter, Tensor)
        and p.device.type in ("cpu", "cuda")
        and p.dtype in (torch.float32, torch.float64)
        for p in params
    )


def _spec_hyper(spec: OptimizerSpec) -> tuple[str, ...]:
    """Return the names of the hyperparameters that a neutral spec has."""
    match spec:
        case AdamW():
            return ("learning_rate", "momentum", "weight_decay")
        case Adam() | Momentum():
            return ("learning_rate", "momentum")
        case _:
            return ("learning_rate",)


def _native_hyper(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the names of the hyperparameters that an optimizer of torch has in its first group."""
    group = optimizer.param_groups[0]
    return tuple(name for name in ("learning_rate", "momentum", "weight_decay") if _group_key(group, name) in group)


def _group_key(group: dict[str, Any], name: str) -> str:
    """Return the key of a hyperparameter in a parameter group of torch."""
    if name == "learning_rate":
        return "lr"
    return "betas" if name == "momentum" and "momentum" not in group and "betas" in group else name


def _get_in(group: dict[str, Any], name: str) -> float:
    """Return a hyperparameter of a parameter group; momentum is the first of Adam's betas."""
    key = _group_key(group, name)
    return float(group[key][0] if key == "betas" else group[key])


def _set_in(group: dict[str, Any], name: str, value: float) -> None:
    """Set a hyperparameter of a parameter group."""
    key = _group_key(group, name)
    old = group[key][0] if key == "betas" else group[key]
    new = old.fill_(value) if isinstance(old, Tensor) else value  # a tensor is what a compiled step reads
    group[key] = (new, *group[key][1:]) if key == "betas" else new


def _tensors_of(optimizer: Optimizer) -> tuple[Tensor, ...]:
    """Return all parameters of an optimizer."""
    return tuple(tensor for group in optimizer.param_groups for tensor in group["params"])


def _some(names: list[str]) -> str:
    """Join the first five of some names, and say how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
