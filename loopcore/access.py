"""Guarded views: what a handler gets instead of the learner.

A view has one property for every path the callback declared, made once per callback; everything else raises an
`AccessError` that says which line to add. Host handlers see concrete values and copies of containers; traced
handlers see what the step body sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from loopcore.callback import Callback, name_of
from loopcore.errors import AccessError
from loopcore.randomness import Random
from loopcore.weights import Handle

if TYPE_CHECKING:
    from loopcore.learner import Learner

FREE = frozenset(
    {"epoch", "losses", "loss_fn", "phases", "predict", "run_epoch", "run_step", "fit", "seed", "stop_gradient"}
    | {"attempt", "is_ready", "number", "sample_weight", "to_host", "tree", "xp"}
)
VERBS = {  # verb -> the declarations it needs
    "gradient": (("params",), ()),
    "grad": (("model",), ()),
    "update": ((), ("params", "optimizer")),
    "minimize": ((), ("params", "optimizer")),
    "export_weights": (("params",), ()),
    "import_weights": ((), ("params",)),
    "set_model": ((), ("model",)),
    "to_device": ((), ("model",)),
    "history": (("shared.metrics_epoch",), ()),
}
ROOTS = ("step", "shared", "hyper", "model", "params", "buffers", "optimizer", "data")
_FREE_STEP = frozenset({"outcome"})
_OBJECTIVES = frozenset({"gradient", "grad", "minimize"})


@dataclass(frozen=True)
class Access:
    """What one callback declared."""

    callback: Callback
    reads: frozenset[str]
    writes: frozenset[str]

    @classmethod
    def of(cls, callback: Callback) -> Access:
        """Read the declarations once; a write implies a read."""
        writes = frozenset(callback.writes)
        return cls(callback, frozenset((*callback.reads, *callback.traced_reads, *callback.carries)) | writes, writes)

    def may(self, path: str, declared: frozenset[str]) -> bool:
        """Whether a declared path covers ``path`` (or lies below it, which opens the way down)."""
        return any(path == d or path.startswith(f"{d}.") for d in declared)

    def names(self, path: str, declared: frozenset[str]) -> frozenset[str]:
        """Names directly below a path that are declared; ``"*"`` when the path itself is."""
        below = (d.removeprefix(f"{path}.").partition(".")[0] for d in declared if d.startswith(f"{path}."))
        return frozenset(below) | ({"*"} if self.may(path, declared) else frozenset())

    def error(self, path: str, *, write: bool) -> AccessError:
        """The error for an undeclared access."""
        verb, attribute = ("writes", "writes") if write else ("reads", "reads")
        inner = self.callback.identity()
        paths = ", ".join(repr(p) for p in (*getattr(inner, attribute), path))
        cls: Any = type(inner)
        add = f"Add to class {cls.__name__}{_where(cls)}: {attribute} = ({paths},)"
        if attribute in getattr(inner, "__dict__", ()):  # given to its constructor, as to FunctionCallback
            add = f"Pass {cls.__name__}(..., {attribute}=({paths},))"
        return AccessError(f"{name_of(inner)} {verb} {path}, which it does not declare. {add}")


@lru_cache(maxsize=64)
def _where(cls: type) -> str:
    try:
        return f" ({inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]})"
    except (OSError, TypeError):
        return ""


def make_view(learner: Learner, callback: Callback, *, traced: bool) -> Any:
    """The guarded view of a learner for one callback.

    Args:
        learner: the learner behind it.
        callback: whose declarations decide.
        traced: for traced handlers: values as the step body sees them.
    """
    access = Access.of(callback)
    own = _OwnObjectives(learner.backend.concrete)
    parts: dict[str, Any] = {
        "step": _namespace_view("step", learner, access, traced),
        "shared": _namespace_view("shared", learner, access, traced),
        "hyper": _HyperView(learner, access),
        "random": Random(learner, name_of(callback)),
    }
    members: dict[str, Any] = {"__slots__": (), "_access": access}
    for root in ("step", "shared", "hyper"):
        members[root] = _constant(parts[root])  # always there, so that the error names the full path
    members["random"] = _constant(parts["random"])
    for root in ("params", "buffers", "model", "optimizer", "data"):
        if access.names(root, access.reads):
            members[root] = property(_guarded_root(root, access, _raw if traced else own.see))
    for name in FREE | {verb for verb, needs in VERBS.items() if _allowed(access, needs)}:
        members[name] = property(_forward(name) if traced or name not in _OBJECTIVES else own.verb(name))
    members["epoch"] = property(lambda view: view._learner.epoch and _EpochView(view._learner.epoch, access))
    view = cast(type[_View], type("LearnerView", (_View,), members))
    return view(learner)


def _allowed(access: Access, needs: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    reads, writes = needs
    return all(access.may(p, access.reads) for p in reads) and all(access.may(p, access.writes) for p in writes)


class _View:
    """Base of the generated views of a learner."""

    __slots__ = ("_learner",)
    _access: Access

    def __init__(self, learner: Learner) -> None:
        object.__setattr__(self, "_learner", learner)

    def __getattr__(self, name: str) -> Any:
        if name in VERBS:
            reads, writes = VERBS[name]
            missing = [(p, False) for p in reads if not self._access.may(p, self._access.reads)]
            missing += [(p, True) for p in writes if not self._access.may(p, self._access.writes)]
            raise self._access.error(missing[0][0], write=missing[0][1])
        if name in ROOTS:
            raise self._access.error(name, write=False)
        raise AttributeError(f"a callback cannot reach learner.{name}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AccessError(
            f"{name_of(self._access.callback)} assigns learner.{name}: a callback writes values below step, shared, "
            "hyper, params or buffers, such as learner.shared.x, and declares them in writes"
        )


def _constant(value: Any) -> property:
    return property(lambda view: value)


def _forward(name: str) -> Callable[[Any], Any]:
    return lambda view: getattr(view._learner, name)


def _guarded_root(root: str, access: Access, concrete: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if root in ("optimizer", "data"):
        writable = access.may(root, access.writes)
        return lambda view: getattr(view._learner, root) if writable else MappingProxyType(getattr(view._learner, root))
    wrapper = _ModelView if root == "model" else _HandleView
    return lambda view: wrapper(getattr(view._learner, root), access, root, concrete)


class _OwnObjectives:
    """What a host handler sees: concrete values, but within an objective of its own those that are differentiated."""

    def __init__(self, concrete: Callable[[Any], Any]) -> None:
        self._concrete = concrete
        self._depth = 0

    def see(self, value: Any) -> Any:
        return value if self._depth or value is None else self._concrete(value)

    def verb(self, name: str) -> Callable[[Any], Any]:
        return lambda view: self._within(getattr(view._learner, name))

    def _within(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                result = verb(*args, **kwargs)
            finally:
                self._depth -= 1
            return self._within(result) if callable(result) else self.see(result)

        return call


class _EpochView:
    """The running epoch for a callback: all of it readable, nothing writable."""

    __slots__ = ("_access", "_epoch")

    def __init__(self, epoch: Any, access: Access) -> None:
        object.__setattr__(self, "_epoch", epoch)
        object.__setattr__(self, "_access", access)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoch, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AccessError(f"{name_of(self._access.callback)} assigns learner.epoch.{name}: the loop alone counts")


class _ModelView:
    """A model for a callback: forward passes of one that may not change it leave its state as it is."""

    __slots__ = ("_access", "_concrete", "_model", "_path")

    def __init__(self, model: Any, access: Access, path: str, concrete: Callable[[Any], Any]) -> None:
        self._model, self._access, self._path, self._concrete = model, access, path, concrete

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._access.may(self._path, self._access.reads):
            raise self._access.error(self._path, write=False)
        if not self._access.may(self._path, self._access.writes):
            kwargs["update_state"] = False
        return self._concrete(self._model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        names = self._access.names(self._path, self._access.reads)
        if "*" in names and name == "native":
            return self._model.native
        if "*" in names and name == "apply":
            return lambda *args, **kwargs: self._concrete(self._model.apply(*args, **kwargs))
        if not names & {"*", name}:
            raise self._access.error(f"{self._path}.{name}", write=False)
        return _ModelView(getattr(self._model, name), self._access, f"{self._path}.{name}", self._concrete)

    __getitem__ = __getattr__


class _HandleView(Handle):
    """Parameters or buffers for a callback: readable below what it reads, writable below what it writes."""

    __slots__ = ("_access", "_concrete", "_path")
    _access: Access
    _concrete: Callable[[Any], Any]
    _path: str

    def __init__(self, handle: Handle, access: Access, path: str, concrete: Callable[[Any], Any]) -> None:
        for name in Handle.__slots__:
            object.__setattr__(self, name, getattr(handle, name))
        for name, value in (("_access", access), ("_concrete", concrete), ("_path", path)):
            object.__setattr__(self, name, value)

    @property
    def value(self) -> Any:
        if not self._access.may(self._path, self._access.reads):
            raise self._access.error(self._path, write=False)
        return self._concrete(super().value)

    @value.setter
    def value(self, tree: Any) -> None:
        if not self._access.may(self._path, self._access.writes):
            raise self._access.error(self._path, write=True)
        self._assign(tree)

    def __getitem__(self, prefix: str) -> Handle:
        if not self._access.names(self._path, self._access.reads) & {"*", prefix}:
            raise self._access.error(f"{self._path}.{prefix}", write=False)
        return _HandleView(super().__getitem__(prefix), self._access, f"{self._path}.{prefix}", self._concrete)


class _HyperView:
    """Hyperparameters for a callback."""

    __slots__ = ("_access", "_learner")
    _access: Access
    _learner: Learner

    def __init__(self, learner: Learner, access: Access) -> None:
        object.__setattr__(self, "_learner", learner)
        object.__setattr__(self, "_access", access)

    def __getitem__(self, name: str) -> float:
        if not self._access.may(f"hyper.{name}", self._access.reads):
            raise self._access.error(f"hyper.{name}", write=False)
        return self._learner.hyper[name]

    def __setitem__(self, name: str, value: float) -> None:
        if not self._access.may(f"hyper.{name}", self._access.writes):
            raise self._access.error(f"hyper.{name}", write=True)
        self._learner.hyper[name] = value

    __getattr__ = __getitem__
    __setattr__ = __setitem__


def _namespace_view(root: str, learner: Learner, access: Access, traced: bool) -> Any:
    """A view of ``step`` or ``shared`` with a generated property for every declared name."""
    reads, writes = access.names(root, access.reads), access.names(root, access.writes)
    members: dict[str, Any] = {
        "__slots__": (),
        "_access": access,
        "_root": root,
        "_writes": writes,
        "_all": "*" in reads,
    }
    get = _raw if traced else _concrete(learner)
    own = None if traced else learner.backend.concrete
    members["_read"] = staticmethod(get)
    members["_adopt"] = staticmethod(_keep if traced or root == "shared" else _adopting(learner))
    for name in (reads | (_FREE_STEP if root == "step" else frozenset())) - {"*"}:
        members[name] = property(_getter(learner, root, name, own if name in writes or traced else get))
    return cast(type[_Namespace], type(f"{root.title()}View", (_Namespace,), members))(learner)


class _Namespace:
    """Base of the generated views of ``step`` and ``shared``."""

    __slots__ = ("_learner",)
    _access: Access
    _root: str
    _writes: frozenset[str]
    _all: bool
    _read: Callable[[Any], Any]
    _adopt: Callable[[Any, str, Any], Any]

    def __init__(self, learner: Learner) -> None:
        object.__setattr__(self, "_learner", learner)

    def __getattr__(self, name: str) -> Any:
        if self._all and not name.startswith("_"):
            return self._read(getattr(getattr(self._learner, self._root), name))
        if name in type(self).__dict__:  # its property raised: the value is not there
            return getattr(getattr(self._learner, self._root), name)
        raise self._access.error(f"{self._root}.{name}", write=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._writes & {name, "*"}:
            raise self._access.error(f"{self._root}.{name}", write=True)
        target = getattr(self._learner, self._root)
        setattr(target, name, self._adopt(target, name, value))

    def __delattr__(self, name: str) -> None:
        raise self._access.error(f"{self._root}.{name}", write=True)


def _getter(learner: Learner, root: str, name: str, read: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The getter of a property; handlers call them at every step, so that no call in them is idle."""
    runs, shared = learner.runs, learner.shared
    if root == "shared":
        return (lambda view: getattr(shared, name)) if read is None else (lambda view: read(getattr(shared, name)))
    return (lambda view: getattr(runs.step, name)) if read is None else (lambda view: read(getattr(runs.step, name)))


def _raw(value: Any) -> Any:
    return value


def _keep(_: Any, name: str, value: Any) -> Any:
    return value


def _concrete(learner: Learner) -> Callable[[Any], Any]:
    """Values without graph or tape; containers are copies, so that a reader cannot change the state."""
    concrete, tree_map = learner.backend.concrete, learner.backend.tree_map

    def read(value: Any) -> Any:
        if isinstance(value, (dict, list, tuple)):
            return tree_map(_raw, concrete(value))
        return concrete(value)

    return read


def _adopting(learner: Learner) -> Callable[[Any, str, Any], Any]:
    backend = learner.backend

    def adopt(state: Any, name: str, value: Any) -> Any:
        if name in ("apply", "weight"):
            return value
        old = state.__dict__.get(name)
        return backend.convert(value) if old is None else backend.adopt(old, value)

    return adopt
