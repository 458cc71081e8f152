"""The array functions of `xp` that need no dtype of a learner, with array-API signatures.

All take NumPy arrays and, inside an objective, autograd's boxes around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from string import ascii_letters
from typing import Any

import numpy as np
from autograd.tracer import getval

from loopcore.backend import Array
from loopcore_numpy import derivatives as d
from loopcore_numpy.derivatives import Axis, anp

exp, log, log1p, expm1, square = anp.exp, anp.log, anp.log1p, anp.expm1, anp.square
sin, cos, matmul = anp.sin, anp.cos, anp.matmul
abs, sqrt, sign, tanh = d.absolute, d.sqrt, d.sign, d.tanh
maximum, minimum, sigmoid, softplus = d.maximum, d.minimum, d.sigmoid, d.softplus


def relu(x: Array) -> Array:
    """The positive part; its gradient at 0 is 0."""
    return d.choose(getval(x) <= 0, 0.0, x)  # in this order nan stays nan


def clip(x: Array, min: Array | None = None, max: Array | None = None) -> Array:
    """Limit values to ``[min, max]``; on a limit the gradient is that of ``x``."""
    if min is not None:
        # Strictly below, so that a value on the limit stays `x`, and has its gradient.
        x = d.choose(getval(x) < getval(min), min, x)
    return x if max is None else d.choose(getval(x) > getval(max), max, x)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Take from ``x`` where the condition holds, else from ``y``; the three broadcast."""
    return d.choose(getval(condition), x, y)


def astype(x: Array, dtype: Any) -> Array:
    """Convert; a float that becomes an integer or a bool is constant for gradients."""
    return d.astype(x if np.dtype(dtype).kind == "f" else getval(x), dtype)


def isfinite(x: Array) -> Array:
    """Where values are neither infinite nor nan."""
    return np.isfinite(getval(x))


# -- reductions ----------------------------------------------------------------------------------------------------


def sum(x: Array, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Array:
    """Sum over the axes."""
    return d.total(x if dtype is None else astype(x, dtype), axis, keepdims)


def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean over the axes."""
    return d.total(x, axis, keepdims) / _count(x, axis)


def var(x: Array, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Array:
    """Variance over the axes, divided by their length minus ``correction``."""
    # The difference of two means of squares would lose digits where the mean is large.
    deviation = x - mean(x, axis=axis, keepdims=True)
    return d.total(deviation * deviation, axis, keepdims) / (_count(x, axis) - correction)


def _count(x: Array, axis: Axis) -> int:
    shape = anp.shape(x)
    return prod(n for i, n in enumerate(shape) if i in d.axes_of(shape, axis))


def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Largest value over the axes; equal ones share the gradient."""
    return d.largest(x, axis, keepdims)


def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Smallest value over the axes; equal ones share the gradient."""
    return d.smallest(x, axis, keepdims)


def any(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether a value over the axes is not zero."""
    return np.any(getval(x), axis=axis, keepdims=keepdims)


def all(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Whether no value over the axes is zero."""
    return np.all(getval(x), axis=axis, keepdims=keepdims)


def argmax(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Index of the first largest value."""
    return np.argmax(getval(x), axis=axis, keepdims=keepdims)


def argmin(x: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Index of the first smallest value."""
    return np.argmin(getval(x), axis=axis, keepdims=keepdims)


def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """``log(sum(exp(x)))`` over the axes, without overflow."""
    return d.logsumexp(x, axis, keepdims)


def softmax(x: Array, axis: int = -1) -> Array:
    """Exponentials divided by their sum along the axis."""
    return d.softmax(x, axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Logarithm of `softmax`, without underflow."""
    return d.log_softmax(x, axis)


def vector_norm(x: Array, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Array:
    """Norm of the vectors along the axes, of order 1, 2 or inf; the gradient at 0 is 0.

    Raises:
        ValueError: another order.
    """
    if ord == 2:
        return d.euclidean(x, axis, keepdims)
    if ord == 1:
        return d.total(abs(x), axis, keepdims)
    if ord == inf:
        return d.largest(abs(x), axis, keepdims)
    raise ValueError(f"linalg.vector_norm has the orders 1, 2 and inf, not {ord!r}")


def einsum(subscripts: str, /, *operands: Array) -> Array:
    """Sum of products over named axes; lengths of one name agree.

    Args:
        subscripts: as ``"ij,jk->ik"``, a letter for each axis; ``...`` stands for further ones.
        operands: an array for each term.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    if not arrow:  # what occurs once, in the order of the alphabet
        once = sorted(letter for letter in set(inputs) - {",", "."} if inputs.count(letter) == 1)
        output = "..." * ("..." in inputs) + "".join(once)
    terms, arrays = inputs.split(","), list(operands)
    unused = iter(sorted({*ascii_letters} - {*inputs}))
    for number, x in enumerate(operands[: len(terms)]):
        while repeated := [letter for letter in terms[number] if letter != "." and terms[number].count(letter) > 1]:
            # autograd differentiates no letter twice in a term: a diagonal is a product with the unit matrix
            head, _, tail = terms[number].rpartition(repeated[0])
            twin = next(unused)
            terms[number] = head + twin + tail
            terms.append(repeated[0] + twin)
            arrays.append(
                np.eye(anp.shape(x)[-1 - len(tail) if "." not in tail else len(head)], dtype=np.result_type(getval(x)))
            )
    return anp.einsum(",".join(terms) + "->" + output, *arrays, optimize=True)


# -- shapes and indices --------------------------------------------------------------------------------------------


def concat(arrays: Sequence[Array], axis: int | None = 0) -> Array:
    """Join along an axis; with None everything is flattened first."""
    if axis is None:
        return anp.concatenate([anp.reshape(x, (-1,)) for x in arrays], 0)
    return anp.concatenate(list(arrays), axis)


def stack(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join along a new axis."""
    return anp.concatenate([anp.expand_dims(x, axis) for x in arrays], axis)


def reshape(x: Array, shape: int | Sequence[int]) -> Array:
    """The same values in another shape; one length may be -1."""
    return anp.reshape(x, shape)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Reorder the axes."""
    return anp.transpose(x, tuple(axes))


def expand_dims(x: Array, axis: int = 0) -> Array:
    """Insert an axis of length 1."""
    return anp.expand_dims(x, axis)


def squeeze(x: Array, axis: Axis = None) -> Array:
    """Remove axes of length 1."""
    return anp.squeeze(x, axis)


def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """Repeat to a larger shape, without copying."""
    return d.broadcast_to(x, tuple(shape))


def flip(x: Array, axis: Axis = None) -> Array:
    """Reverse the order along the axes."""
    return d.flip(x, axis)


def take(x: Array, indices: Array, axis: int | None = None) -> Array:
    """Pick slices by integer; without an axis ``x`` has one dimension.

    Raises:
        ValueError: ``x`` has several dimensions and no axis is named.
    """
    if axis is None and anp.ndim(x) != 1:
        raise ValueError(f"take of an array of shape {anp.shape(x)} needs an axis: take(x, indices, axis=0)")
    return d.take(x, np.asarray(getval(indices)), axis or 0)


def take_along_axis(x: Array, indices: Array, axis: int = -1) -> Array:
    """Pick values by integer, another set for each position of the other axes."""
    return d.take_along_axis(x, np.asarray(getval(indices)), axis)
