"""``learner.xp``: the portable array functions, in array-API spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from loopcore.backend import Array, Tree
from loopcore.backend.array_namespace import LinalgNamespace, host_array, is_floating, taking_constants
from loopcore.backend.iteration import IteratingNamespace
from loopcore_jax import functions, linalg, neural, ordering
from loopcore_jax.arrays import canonical, is_traced

Number: TypeAlias = bool | int | float


@taking_constants("jax")
class Linalg(LinalgNamespace):
    """``xp.linalg``."""

    __slots__ = ()
    vector_norm = staticmethod(functions.vector_norm)
    solve = staticmethod(linalg.solve)
    slogdet = staticmethod(linalg.slogdet)
    inv = staticmethod(linalg.inv)


@taking_constants("jax")
class Namespace(IteratingNamespace):
    """The functions of ``learner.xp``. Creation functions make arrays of one floating dtype on one device.

    Args:
        dtype: of floating arrays that are created without a dtype.
        device: where arrays are created; None is JAX's own default.
    """

    __slots__ = ("_linalg", "device", "dtype")

    def __init__(self, dtype: np.dtype[Any], device: Any = None) -> None:
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
        return jnp.zeros(shape, dtype or self.dtype, device=self.device)

    def ones(self, shape: int | Sequence[int], *, dtype: Any = None) -> Array:
        """Ones."""
        return jnp.ones(shape, dtype or self.dtype, device=self.device)

    def full(self, shape: int | Sequence[int], fill_value: Array | Number, *, dtype: Any = None) -> Array:
        """One value everywhere; a float in the parameters' dtype, an integer or a bool in its own."""
        if dtype is None:
            dtype = self.dtype if isinstance(fill_value, float) else jnp.result_type(fill_value)
        return jnp.full(shape, fill_value, dtype, device=self.device)

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
            array = jnp.asarray(x, None if dtype is None else canonical(dtype))
        else:
            host = host_array(x, _is_native, canonical(np.int64))
            if dtype is None:
                dtype = self.dtype if is_floating(host.dtype) else host.dtype
            array = jnp.asarray(np.array(host, canonical(dtype), order="C"))  # a copy, which JAX may keep
        return array if self.device is None or is_traced(array) else jax.device_put(array, self.device)

    def arange(self, start: Number, /, stop: Number | None = None, step: Number = 1, *, dtype: Any = None) -> Array:
        """Evenly spaced numbers, ``stop`` excluded; integers unless a float is among the arguments."""
        first, last = (0, start) if stop is None else (start, stop)
        if dtype is None:
            floating = any(isinstance(number, float) for number in (first, last, step))
            dtype = self.dtype if floating else canonical(np.int64)
        return jnp.arange(first, last, step, dtype, device=self.device)

    def eye(self, n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None) -> Array:
        """Ones on the k-th diagonal."""
        return jnp.eye(n_rows, n_cols, k, dtype or self.dtype, device=self.device)

    def one_hot(self, x: Array, num_classes: int, /, *, dtype: Any = None) -> Array:
        """``(...)`` integers below ``num_classes`` -> ``(..., num_classes)`` zeros and ones."""
        return jax.nn.one_hot(x, num_classes, dtype=dtype or self.dtype)

    zeros_like = staticmethod(jnp.zeros_like)
    ones_like = staticmethod(jnp.ones_like)
    full_like = staticmethod(jnp.full_like)

    # -- elementwise -------------------------------------------------------------------------------------------

    abs = staticmethod(jnp.abs)
    exp = staticmethod(jnp.exp)
    log = staticmethod(jnp.log)
    log1p = staticmethod(jnp.log1p)
    expm1 = staticmethod(jnp.expm1)
    sqrt = staticmethod(jnp.sqrt)
    square = staticmethod(jnp.square)
    sign = staticmethod(functions.sign)
    tanh = staticmethod(jnp.tanh)
    sin = staticmethod(jnp.sin)
    cos = staticmethod(jnp.cos)
    isfinite = staticmethod(jnp.isfinite)
    where = staticmethod(jnp.where)
    maximum = staticmethod(jnp.maximum)
    minimum = staticmethod(jnp.minimum)
    clip = staticmethod(jnp.clip)
    astype = staticmethod(functions.astype)
    relu = staticmethod(jax.nn.relu)
    sigmoid = staticmethod(jax.nn.sigmoid)
    softplus = staticmethod(jax.nn.softplus)

    # -- along axes --------------------------------------------------------------------------------------------

    sum = staticmethod(jnp.sum)
    mean = staticmethod(jnp.mean)
    var = staticmethod(jnp.var)
    max = staticmethod(jnp.max)
    min = staticmethod(jnp.min)
    any = staticmethod(jnp.any)
    all = staticmethod(jnp.all)
    argmax = staticmethod(jnp.argmax)
    argmin = staticmethod(jnp.argmin)
    softmax = staticmethod(functions.softmax)
    log_softmax = staticmethod(functions.log_softmax)
    logsumexp = staticmethod(functions.logsumexp)
    matmul = staticmethod(jnp.matmul)
    einsum = staticmethod(functions.einsum)

    # -- networks ----------------------------------------------------------------------------------------------

    conv = staticmethod(neural.conv)
    avg_pool = staticmethod(neural.avg_pool)
    max_pool = staticmethod(neural.max_pool)
    gelu = staticmethod(neural.gelu)
    silu = staticmethod(neural.silu)
    layer_norm = staticmethod(neural.layer_norm)

    # -- shapes ------------------------------------------------------------------------------------------------

    concat = staticmethod(jnp.concat)
    stack = staticmethod(jnp.stack)
    reshape = staticmethod(jnp.reshape)
    permute_dims = staticmethod(jnp.permute_dims)
    expand_dims = staticmethod(jnp.expand_dims)
    squeeze = staticmethod(functions.squeeze)
    broadcast_to = staticmethod(jnp.broadcast_to)
    flip = staticmethod(jnp.flip)
    take = staticmethod(functions.take)
    take_along_axis = staticmethod(jnp.take_along_axis)

    # -- order and sequences -------------------------------------------------------------------------------------

    matrix_transpose = staticmethod(ordering.matrix_transpose)
    logaddexp = staticmethod(ordering.logaddexp)
    cumulative_sum = staticmethod(ordering.cumulative_sum)
    sort = staticmethod(ordering.sort)
    argsort = staticmethod(ordering.argsort)
    top_k = staticmethod(ordering.top_k)
    segment_sum = staticmethod(ordering.segment_sum)

    def _map(self, fn: Callable[..., Any], *trees: Tree) -> Tree:
        return jax.tree.map(fn, *trees)

    def _leaves(self, tree: Tree) -> list[Any]:
        return jax.tree.leaves(tree)

    def _scan(self, fn: Callable[[Any, Any], tuple[Any, Any]], init: Tree, xs: Tree) -> tuple[Tree, Tree]:
        return jax.lax.scan(fn, init, xs)

    def _vmap(self, fn: Callable[..., Any], trees: list[Tree]) -> Tree:
        return jax.vmap(fn)(*trees)

    # -- dtypes ------------------------------------------------------------------------------------------------

    float32 = np.dtype(np.float32)
    int32 = np.dtype(np.int32)
    bool = np.dtype(np.bool_)

    @property
    def int64(self) -> np.dtype[Any]:
        """int32 unless ``jax_enable_x64`` is set: JAX has no other 64-bit integers."""
        return canonical(np.int64)


def _is_native(value: Any) -> bool:
    """Whether it is an array of JAX, or stands for one, as variables of Flax and Keras do."""
    return isinstance(value, jax.Array) or hasattr(value, "__jax_array__")
