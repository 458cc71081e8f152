"""Guarded views of ``step`` and ``shared``: one property for every declared name, made once per callback."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from loopcore.callback import name_of
from loopcore.protocols import LearnerParts
from loopcore.state import record_of, seen

if TYPE_CHECKING:
    from loopcore.access.lent_containers import LentContainers
    from loopcore.access.permissions import Access
    from loopcore.backend.protocol import Backend, Tree
    from loopcore.state import Shared, State

CONSTANT = "it is a constant to the gradient there; use traced=True to differentiate through it"
_FREE_STEP = frozenset({"outcome"})


def namespace_view(root: str, learner: LearnerParts, access: Access, loans: LentContainers | None) -> NamespaceView:
    """A view of ``step`` or ``shared`` with a generated property for every declared name; traced without loans."""
    reads, writes = access.names(root, access.reads), access.names(root, access.writes)
    reader = partial(_reader, learner, loans, root, writes)
    adopt = _keep if loans is None or root == "shared" else _adopting(learner, access, loans)
    members: dict[str, object] = {
        "__slots__": (),
        "_access": access,
        "_root": root,
        "_writes": writes,
        "_all": "*" in reads,
        "_reader": staticmethod(reader),
        "_adopt": staticmethod(adopt),
        # Where nothing is to be converted, a declared name is written by one call. In ``step`` a host handler's value
        # is converted and compared with the old one, see `_adopting`.
        "_put": _putters(learner, root, writes) if loans is None or root == "shared" else {},
    }
    for name in (reads | (_FREE_STEP if root == "step" else frozenset())) - {"*"}:
        # A closure for each name, with no branch and no check left in it: handlers read values at every step.
        members[name] = property(_getter(learner, root, name, reader(name)))
    if loans is not None:
        loans.take_back[root] = _taking_back(root, access, writes, adopt)
    return cast(type[NamespaceView], type(f"{root.title()}View", (NamespaceView,), members))(learner)


class NamespaceView:
    """Base of the generated views of ``step`` and ``shared``."""

    __slots__ = ("_learner",)
    _access: Access
    _root: str
    _writes: frozenset[str]
    _all: bool
    _reader: Callable[[str], Callable[[Tree], Tree] | None]
    _adopt: Callable[..., Tree]
    _put: dict[str, Callable[[str, Tree], None]]

    def __init__(self, learner: LearnerParts) -> None:
        object.__setattr__(self, "_learner", learner)

    def __getattr__(self, name: str) -> Tree:
        if self._all and not name.startswith("_"):
            value, read = getattr(getattr(self._learner, self._root), name), self._reader(name)
            return value if read is None else read(value)
        # Python calls `__getattr__` also when a property raised AttributeError. To ask again gives the error of the
        # state, in place of one that says the callback did not declare what it did declare.
        if name in type(self).__dict__:
            return getattr(getattr(self._learner, self._root), name)
        raise self._access.error(f"{self._root}.{name}", write=False)

    def __setattr__(self, name: str, value: Tree) -> None:
        put = self._put.get(name)
        if put is not None:
            put(name, value)
            return
        if not self._writes & {name, "*"}:
            raise self._access.error(f"{self._root}.{name}", write=True)
        target = getattr(self._learner, self._root)
        setattr(target, name, self._adopt(target, name, value))

    def __delattr__(self, name: str) -> None:
        raise self._access.error(f"{self._root}.{name}", write=True)


def _taking_back(
    root: str, access: Access, writes: frozenset[str], adopt: Callable[[Any, str, Tree], Tree]
) -> Callable[[State | Shared, str, Tree], None]:
    """Make the function that writes a container that a handler changed in place back to ``step`` or ``shared``.

    It raises an `AccessError` where the callback does not declare to write it.
    """

    def take_back(owner: State | Shared, name: str, value: Tree) -> None:
        path = f"{root}.{name}"
        if not writes & {name, "*"}:
            raise access.error(path, write=True, action=f"changes {path} in place")
        setattr(owner, name, adopt(owner, name, value))

    return take_back


def _putters(learner: LearnerParts, root: str, writes: frozenset[str]) -> dict[str, Callable[[str, Tree], None]]:
    """How declared names are written where nothing is to be converted."""
    runs, shared = learner.runs, learner.shared
    put = shared.__setattr__ if root == "shared" else lambda name, value: setattr(runs.step, name, value)
    return dict.fromkeys(writes - {"*"}, put)


def _getter(
    learner: LearnerParts, root: str, name: str, read: Callable[[Tree], Tree] | None
) -> Callable[[NamespaceView], Tree]:
    """The getter of a property; handlers call them at every step, so that no call in them is idle."""
    runs, shared = learner.runs, learner.shared
    if root == "shared":
        return (lambda view: getattr(shared, name)) if read is None else (lambda view: read(getattr(shared, name)))
    return (lambda view: getattr(runs.step, name)) if read is None else (lambda view: read(getattr(runs.step, name)))


def _keep(_: State, name: str, value: Tree) -> Tree:
    return value


def _reader(
    learner: LearnerParts, loans: LentContainers | None, root: str, writes: frozenset[str], name: str
) -> Callable[[Tree], Tree] | None:
    """Make the function that converts a stored value to what a handler gets; None where that is the value itself.

    Traced handlers see what the body sees. Host handlers see values without graph or tape, containers as copies; but
    what they write in ``shared`` belongs to them, and they get it as it is.
    """
    if loans is None:
        return None
    # A copy would be no use to the owner of a value, who changes it in place; still no gradient may hang on it.
    if root == "shared" and writes & {name, "*"}:
        return learner.backend.stop_gradient
    backend, runs, is_container = learner.backend, learner.runs, loans.containers.has
    concrete = backend.concrete

    def read(value: Tree) -> Tree:
        return loans.lend(root, name, value) if is_container(value) else concrete(value)

    def read_step(value: Tree) -> Tree:
        value = seen(backend, runs.step, name, value)
        return loans.lend(root, name, value) if is_container(value) else concrete(value)

    return read_step if root == "step" and hasattr(backend, "feed") else read


def _adopting(learner: LearnerParts, access: Access, loans: LentContainers) -> Callable[[State, str, Tree], Tree]:
    """Make the function that converts what a host handler writes into the step to what the body then reads."""
    backend = learner.backend
    warned: set[str] = set()

    def adopt(state: State, name: str, value: Tree) -> Tree:
        # These decide and weigh, and no model computes with them: they may stay Python numbers, which costs a program
        # nothing.
        if name in ("apply", "weight"):
            return value
        old = state.__dict__.get(name)
        # A new name: no gradient goes through a value that the body did not compute.
        if old is None:
            return backend.convert(value)
        new = backend.adopt(old, value)
        # A container that the handler writes back is looked at from now on as it is in the step.
        if loans:
            loans.replaced("step", name, value, new)
        if new is old:
            return new
        record = record_of(state)
        if _cuts(backend, old, new, name in (record.differentiated or ())):
            writer = name_of(access.callback)
            record.replaced = {**(record.replaced or {}), name: writer}
            # Once for each callback and name: a training has many steps.
            if name not in warned:
                warned.add(name)
                warnings.warn(f"{writer} replaced step.{name} inside an objective: {CONSTANT}", stacklevel=3)
        return new

    return adopt


def _cuts(backend: Backend, old: Tree, new: Tree, differentiated: bool) -> bool:
    """Whether a leaf that a gradient flows through is gone; at the cut of a compiled step only its name tells."""
    # By identity and counted, since a tree may hold one array twice and lose it once.
    leaves = {id(leaf): leaf for leaf in backend.tree_leaves(old)}
    replaced = Counter(map(id, backend.tree_leaves(old))) - Counter(map(id, backend.tree_leaves(new)))
    return bool(replaced) if differentiated else any(backend.is_differentiated(leaves[key]) for key in replaced)
