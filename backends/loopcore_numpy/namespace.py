"""What `learner.xp` is on NumPy: the portable list of array functions, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from autograd.tracer import getval, isbox

from loopcore.backend import Array
from loopcore.backend.array_namespace import LinalgNamespace, host_array, is_floating, refusing
from loopcore.backend.iteration import IteratingNamespace
from loopcore_numpy import functions as f
from loopcore_numpy import linalg, neural, ordering
from loopcore_numpy.derivatives import Axis

_DTYPES = {"float32": np.float32, "int32": np.int32, "int64": np.int64, "bool": np.bool_}
# fmt: off
_SHARED = (
    "abs", "exp", "log", "log1p", "expm1", "sqrt", "square", "sign", "tanh", "sin", "cos", "maximum", "minimum", "clip",
    "where", "sum", "max", "min", "any", "all", "argmax", "argmin", "concat", "stack", "reshape", "permute_dims",
    "expand_dims", "squeeze", "broadcast_to", "flip", "take", "take_along_axis", "matmul", "astype", "isfinite",
    "relu", "sigmoid", "softplus", "softmax", "log_softmax", "logsumexp", "einsum",
)
_NEURAL = ("conv", "avg_pool", "max_pool", "gelu", "silu", "layer_norm")
_ORDERING = ("matrix_transpose", "logaddexp", "cumulative_sum", "sort", "argsort", "top_k", "segment_sum")
# fmt: on


class Linalg(LinalgNamespace):
    """``xp.linalg``."""

    __slots__ = ()
    vector_norm = staticmethod(refusing("xp.linalg.vector_norm", f.vector_norm, "numpy"))
    solve = staticmethod(refusing("xp.linalg.solve", linalg.solve, "numpy"))
    slogdet = staticmethod(refusing("xp.linalg.slogdet", linalg.slogdet, "numpy"))
    inv = staticmethod(refusing("xp.linalg.inv", linalg.inv, "numpy"))


class Namespace(IteratingNamespace):
    """Array functions with array-API signatures; creation and means of integers answer in the parameters' dtype.

    Args:
        dtype: the floating dtype of what is created.

    Example:
        >>> import numpy as np
        >>> xp = Namespace(np.dtype(np.float32))
        >>> xp.mean(xp.one_hot(np.array([0, 2]), 3)).dtype
        dtype('float32')
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        vars(self).update(_DTYPES, linalg=Linalg(self))
        for module, names in ((f, _SHARED), (neural, _NEURAL), (ordering, _ORDERING)):
            vars(self).update({name: refusing(f"xp.{name}", getattr(module, name), "numpy") for name in names})

    def _or_own(self, dtype: Any) -> Any:
        return self._dtype if dtype is None else dtype

    def _floating(self, x: Array) -> Array:
        return x if isbox(x) or np.asarray(x).dtype.kind == "f" else np.asarray(x, self._dtype)

    def mean(self, x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
        """Mean over the axes; of integers and bools in the parameters' dtype."""
        return f.mean(self._floating(x), axis, keepdims)

    def var(self, x: Array, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        """Variance over the axes, divided by their length minus ``correction``."""
        return f.var(self._floating(x), axis, correction, keepdims)

    def zeros(self, shape: int | Sequence[int], dtype: Any = None) -> Array:
        """An array of zeros."""
        return np.zeros(shape, self._or_own(dtype))

    def ones(self, shape: int | Sequence[int], dtype: Any = None) -> Array:
        """An array of ones."""
        return np.ones(shape, self._or_own(dtype))

    def full(self, shape: int | Sequence[int], fill_value: Any, dtype: Any = None) -> Array:
        """An array of one value; a float in the parameters' dtype, an integer or a bool in its own."""
        if dtype is None:
            dtype = self._dtype if isinstance(fill_value, float) else np.asarray(getval(fill_value)).dtype
        value = f.astype(fill_value, dtype)
        return value + np.zeros(shape, value.dtype)

    def zeros_like(self, x: Array, dtype: Any = None) -> Array:
        """Zeros in the shape and dtype of another array."""
        return np.zeros_like(getval(x), dtype=dtype)

    def ones_like(self, x: Array, dtype: Any = None) -> Array:
        """Ones in the shape and dtype of another array."""
        return np.ones_like(getval(x), dtype=dtype)

    def full_like(self, x: Array, fill_value: Any, dtype: Any = None) -> Array:
        """One value in the shape and dtype of another array."""
        return self.full(x.shape, fill_value, x.dtype if dtype is None else dtype)

    def asarray(self, x: Any, /, *, dtype: Any = None) -> Array:
        """Numbers, lists of them and arrays of any framework as an array on the device.

        Inside an objective an array stays what it is, in its dtype and with its gradient. Floats of anything else get
        the parameters' dtype, integers and bools keep their kind.

        Args:
            x: what to convert.
            dtype: of the result.

        Raises:
            TypeError: ``x`` holds no numbers, or is a list of arrays inside an objective.
        """
        if not isbox(x):
            x = host_array(x, isbox)
            dtype = self._dtype if dtype is None and is_floating(x.dtype) else dtype
        return x if dtype is None or x.dtype == dtype else f.astype(x, dtype)

    def arange(self, start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Array:
        """Evenly spaced values; int64 if all of ``start``, ``stop`` and ``step`` are integers."""
        start, stop = (0, start) if stop is None else (start, stop)
        integers = all(isinstance(value, (int, np.integer)) for value in (start, stop, step))
        return np.arange(start, stop, step, dtype=np.int64 if dtype is None and integers else self._or_own(dtype))

    def eye(self, n_rows: int, n_cols: int | None = None, k: int = 0, dtype: Any = None) -> Array:
        """Ones on a diagonal, zeros elsewhere."""
        return np.eye(n_rows, n_cols, k=k, dtype=self._or_own(dtype))

    def one_hot(self, x: Array, num_classes: int, dtype: Any = None) -> Array:
        """``(...)`` integers -> ``(..., num_classes)``, 1 at the class and 0 elsewhere."""
        return (np.asarray(getval(x))[..., None] == np.arange(num_classes)).astype(self._or_own(dtype))
