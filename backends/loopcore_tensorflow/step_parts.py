"""Parts of a step that is cut, compiled one by one: model calls and updates."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, cast

import optree
import tensorflow as tf

from loopcore.backend import Tree
from loopcore_tensorflow.arrays import Arrays
from loopcore_tensorflow.programs import Programs


class StepParts:
    """Compiles parts of a step and runs them; an open tape sees each run as one operation.

    Args:
        arrays: makes tensors of the arguments.
        xla: whether they are compiled with ``jit_compile``.
    """

    def __init__(self, arrays: Arrays, xla: bool) -> None:
        self._programs = Programs(arrays, xla)
        self._compiled: dict[Hashable, Callable[..., Any]] = {}

    def clear(self) -> None:
        """Forget all programs, since they hold the variables of models and optimizers that were replaced."""
        self._compiled.clear()

    def run(self, key: Hashable, fn: Callable[..., Tree], *trees: Tree) -> Tree:
        """Return ``fn(*trees)``, run as a program that is compiled once for each key.

        Where an argument is more than tensors, ``fn`` is called as it is.

        Args:
            key: names a function that always does the same.
            fn: tensor code.
            trees: its arguments.
        """
        # A program would bake in a number or an object of the first call, and use it in every later one.
        if not all(isinstance(leaf, tf.Tensor) for leaf in optree.tree_leaves(cast(Any, trees))):
            return fn(*trees)
        # The compiled function has a program for each shape and dtype of its arguments by itself.
        if key not in self._compiled:
            self._compiled[key] = self._programs.compile(lambda *arguments: (fn(*arguments), None))
        return self._compiled[key](*trees)[0]
