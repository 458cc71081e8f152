"""Array-API spellings of TensorFlow functions; only what differs from TensorFlow's own spelling is written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import tensorflow as tf

from loopcore.backend import Array

Axis: TypeAlias = int | tuple[int, ...] | None
Number: TypeAlias = bool | int | float


def pair(x1: Array | Number, x2: Array | Number) -> tuple[Array, Array]:
    """Bring two operands to one dtype: that of the array for a number, else the wider of both.

    TensorFlow's own operations promote nothing, as those of the other frameworks do.
    """
    if not isinstance(x1, (tf.Tensor, tf.Variable)):
        x2 = tf.convert_to_tensor(x2)
        return tf.cast(x1, x2.dtype) if hasattr(x1, "dtype") else tf.constant(x1, x2.dtype), x2
    if not isinstance(x2, (tf.Tensor, tf.Variable)):
        second, first = pair(x2, x1)
        return first, second
    if x1.dtype != x2.dtype:
        wider = tf.experimental.numpy.result_type(x1.dtype, x2.dtype)
        # NumPy makes float64 of float32 and int32; here an array of floats decides, as in JAX and torch.
        floating = [x.dtype for x in (x1, x2) if x.dtype.is_floating]
        wider = floating[0] if len(floating) == 1 else tf.as_dtype(wider)
        return tf.cast(x1, wider), tf.cast(x2, wider)
    return x1, x2


def _keywords(axis: Axis, keepdims: bool) -> dict[str, Any]:
    """Arguments of TensorFlow's reductions, whose types know less than they take."""
    return {"axis": axis, "keepdims": keepdims}


def maximum(x1: Array | Number, x2: Array | Number, /) -> Array:
    """Elementwise larger of two arrays, or of an array and a number."""
    return tf.maximum(*pair(x1, x2))


def minimum(x1: Array | Number, x2: Array | Number, /) -> Array:
    """Elementwise smaller of two arrays, or of an array and a number."""
    return tf.minimum(*pair(x1, x2))


def where(condition: Array, x1: Array | Number, x2: Array | Number, /) -> Array:
    """Elements of the first where the condition holds, else of the second; both may be numbers."""
    if not (isinstance(x1, (tf.Tensor, tf.Variable)) or isinstance(x2, (tf.Tensor, tf.Variable))):
        return tf.where(condition, x1, x2)
    return tf.where(condition, *pair(x1, x2))


def clip(x: Array, /, min: Array | Number | None = None, max: Array | Number | None = None) -> Array:
    """Limit to ``[min, max]``; None is no limit."""
    if min is not None:
        x = maximum(x, min)
    return x if max is None else minimum(x, max)


def isfinite(x: Array, /) -> Array:
    """Whether each element is neither infinite nor NaN."""
    return tf.math.is_finite(x) if x.dtype.is_floating else tf.ones_like(x, tf.bool)


def sum(x: Array, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Array:
    """Sum over axes, all of them by default; of bools their number."""
    x = tf.cast(x, tf.int64) if x.dtype == tf.bool and dtype is None else x
    return tf.reduce_sum(x if dtype is None else tf.cast(x, dtype), **_keywords(axis, keepdims))


def mean(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean over axes; of integers and bools in float32."""
    return tf.reduce_mean(x if x.dtype.is_floating else tf.cast(x, tf.float32), **_keywords(axis, keepdims))


def var(x: Array, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Array:
    """Variance over axes; ``correction=1`` divides by n - 1."""
    variance = tf.math.reduce_variance(x, **_keywords(axis, keepdims))
    if not correction:
        return variance
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    lengths = [x.shape[dimension] for dimension in axes]
    # In a program for any batch size a length is known only when it runs.
    if None not in lengths:
        return variance * (prod(lengths) / (prod(lengths) - correction))
    count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(x), [dimension % x.ndim for dimension in axes])), x.dtype)
    return variance * (count / (count - correction))


def max(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest value; ties share the gradient."""
    return tf.reduce_max(x, **_keywords(axis, keepdims))


def min(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Smallest value; ties share the gradient."""
    return tf.reduce_min(x, **_keywords(axis, keepdims))


def any(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether some element is true (not zero)."""
    return tf.reduce_any(tf.cast(x, tf.bool), **_keywords(axis, keepdims))


def all(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether every element is true (not zero)."""
    return tf.reduce_all(tf.cast(x, tf.bool), **_keywords(axis, keepdims))


def argmax(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Index of the largest value; of the flat array without ``axis``."""
    return _index(tf.argmax, x, axis, keepdims)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Index of the smallest value; of the flat array without ``axis``."""
    return _index(tf.argmin, x, axis, keepdims)


def _index(find: Callable[..., Array], x: Array, axis: int | None, keepdims: bool) -> Array:
    """Indices that ``find`` gives along an axis, or in the flat array, which TensorFlow does not search by itself."""
    indices = find(tf.reshape(x, (-1,)) if axis is None else x, axis=axis or 0)
    if not keepdims:
        return indices
    return tf.reshape(indices, (1,) * x.ndim) if axis is None else tf.expand_dims(indices, axis)


def matmul(x1: Array, x2: Array, /) -> Array:
    """Matrix product of the last two axes; a vector is a row on the left, a column on the right."""
    # TensorFlow multiplies matrices only: a vector gets an axis of length 1, which the product loses again.
    row, column = x1.ndim == 1, x2.ndim == 1
    x1 = x1[tf.newaxis, :] if row else x1
    x2 = x2[:, tf.newaxis] if column else x2
    product = tf.matmul(x1, x2)
    product = tf.squeeze(product, -1) if column else product
    return tf.squeeze(product, -1 if column else -2) if row else product


def einsum(subscripts: str, /, *operands: Array) -> Array:
    """Sum of products over named axes; lengths of one name agree.

    Args:
        subscripts: as ``"ij,jk->ik"``, a letter for each axis; ``...`` stands for further ones.
        operands: an array for each term.
    """
    return tf.einsum(subscripts, *operands)


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0) -> Array:
    """Join arrays along an axis; None flattens them first."""
    if axis is None:
        return tf.concat([tf.reshape(x, (-1,)) for x in arrays], 0)
    return tf.concat(list(arrays), axis)


def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    """Join arrays of one shape along a new axis."""
    return tf.stack(list(arrays), axis)


def reshape(x: Array, /, shape: int | Sequence[int]) -> Array:
    """The same elements in another shape; one length may be -1."""
    return tf.reshape(x, (shape,) if isinstance(shape, int) else tuple(shape))


def permute_dims(x: Array, /, axes: Sequence[int]) -> Array:
    """Reorder the axes."""
    return tf.transpose(x, tuple(axes))


def expand_dims(x: Array, /, *, axis: int = 0) -> Array:
    """Insert an axis of length 1."""
    return tf.expand_dims(x, axis)


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    """Remove axes, which must have length 1."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for dimension in axes:
        if x.shape[dimension] != 1:
            raise ValueError(f"squeeze: axis {dimension} of shape {tuple(x.shape)} has not length 1")
    return tf.squeeze(x, axes)


def broadcast_to(x: Array, /, shape: Sequence[int]) -> Array:
    """Repeat along axes of length 1 and new leading ones."""
    return tf.broadcast_to(x, tuple(shape))


def flip(x: Array, /, *, axis: Axis = None) -> Array:
    """Reverse along axes, all of them by default."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tf.reverse(x, [dimension % x.ndim for dimension in axes])


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """Pick slices along an axis; ``indices`` (integers, any shape) stand in its place."""
    if axis is None and x.ndim != 1:
        raise ValueError(f"take from an array of shape {tuple(x.shape)} needs axis=")
    return tf.gather(x, indices, axis=axis or 0)


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """Pick elements along an axis, one index each."""
    # `tf.gather` has batch axes only in front: the axis goes to the end, and back afterwards.
    at = axis % x.ndim
    order = (*(n for n in range(x.ndim) if n != at), at)
    back = tuple(order.index(n) for n in range(x.ndim))
    leading = [x.shape[n] for n in order[:-1]]  # the other axes of both broadcast against each other
    indices_last = tf.transpose(indices, order)
    wide = [size if size != 1 else other for size, other in zip(leading, indices_last.shape[:-1], strict=True)]
    indices_last = tf.broadcast_to(indices_last, (*wide, indices_last.shape[-1]))
    values = tf.broadcast_to(tf.transpose(x, order), (*wide, x.shape[at]))
    return tf.transpose(tf.gather(values, indices_last, axis=-1, batch_dims=x.ndim - 1), back)


def astype(x: Array, dtype: Any, /) -> Array:
    """Convert to another dtype."""
    return tf.cast(x, dtype)


def zeros_like(x: Array, /, *, dtype: Any = None) -> Array:
    """Zeros of the same shape, and dtype unless given."""
    return tf.zeros_like(x, dtype)


def ones_like(x: Array, /, *, dtype: Any = None) -> Array:
    """Ones of the same shape, and dtype unless given."""
    return tf.ones_like(x, dtype)


def full_like(x: Array, /, fill_value: Array | Number, *, dtype: Any = None) -> Array:
    """One value in the same shape, and dtype unless given."""
    return tf.broadcast_to(scalar(fill_value, dtype or x.dtype), x.shape)


def scalar(value: Array | Number, dtype: Any) -> Array:
    """A number or an array in a dtype; a number is not rounded to float32 on the way."""
    if isinstance(value, (bool, int, float)):
        kind = tf.as_dtype(dtype)  # a float in an integer dtype is cut, as everywhere else
        return tf.constant(bool(value) if dtype == tf.bool else int(value) if kind.is_integer else value, dtype)
    return tf.cast(value, dtype)


def softmax(x: Array, /, *, axis: int = -1) -> Array:
    """Exponentials that sum to 1 along an axis."""
    return tf.nn.softmax(x, axis)


def log_softmax(x: Array, /, *, axis: int = -1) -> Array:
    """Logarithm of `softmax`, without overflow."""
    return tf.nn.log_softmax(x, axis)


def logsumexp(x: Array, /, *, axis: Axis = None, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` without overflow."""
    return tf.reduce_logsumexp(x, **_keywords(axis, keepdims))


def vector_norm(x: Array, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Array:
    """Norm of vectors along axes. Its first and second gradients are 0 at the zero vector."""
    if ord != 2 or x.dtype.is_complex:
        return tf.norm(x, ord, **_keywords(axis, keepdims))
    squares = tf.reduce_sum(x * x, **_keywords(axis, keepdims))
    zero = squares == 0  # the gradient of a root is infinite there
    roots = tf.sqrt(tf.where(zero, tf.ones_like(squares), squares))
    return tf.where(zero, tf.zeros_like(squares), roots)
