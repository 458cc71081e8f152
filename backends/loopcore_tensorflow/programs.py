"""Compiling: one ``tf.function`` for each structure and shape of the arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import optree
import tensorflow as tf

from loopcore.backend import Tree
from loopcore_tensorflow.arrays import Arrays, Eager, is_symbolic

_READS = ("numpy", "item", "tolist")  # methods of tensors that have a value


class TracedRead(Exception):
    """A trace read the value of a tensor that has none yet."""


class LeakedTensor(Exception):
    """A trace met a tensor of another one.

    Attributes:
        lines: where that tensor was made, the innermost last: file and number of each line.
    """

    lines: tuple[tuple[str, int], ...] = ()


class TracedProgram(NamedTuple):
    """One traced program.

    Attributes:
        run: takes the leaves of the arguments, returns those of the results.
        results: the structure of the results.
        recorded: the object that the function returned besides the tree when it was traced.
    """

    run: Callable[..., Any]
    results: Any
    recorded: Any


class Programs:
    """Makes programs of functions that read and write variables.

    Args:
        arrays: makes tensors of the arguments.
        xla: whether they are compiled with ``jit_compile``.

    Attributes:
        traces: how often a function was traced.
    """

    def __init__(self, arrays: Arrays, xla: bool) -> None:
        self._arrays = arrays
        self._xla = xla or None
        self.traces = 0

    def compile(
        self, fn: Callable[..., tuple[Tree, Any]], donate: tuple[int, ...] = ()
    ) -> Callable[..., tuple[Tree, Any]]:
        """``fn(*trees) -> (tree, recorded)`` as a program.

        Concrete functions are called themselves: what ``tf.function`` does to find the one that fits costs a small
        step 100 microseconds, the same for flat arguments here 5.
        """
        programs: dict[Any, TracedProgram] = {}

        def call(*trees: Tree) -> tuple[Tree, Any]:
            leaves, spec = optree.tree_flatten(cast(Any, trees))
            # Numbers become inputs too, or each value would be traced anew.
            tensors = [leaf if type(leaf) is Eager else self._input(leaf) for leaf in leaves]
            key = (spec, *[(tensor.dtype, *tensor.shape) for tensor in tensors])
            program = programs.get(key)
            if program is None:
                program = programs[key] = self._trace(fn, spec, tensors)
            return optree.tree_unflatten(program.results, program.run(*tensors)), program.recorded

        return call

    def _input(self, leaf: Any) -> Any:
        """A number or an array of the host as a tensor; floats in the parameters' dtype."""
        return tf.constant(leaf, self._arrays.dtype if isinstance(leaf, float) else None)

    def _trace(self, fn: Callable[..., tuple[Tree, Any]], spec: Any, tensors: list[Any]) -> TracedProgram:
        """Trace a function for arguments of this structure, and these shapes and dtypes.

        Raises:
            TracedRead: it read the value of a tensor.
            LeakedTensor: it met a tensor of another trace.
        """
        outputs: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            # TensorFlow traces when it likes; what the trace found out leaves it by ``outputs``.
            try:
                tree, recorded = fn(*optree.tree_unflatten(spec, leaves))
            except (TypeError, NotImplementedError, AttributeError) as error:
                kind = _kind_of(error)
                if kind is None:
                    raise
                better = kind(str(error)).with_traceback(error.__traceback__)
                for note in getattr(error, "__notes__", ()):
                    better.add_note(note)
                raise better from error
            results, structure = optree.tree_flatten(tree)
            outputs[:] = structure, recorded
            self.traces += 1
            return [tf.convert_to_tensor(result) for result in results]

        function = tf.function(flat, autograph=False, jit_compile=self._xla)
        program = function.get_concrete_function(*[tf.TensorSpec(t.shape, t.dtype) for t in tensors])
        # A tensor of another trace that is still alive is captured as an input, which nobody could feed.
        for leaked in filter(is_symbolic, program.captured_inputs):
            error = LeakedTensor(f"{leaked} is a tensor of another trace")
            error.lines = tuple((line.filename, line.lineno) for line in leaked.op.traceback)
            raise error
        return TracedProgram(program, *outputs)


def _kind_of(error: Exception) -> type[Exception] | None:
    """The type of an error that says a tensor has no value, or is of another trace; None for any other error.

    TensorFlow has no types for these, so that their texts have to tell.
    """
    text = str(error)
    if "out of scope" in text:
        return LeakedTensor
    if isinstance(error, AttributeError):
        return TracedRead if isinstance(error.obj, tf.Tensor) and error.name in _READS else None
    reads = isinstance(error, tf.errors.OperatorNotAllowedInGraphError)
    return TracedRead if reads or "SymbolicTensor" in text or "symbolic tf.Tensor" in text else None
