"""Guarded views: what a handler gets instead of the learner.

A view has one property for every path the callback declared, made once per callback; everything else raises an
`AccessError` that says which line to add. Host handlers see concrete values and copies of containers; traced
handlers see what the step body sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from types import MappingProxyType
from typing import Any, cast

from loopcore.access.lent_containers import LentContainers
from loopcore.access.namespace_view import namespace_view
from loopcore.access.permissions import Access
from loopcore.backend.protocol import Array, Tree
from loopcore.callback import Callback, name_of
from loopcore.errors import AccessError
from loopcore.handles.models import Model
from loopcore.handles.parameters import ParameterHandle
from loopcore.handles.randomness import Random
from loopcore.ordering.declarations import ROOTS
from loopcore.protocols import EpochView, LearnerParts

FREE = frozenset(
    {"epoch", "losses", "loss_fn", "phases", "predict", "run_epoch", "run_step", "fit", "seed", "stop_gradient"}
    | {
        "accelerator",
        "attempt",
        "is_ready",
        "number",
        "profile",
        "sample_weight",
        "step_number",
        "to_host",
        "tree",
        "xp",
    }
)
VERBS = {  # verb -> the declarations it needs
    "gradient": (("params",), ()),
    "grad": (("model",), ()),
    "update": ((), ("params", "optimizer")),
    "minimize": ((), ("params", "optimizer")),
    "export_weights": (("params",), ()),
    "import_weights": ((), ("params",)),
    "save": (("params", "buffers", "optimizer"), ()),
    "save_model": (("params", "buffers"), ()),
    "hold": ((), ("optimizer",)),
    "set_model": ((), ("model",)),
    "to_device": ((), ("model",)),
    "history": (("shared.metrics_epoch",), ()),
    "peek": (("data",), ()),
    "rehearse": (("model", "params", "buffers"), ()),
}
_ADVICE = {  # what it cannot reach -> what to do
    "callbacks": (
        "change the list before fit or between two fits. To work with another callback, name its class in requires or "
        "run_after, and exchange values through shared"
    ),
    "backend": "the array functions are learner.xp, learner.tree and learner.losses; to_host makes NumPy arrays",
    "result": "it is there when fit has returned; a handler of FitEnd takes event.outcome as its fourth argument",
    "runs": "what is running is learner.epoch, learner.step and learner.attempt",
    "all_params": "parameters are learner.params, which the callback declares",
}
_REACHED = f"it reaches {', '.join(ROOTS)} as it declares them, random, and {', '.join(sorted(FREE | VERBS.keys()))}"
# These run code of the handler within an objective, where it must see values that are differentiated; elsewhere a host
# handler sees plain ones.
_OBJECTIVES = frozenset({"gradient", "grad", "minimize"})


def make_view(learner: LearnerParts, callback: Callback, loans: LentContainers | None) -> View:
    """The guarded view of a learner for one callback.

    Args:
        learner: the learner behind it.
        callback: whose declarations decide.
        loans: takes what host handlers get to see; None for traced handlers, which see what the step body sees.
    """
    traced = loans is None
    # All decisions are made here, once: a handler runs at every step, and pays for an attribute and nothing else.
    access = Access.of(callback)
    objectives = _OwnObjectives(learner.backend.concrete)
    parts: dict[str, object] = {
        "step": namespace_view("step", learner, access, loans),
        "shared": namespace_view("shared", learner, access, loans),
        "hyper": _HyperView(learner, access),
        "random": Random(learner, name_of(callback.identity())),  # a wrapper changes no draws
    }
    members: dict[str, object] = {"__slots__": (), "_access": access}
    # Handlers read these at every step: attributes of the class, which take a third of the time of a property. The
    # three namespaces are there whatever was declared, so that the error names the full path.
    members |= parts | {"collect": staticmethod(_collecting(learner, access))}
    for root in ("params", "buffers", "model", "optimizer", "data"):
        if access.names(root, access.reads):
            members[root] = property(_guarded_root(root, learner, access, _raw if traced else objectives.see))
    for name in FREE | {verb for verb, needs in VERBS.items() if _allowed(access, needs)}:
        is_own_objective = name in _OBJECTIVES and not traced
        getter = objectives.verb(name, learner) if is_own_objective else attrgetter(f"_learner.{name}")
        members[name] = property(getter)
    members["epoch"] = property(lambda view: learner.epoch and _EpochView(learner.epoch, access))
    # A class for each callback, since only a class can have properties; a lookup in a dict by `__getattr__` would be
    # slower.
    view = cast(type[View], type("LearnerView", (View,), members))
    return view(learner)


def _allowed(access: Access, needs: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    reads, writes = needs
    return all(access.may(p, access.reads) for p in reads) and all(access.may(p, access.writes) for p in writes)


class View:
    """Base of the views of a learner; `make_view` generates a class of it for each callback."""

    __slots__ = ("_learner",)
    _access: Access

    def __init__(self, learner: LearnerParts) -> None:
        # Past the `__setattr__` below, which refuses everything.
        object.__setattr__(self, "_learner", learner)

    def __getattr__(self, name: str) -> Any:
        if name in VERBS or name in ROOTS:
            reads, writes = VERBS.get(name, ((name,), ()))
            for path in reads:
                self._access.require_read(path)
            for path in writes:
                self._access.require_write(path)
            return getattr(self._learner, name)  # it is declared: its property raised, and says again why
        advice = _ADVICE.get(name, _REACHED)
        raise AttributeError(f"a callback cannot reach learner.{name}: {advice}", name=name, obj=self)

    def __setattr__(self, name: str, value: object) -> None:
        raise AccessError(
            f"{name_of(self._access.callback)} assigns learner.{name}: a callback writes values below step, shared, "
            "hyper, params or buffers, such as learner.shared.x, and declares them in writes"
        )


def _collecting(learner: LearnerParts, access: Access) -> Callable[..., tuple[Array, ...]]:
    deferred = {path.removeprefix("step.") for path in access.callback.leaves}

    def collect(*names: str) -> tuple[Array, ...]:
        if not deferred.issuperset(names):
            name = next(name for name in names if name not in deferred)
            raise AccessError(
                f'{name_of(access.callback)} collects step.{name}: declare it, leaves = ("step.{name}",), and let a '
                "traced handler write it"
            )
        return learner.collect(*names)

    return collect


def _guarded_root(
    root: str, learner: LearnerParts, access: Access, concrete: Callable[[Tree], Tree]
) -> Callable[[View], object]:
    if root in ("optimizer", "data"):
        writable = access.may(root, access.writes)
        return lambda view: getattr(learner, root) if writable else MappingProxyType(getattr(learner, root))
    if root == "model":
        differentiated = learner.backend.is_differentiated
        return lambda view: _ModelView(learner.model, access, root, concrete, differentiated)
    return lambda view: _HandleView(getattr(learner, root), access, root, concrete)


class _OwnObjectives:
    """What a host handler sees: concrete values, but within an objective of its own those that are differentiated."""

    def __init__(self, concrete: Callable[[Tree], Tree]) -> None:
        self._concrete = concrete
        self._depth = 0

    def see(self, value: Tree) -> Tree:
        # Within its own objective a concrete value would cut the very gradient that the handler asks for.
        return value if self._depth or value is None else self._concrete(value)

    def verb(self, name: str, learner: LearnerParts) -> Callable[[View], Callable[..., Tree]]:
        return lambda view: self._opened(getattr(learner, name))

    def _opened(self, verb: Callable[..., Tree]) -> Callable[..., Tree]:
        def call(*args: object, **kwargs: object) -> Tree:
            self._depth += 1
            try:
                result = verb(*args, **kwargs)
            finally:
                self._depth -= 1
            # `grad` returns a function that differentiates when it is called, so that it opens an objective then.
            return self._opened(result) if callable(result) else self.see(result)

        return call


class _EpochView:
    """The running epoch for a callback: all of it readable, nothing writable."""

    __slots__ = ("_access", "_epoch")

    def __init__(self, epoch: EpochView, access: Access) -> None:
        object.__setattr__(self, "_epoch", epoch)
        object.__setattr__(self, "_access", access)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoch, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AccessError(f"{name_of(self._access.callback)} assigns learner.epoch.{name}: the loop alone counts")


class _ModelView:
    """A model for a callback: forward passes of one that may not change it leave its state as it is."""

    __slots__ = ("_access", "_concrete", "_differentiated", "_model", "_path")

    def __init__(
        self,
        model: Model,
        access: Access,
        path: str,
        concrete: Callable[[Tree], Tree],
        differentiated: Callable[[Tree], bool],
    ) -> None:
        self._model, self._access, self._path = model, access, path
        self._concrete, self._differentiated = concrete, differentiated

    def __call__(self, *args: object, **kwargs: Any) -> Tree:
        self._access.require_read(self._path)
        if not self._access.may(self._path, self._access.writes):
            # A forward pass would move the statistics of batch norm, which is a write.
            kwargs["update_state"] = False
        return self._concrete(self._model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        names = self._access.names(self._path, self._access.reads)
        if "*" in names and name == "native":
            native = self._model.native
            return self._concrete(native) if self._differentiated(native) else native
        if "*" in names and name == "apply":
            return lambda *args, **kwargs: self._concrete(self._model.apply(*args, **kwargs))
        if not names & {"*", name}:
            raise self._access.error(f"{self._path}.{name}", write=False)
        model, path = getattr(self._model, name), f"{self._path}.{name}"
        return _ModelView(model, self._access, path, self._concrete, self._differentiated)

    __getitem__ = __getattr__


class _HandleView(ParameterHandle):
    """Parameters or buffers for a callback: readable below what it reads, writable below what it writes."""

    __slots__ = ("_access", "_concrete", "_path")
    _access: Access
    _concrete: Callable[[Tree], Tree]
    _path: str

    def __init__(self, handle: ParameterHandle, access: Access, path: str, concrete: Callable[[Tree], Tree]) -> None:
        # A view is a handle with a guard, not a wrapper: `minimize` and `update` take handles, and look at what is in
        # them.
        for name in ParameterHandle.__slots__:
            object.__setattr__(self, name, getattr(handle, name))
        for name, value in (("_access", access), ("_concrete", concrete), ("_path", path)):
            object.__setattr__(self, name, value)

    @property
    def value(self) -> Tree:
        self._access.require_read(self._path)
        return self._concrete(super().value)

    @value.setter
    def value(self, tree: Tree) -> None:
        self._access.require_write(self._path)
        self._assign(tree)

    def __getitem__(self, prefix: str) -> ParameterHandle:
        if not self._access.names(self._path, self._access.reads) & {"*", prefix}:
            raise self._access.error(f"{self._path}.{prefix}", write=False)
        return _HandleView(super().__getitem__(prefix), self._access, f"{self._path}.{prefix}", self._concrete)


class _HyperView:
    """``learner.hyper`` for a callback: it lists and reads what is in ``reads``, and sets what is in ``writes``."""

    __slots__ = ("_access", "_learner")
    _access: Access
    _learner: LearnerParts

    def __init__(self, learner: LearnerParts, access: Access) -> None:
        object.__setattr__(self, "_learner", learner)
        object.__setattr__(self, "_access", access)

    def __getitem__(self, name: str) -> float:
        self._access.require_read(f"hyper.{name}")
        return self._learner.hyper[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._learner.hyper if self._access.may(f"hyper.{name}", self._access.reads))

    def __setitem__(self, name: str, value: float) -> None:
        self._access.require_write(f"hyper.{name}")
        self._learner.hyper[name] = value

    __getattr__ = __getitem__
    __setattr__ = __setitem__


def _raw(value: Tree) -> Tree:
    return value
