"""Containers that a host handler got to see, and what it changed in them.

A dict or a list can be changed in place without anybody being told. So handlers get copies, and what they did to them
is looked at when they are over. That is the same in every plan, since a handler works on concrete values in each.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, NamedTuple

from loopcore.handles.trees import Containers
from loopcore.protocols import LearnerParts

Key = tuple[str, str, int]

if TYPE_CHECKING:
    from loopcore.backend.protocol import Array, Backend, Native, Tree
    from loopcore.state import Shared, State


class LentContainer(NamedTuple):
    """One container that was handed out.

    Attributes:
        owner: the namespace that holds it, and its name there.
        value: what it is a copy of.
        copy: what the handler got.
        leaves, structure: its content at that time.
        during: the step that ran then.
    """

    owner: State | Shared
    name: str
    value: Tree
    copy: Tree
    leaves: list[Array]
    structure: Native
    during: State

    def changed(self, backend: Backend) -> bool:
        """Whether the handler replaced, added or removed a leaf of the copy; leaves are compared by identity."""
        same = backend.tree_structure(self.copy) == self.structure
        return not (same and all(map(is_, backend.tree_leaves(self.copy), self.leaves)))


class LentContainers(dict[Key, LentContainer]):
    """What the running handler of one callback holds, by root, name and step; mostly nothing.

    Args:
        learner: whose state it is.

    Attributes:
        take_back: by root, ``step`` or ``shared``: writes a changed container back to its owner.
        containers: tells what is lent from what cannot be changed in place.
    """

    def __init__(self, learner: LearnerParts) -> None:
        super().__init__()
        self._learner = learner
        self.take_back: dict[str, Callable[[State | Shared, str, Tree], None]] = {}
        self.containers = Containers(learner.backend)

    def lend(self, root: str, name: str, value: Tree) -> Tree:
        """A copy of a container without graph or tape; the same one until the handler ends or the value changes."""
        backend, during = self._learner.backend, self._learner.runs.step
        # The step is in the key: a handler may run another step, whose values have the same names.
        key = (root, name, id(during))
        loan = self.get(key)
        # The same copy each time, so that ``learner.step.meta["a"] = 1`` and the next read of it go together.
        if loan is not None and loan.value is value:
            return loan.copy
        # The containers are copied, the arrays in them are not: a handler that only reads pays for no array.
        copy = backend.tree_map(lambda leaf: leaf, backend.concrete(value))
        owner = during if root == "step" else self._learner.shared
        self[key] = LentContainer(
            owner, name, value, copy, backend.tree_leaves(copy), backend.tree_structure(copy), during
        )
        return copy

    def replaced(self, root: str, name: str, value: Tree, stored: Tree) -> None:
        """The handler assigned a value: what it did to the old one no longer counts, but what it does to this does."""
        key = (root, name, id(self._learner.runs.step))
        # The handler wrote back the copy that it has, perhaps changed: what it does to that copy later counts too.
        loan = self.pop(key, None)
        if loan is not None and loan.copy is value:
            backend = self._learner.backend
            leaves, structure = backend.tree_leaves(value), backend.tree_structure(value)
            self[key] = loan._replace(value=stored, leaves=leaves, structure=structure)

    def settle(self) -> None:
        """Take back what was lent in this step, with the changes. Handlers around a nested step go on.

        Raises:
            AccessError: a container was changed that the callback does not declare to write.
        """
        runs = self._learner.runs
        # Outside of all steps everything is due: what is open there belongs to handlers that are over.
        due = {key: loan for key, loan in self.items() if loan.during is runs.step or runs.runner is None}
        # Taken out before anything is written back, since writing may raise, and the next handler must not find old
        # copies.
        for key in due:
            del self[key]
        for (root, _, _), loan in due.items():
            if loan.changed(self._learner.backend):
                self.take_back[root](loan.owner, loan.name, loan.copy)
