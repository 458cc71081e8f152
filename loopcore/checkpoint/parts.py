"""What a learner holds, part by part: how each is saved, compared with that of a checkpoint, and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from loopcore.backend.protocol import Array, Tree
from loopcore.checkpoint.file import Arrays, Manifest
from loopcore.errors import OptimizerError
from loopcore.handles.hyperparameters import own_values
from loopcore.handles.parameters import differences
from loopcore.protocols import LearnerParts


class File(NamedTuple):
    """The content of a checkpoint file: its arrays by name, and its manifest."""

    arrays: Arrays
    manifest: Manifest

    def part(self, prefix: str) -> Arrays:
        """Return the arrays whose names begin with a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): v for name, v in self.arrays.items() if name.startswith(prefix)}


class CheckpointPart:
    """One kind of thing that a learner keeps: it saves it, compares it with a checkpoint, and loads it.

    Args:
        learner: whose it is.
    """

    def __init__(self, learner: LearnerParts) -> None:
        self.learner = learner

    def save(self, arrays: Arrays) -> Manifest:
        """Add its arrays, and return what it has for the manifest; changes nothing."""
        return {}

    def differences(self, file: File) -> list[str]:
        """List, a line each, everything of a checkpoint that does not fit; changes nothing."""
        return []

    def load(self, file: File, undo: ExitStack) -> None:
        """Take the values of a checkpoint; ``undo`` gets what brings back the present ones, before they change."""


class WeightsPart(CheckpointPart):
    """Parameters and buffers of all models."""

    def save(self, arrays: Arrays) -> Manifest:
        """Add the arrays of the models under ``weights/`` and their path."""
        arrays.update({f"weights/{path}": value for path, value in self.learner.export_weights().items()})
        return {}

    def differences(self, file: File) -> list[str]:
        """List the arrays whose name, shape or dtype is not that of the models."""
        return [f"weights: {line}" for line in differences(self.learner.export_weights(), file.part("weights/"))]

    def load(self, file: File, undo: ExitStack) -> None:
        """Write the weights of a checkpoint into the models."""
        undo.callback(self.learner.import_weights, self.learner.export_weights())
        self.learner.import_weights(file.part("weights/"))


class OptimizersPart(CheckpointPart):
    """The states of the optimizers, and the hyperparameters of each.

    These are kept for each optimizer, since a name such as ``learning_rate`` stands for all of them, with other values.
    """

    def save(self, arrays: Arrays) -> Manifest:
        """Add the states as arrays; return the names and hyperparameters of the optimizers for the manifest."""
        arrays.update({f"optimizer/{name}": v for name, v in self.learner.backend.export_optimizers().items()})
        rows = zip(self._names(), self._values(), strict=True)
        return {"optimizers": [{"prefix": prefix, "name": name, "hyper": hyper} for (prefix, name), hyper in rows]}

    def differences(self, file: File) -> list[str]:
        """List the optimizers that are others, or the lines of what does not fit in their states."""
        present, stored = self._names(), [(entry["prefix"], entry["name"]) for entry in file.manifest["optimizers"]]
        if present != stored:
            return [f"optimizers: {_listed(present)} here, {_listed(stored)} in the checkpoint"]
        backend = self.learner.backend
        # `import_optimizers` changes nothing where it refuses, so that only a success has to be taken back.
        before = backend.export_optimizers()
        try:
            backend.import_optimizers(file.part("optimizer/"))  # only the adapter knows what fits
        except ValueError as error:
            return [f"optimizers: {line.strip()}" for line in str(error).splitlines()]
        backend.import_optimizers(before)
        return []

    def load(self, file: File, undo: ExitStack) -> None:
        """Import the states, then set the hyperparameters."""
        self.keep(undo)
        self.learner.backend.import_optimizers(file.part("optimizer/"))
        self._set([entry["hyper"] for entry in file.manifest["optimizers"]])

    def keep(self, undo: ExitStack) -> None:
        """Let ``undo`` bring back the present states and hyperparameters."""
        backend = self.learner.backend
        undo.callback(backend.import_optimizers, backend.export_optimizers())
        undo.callback(self._set, self._values())

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Keep states and hyperparameters over a block that attaches the optimizers anew, to more parameters."""
        backend = self.learner.backend
        before, values = backend.export_optimizers(), self._values()
        yield
        # What is new among the parameters has the state that attaching gave it.
        backend.import_optimizers({**backend.export_optimizers(), **before})
        self._set(values)

    def _names(self) -> list[tuple[str, str]]:
        name = self.learner.backend.optimizer_name
        return [(prefix, name(number)) for number, (prefix, _) in enumerate(self.learner.trained)]

    def _values(self) -> list[dict[str, float]]:
        return [self._values_of(number) for number in range(len(self.learner.trained))]

    def _values_of(self, number: int) -> dict[str, float]:
        backend, values = self.learner.backend, dict[str, float]()
        for name in backend.hyper_names(number):
            try:
                values[name] = float(backend.get_hyper(number, name))
            except OptimizerError:  # the optimizer has it, but its library does not tell the value
                continue
        return values

    def _set(self, values: list[dict[str, float]]) -> None:
        """Set the hyperparameters that differ: one that is equal may be fixed, or be that of one group of several."""
        for number, (present, wished) in enumerate(zip(self._values(), values, strict=True)):
            for name, value in wished.items():
                if name in present and present[name] != value:
                    self.learner.backend.set_hyper(number, name, value)


class HyperPart(CheckpointPart):
    """The scalars that the user gave as ``Learner(hyper=...)``."""

    def save(self, arrays: Arrays) -> Manifest:
        """Return the values of the scalars for the manifest."""
        return {"hyper": dict(own_values(self.learner.hyper))}

    def differences(self, file: File) -> list[str]:
        """List the names that either the learner or the checkpoint does not have."""
        present, stored = own_values(self.learner.hyper), file.manifest["hyper"]
        return [
            f"hyper {name}: {'not here' if name in stored else 'not in the checkpoint'}"
            for name in sorted(set(present) ^ set(stored))
        ]

    def load(self, file: File, undo: ExitStack) -> None:
        """Set the scalars to those of a checkpoint."""
        self.keep(undo)
        own_values(self.learner.hyper).update({name: float(value) for name, value in file.manifest["hyper"].items()})

    def keep(self, undo: ExitStack) -> None:
        """Let ``undo`` bring back the present scalars."""
        values = own_values(self.learner.hyper)
        undo.callback(values.update, dict(values))


class Carried(CheckpointPart):
    """What callbacks carry from step to step in ``learner.shared``."""

    def save(self, arrays: Arrays) -> Manifest:
        """Add the leaves of each carried value under ``shared/``, its name and a number."""
        arrays.update({f"shared/{name}": value for name, value in self._arrays().items()})
        return {}

    def differences(self, file: File) -> list[str]:
        """List the leaves that have another name or shape."""
        lines = differences(self._arrays(), file.part("shared/"), dtypes=False)  # a count may be an int, or an array
        return [f"shared: {line}" for line in lines]

    def load(self, file: File, undo: ExitStack) -> None:
        """Put the arrays of a checkpoint into trees of the present structure."""
        shared, arrays = self.learner.shared, file.part("shared/")
        for name, tree in self._trees().items():
            undo.callback(setattr, shared, name, tree)
            setattr(shared, name, self._filled(tree, [arrays[key] for key in self._keys(name, tree)]))

    def _trees(self) -> dict[str, Tree]:
        names = dict.fromkeys(
            path.removeprefix("shared.") for callback in self.learner.callbacks for path in callback.carries
        )
        return {name: getattr(self.learner.shared, name) for name in names}

    def _keys(self, name: str, tree: Tree) -> list[str]:
        return [f"{name}/{number}" for number in range(len(self.learner.backend.tree_leaves(tree)))]

    def _arrays(self) -> Arrays:
        backend, arrays = self.learner.backend, Arrays()
        for name, tree in self._trees().items():
            leaves = [np.asarray(backend.to_host(leaf)) for leaf in backend.tree_leaves(tree)]
            arrays.update(zip(self._keys(name, tree), leaves, strict=True))
        return arrays

    def _filled(self, tree: Tree, values: list[Array]) -> Tree:
        backend, new_leaves = self.learner.backend, iter(values)

        def leaf(old: Array) -> Array:
            new = next(new_leaves)
            # A callback that carries a Python number gets one again: an array would have the precision of the backend.
            if isinstance(old, (bool, int, float, complex)):
                return type(old)(new)
            # `convert` would give a floating array the dtype of the parameters, and cannot know a typed key of JAX by
            # its numbers.
            restore = getattr(backend, "restore", None)
            return backend.convert(new) if restore is None else restore(new, old)

        return backend.tree_map(leaf, tree)


def _listed(optimizers: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} for {prefix!r}" if prefix else name for prefix, name in optimizers) or "none"
