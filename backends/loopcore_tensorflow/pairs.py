"""Models that belong to no framework on TensorFlow: their arrays as variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from loopcore.backend import Kind, Leaves, Tree
from loopcore.backend.pairs import read
from loopcore_tensorflow.arrays import Arrays


class BoundPair:
    """A bound ``(apply_fn, params[, state])``, or a tree of arrays.

    Leaves that are a ``tf.Variable`` stay the user's own; other arrays are copied.

    Args:
        model: what the user gave.
        name: of the model, ``""`` if it is the only one.
        dtype: what NumPy arrays among the parameters become; None keeps theirs.
        arrays: knows the device.

    Attributes:
        params: variables of the parameters, by path without the model's name.
        buffers: those of the state.
        seeds: none: random numbers come by ``rng`` or from ``lc.random``.
        takes_rng: whether a call gets ``rng=``, a seed for ``tf.random.stateless_normal`` and the like.

    Raises:
        UnknownModelError: it is no such model.
    """

    seeds: tuple[Any, ...] = ()

    def __init__(self, model: Any, name: str, dtype: Any, arrays: Arrays) -> None:
        self._pair, params, state = read(name, model, is_native, "tensorflow")
        prefix = f"{name}." if name else ""
        # The core has full paths, which begin with the model's name; the user's trees have relative ones.
        self.full = {path.removeprefix(prefix): path for path in (*params, *state)}
        self._relative = {full: path for path, full in self.full.items()}
        self.params: dict[str, Any] = {
            self._relative[full]: _variable(leaf, dtype, arrays, True) for full, leaf in params.items()
        }
        self.buffers: dict[str, Any] = {
            self._relative[full]: _variable(leaf, None, arrays, False) for full, leaf in state.items()
        }
        # Which parameters are the user's own variables: `layer` hands these back as they are.
        self._users = frozenset(full for full, leaf in params.items() if isinstance(leaf, tf.Variable))
        self.takes_rng = self._pair.takes_rng

    @property
    def layer(self) -> Any:
        """Build the pair or the tree with the present values; with the user's own variables where he gave such."""

        def array(full: str) -> Any:
            variable = self._variable(full)
            return variable if full in self._users else tf.identity(variable)

        return self._pair.native(array)

    def _variable(self, full: str) -> Any:
        """The variable of a full path."""
        path = self._relative[full]
        return self.params[path] if path in self.params else self.buffers[path]

    def pack(self, kind: Kind, leaves: Leaves) -> Tree:
        """Leaves by relative path -> the user's own structure."""
        return self._pair.part(kind).pack(leaves)

    def unpack(self, kind: Kind, tree: Tree) -> Leaves:
        """Sort the leaves of a model's own tree by relative path, the inverse of `pack`.

        Raises:
            ValueError: the structure differs.
        """
        return self._pair.part(kind).unpack(tree)

    def call_with(
        self, values: Leaves, rng: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool
    ) -> tuple[Any, Leaves]:
        """Call the function with tensors for variables. It assigns to none of these.

        Args:
            values: tensors in place of variables, by relative path.
            rng: a seed, where the function takes one.
            args: of the call.
            kwargs: of the call.
            training: the mode.

        Returns:
            The result, and the new state by relative path.
        """

        def array(full: str) -> Any:
            path = self._relative[full]
            return values[path] if path in values else tf.convert_to_tensor(self._variable(full))

        parts = self._pair.part("params"), self._pair.part("buffers")
        old = {full: array(full) for full in parts[1].paths}
        result, state = self._pair.call(parts[0].build(array), old, args, kwargs, training, rng)
        return result, {self._relative[full]: self._fitting(full, value) for full, value in state.items()}

    def _fitting(self, full: str, value: Any) -> Any:
        """A new value of the state as a tensor in the dtype of its variable."""
        dtype = self._variable(full).dtype
        return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)


def is_native(leaf: Any) -> bool:
    """Whether it is a tensor or a variable."""
    return isinstance(leaf, (tf.Tensor, tf.Variable))


def _variable(leaf: Any, dtype: Any, arrays: Arrays, trainable: bool) -> Any:
    """Make a variable of a leaf; a variable among the parameters stays the user's own."""
    if isinstance(leaf, tf.Variable) and trainable:
        return leaf
    # One in the state is copied: the function gets tensors and returns new ones, and the user's own would stay behind.
    value = leaf if tf.is_tensor(leaf) else np.asarray(leaf)
    with tf.device(arrays.device):
        return tf.Variable(tf.cast(value, dtype or value.dtype), trainable=trainable)
