"""``learner.xp``: the portable array functions, in array-API spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from loopcore.backend import Array, Tree
from loopcore.backend.array_namespace import LinalgNamespace, host_array, taking_constants
from loopcore.backend.iteration import IteratingNamespace
from loopcore_tensorflow import functions, linalg, neural, ordering
from loopcore_tensorflow.arrays import is_symbolic
from loopcore_tensorflow.functions import Number
from loopcore_tensorflow.iteration import scan


@taking_constants("tensorflow", converts=True)
class Linalg(LinalgNamespace):
    """``xp.linalg``."""

    __slots__ = ()
    vector_norm = staticmethod(functions.vector_norm)
    solve = staticmethod(linalg.solve)
    slogdet = staticmethod(linalg.slogdet)
    inv = staticmethod(linalg.inv)


@taking_constants("tensorflow", converts=True)
class Namespace(IteratingNamespace):
    """The functions of ``learner.xp``. Creation functions make arrays of one floating dtype on one device.

    Args:
        dtype: of floating arrays that are created without a dtype.
        device: where arrays are created; None is TensorFlow's own default.
    """

    __slots__ = ("_linalg", "device", "dtype")

    def __init__(self, dtype: Any, device: str | None = None) -> None:
        self.dtype = dtype
        self.device = device
        self._linalg = Linalg(self)

    @property
    def linalg(self) -> Linalg:
        """Linear algebra."""
        return self._linalg

    # -- creation ----------------------------------------------------------------------------------------------

    def zeros(self, shape: int | Sequence[int], *, dtype: Any = None) -> Array:
        """Zeros."""
        return self.full(shape, 0, dtype=dtype or self.dtype)

    def ones(self, shape: int | Sequence[int], *, dtype: Any = None) -> Array:
        """Ones."""
        return self.full(shape, 1, dtype=dtype or self.dtype)

    def full(self, shape: int | Sequence[int], fill_value: Array | Number, *, dtype: Any = None) -> Array:
        """One value everywhere; a float in the parameters' dtype, an integer or a bool in its own."""
        if dtype is None and isinstance(fill_value, float):
            dtype = self.dtype
        with self._placed():
            value = tf.convert_to_tensor(fill_value) if dtype is None else functions.scalar(fill_value, dtype)
            return tf.broadcast_to(value, (shape,) if isinstance(shape, int) else tuple(shape))

    def asarray(self, x: Any, /, *, dtype: Any = None) -> Array:
        """Numbers, lists of them and arrays of any framework as an array on the device.

        A native array stays what it is, in its dtype and with its gradient. Floats of anything else get the
        parameters' dtype, integers and bools keep their kind.

        Args:
            x: what to convert.
            dtype: of the result, also of a native array.

        Raises:
            TypeError: ``x`` holds no numbers, or is a list of native arrays.
        """
        if _is_native(x):
            tensor = tf.convert_to_tensor(x)
            tensor = tensor if dtype is None else tf.cast(tensor, dtype)
            if self.device is None or is_symbolic(tensor) or tensor.device.endswith(self.device):
                return tensor
            with self._placed():
                return tf.identity(tensor)
        host = host_array(x, _is_native, np.int32)
        if dtype is None:
            dtype = self.dtype if tf.as_dtype(host.dtype).is_floating else host.dtype
        with self._placed():
            return tf.constant(host.astype(tf.as_dtype(dtype).as_numpy_dtype))

    def arange(self, start: Number, /, stop: Number | None = None, step: Number = 1, *, dtype: Any = None) -> Array:
        """Evenly spaced numbers, ``stop`` excluded; integers unless a float is among the arguments."""
        first, last = (0, start) if stop is None else (start, stop)
        if dtype is None:
            dtype = self.dtype if any(isinstance(n, float) for n in (first, last, step)) else tf.int32
        with self._placed():
            return tf.range(first, last, step, dtype)

    def eye(self, n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None) -> Array:
        """Ones on the k-th diagonal."""
        with self._placed():
            # `tf.eye` has no other diagonals.
            rows, columns = tf.range(n_rows), tf.range(n_rows if n_cols is None else n_cols)
            return tf.cast(columns - rows[:, tf.newaxis] == k, dtype or self.dtype)

    def one_hot(self, x: Array, num_classes: int, /, *, dtype: Any = None) -> Array:
        """``(...)`` integers below ``num_classes`` -> ``(..., num_classes)`` zeros and ones."""
        # TensorFlow's kernel takes these integers only.
        labels = x if x.dtype in (tf.uint8, tf.int8, tf.int32, tf.int64) else tf.cast(x, tf.int64)
        return tf.cast(tf.one_hot(labels, num_classes, dtype=self.dtype), dtype or self.dtype)

    def where(self, condition: Array, x1: Array | Number, x2: Array | Number, /) -> Array:
        """Elements of the first where the condition holds, else of the second; both may be numbers."""
        if isinstance(x1, (int, float)) and isinstance(x2, (int, float)):
            x1 = tf.constant(x1, self.dtype if isinstance(x1, float) or isinstance(x2, float) else None)
        return self._where(condition, x1, x2)

    def _placed(self) -> AbstractContextManager[Any]:
        """A block whose new tensors are on the device."""
        return nullcontext() if self.device is None else tf.device(self.device)

    zeros_like = staticmethod(functions.zeros_like)
    ones_like = staticmethod(functions.ones_like)
    full_like = staticmethod(functions.full_like)

    # -- elementwise -------------------------------------------------------------------------------------------

    abs = staticmethod(tf.abs)
    exp = staticmethod(tf.exp)
    log = staticmethod(tf.math.log)
    log1p = staticmethod(tf.math.log1p)
    expm1 = staticmethod(tf.math.expm1)
    sqrt = staticmethod(tf.sqrt)
    square = staticmethod(tf.square)
    sign = staticmethod(tf.sign)
    tanh = staticmethod(tf.tanh)
    sin = staticmethod(tf.sin)
    cos = staticmethod(tf.cos)
    isfinite = staticmethod(functions.isfinite)
    _where = staticmethod(functions.where)
    maximum = staticmethod(functions.maximum)
    minimum = staticmethod(functions.minimum)
    clip = staticmethod(functions.clip)
    astype = staticmethod(functions.astype)
    relu = staticmethod(tf.nn.relu)
    sigmoid = staticmethod(tf.sigmoid)
    softplus = staticmethod(tf.nn.softplus)

    # -- along axes --------------------------------------------------------------------------------------------

    sum = staticmethod(functions.sum)
    mean = staticmethod(functions.mean)
    var = staticmethod(functions.var)
    max = staticmethod(functions.max)
    min = staticmethod(functions.min)
    any = staticmethod(functions.any)
    all = staticmethod(functions.all)
    argmax = staticmethod(functions.argmax)
    argmin = staticmethod(functions.argmin)
    softmax = staticmethod(functions.softmax)
    log_softmax = staticmethod(functions.log_softmax)
    logsumexp = staticmethod(functions.logsumexp)
    matmul = staticmethod(functions.matmul)
    einsum = staticmethod(functions.einsum)

    # -- networks ----------------------------------------------------------------------------------------------

    conv = staticmethod(neural.conv)
    avg_pool = staticmethod(neural.avg_pool)
    max_pool = staticmethod(neural.max_pool)
    gelu = staticmethod(neural.gelu)
    silu = staticmethod(neural.silu)
    layer_norm = staticmethod(neural.layer_norm)

    # -- shapes ------------------------------------------------------------------------------------------------

    concat = staticmethod(functions.concat)
    stack = staticmethod(functions.stack)
    reshape = staticmethod(functions.reshape)
    permute_dims = staticmethod(functions.permute_dims)
    expand_dims = staticmethod(functions.expand_dims)
    squeeze = staticmethod(functions.squeeze)
    broadcast_to = staticmethod(functions.broadcast_to)
    flip = staticmethod(functions.flip)
    take = staticmethod(functions.take)
    take_along_axis = staticmethod(functions.take_along_axis)

    # -- order and sequences -------------------------------------------------------------------------------------

    matrix_transpose = staticmethod(ordering.matrix_transpose)
    logaddexp = staticmethod(ordering.logaddexp)
    cumulative_sum = staticmethod(ordering.cumulative_sum)
    sort = staticmethod(ordering.sort)
    argsort = staticmethod(ordering.argsort)
    top_k = staticmethod(ordering.top_k)
    segment_sum = staticmethod(ordering.segment_sum)

    def _scan(self, fn: Callable[[Any, Any], tuple[Any, Any]], init: Tree, xs: Tree) -> tuple[Tree, Tree]:
        return scan(fn, init, xs)

    def _vmap(self, fn: Callable[..., Any], trees: list[Tree]) -> Tree:
        return tf.vectorized_map(lambda examples: fn(*examples), tuple(trees))

    # -- dtypes ------------------------------------------------------------------------------------------------

    float32 = tf.float32
    int32 = tf.int32
    int64 = tf.int64
    bool = tf.bool


def _is_native(value: Any) -> bool:
    """Whether it is a tensor or a variable, those of Keras included."""
    return isinstance(value, (tf.Tensor, tf.Variable)) or hasattr(value, "__tf_tensor__")
