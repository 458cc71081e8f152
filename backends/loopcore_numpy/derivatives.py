"""Array functions with gradients of their own.

autograd knows most of NumPy. What stands here it does not know (``take``, ``flip``), gets wrong (``where`` over
broadcast operands, ``broadcast_to`` into more dimensions), computes with overflow (``tanh``), or answers in float64
for float32 operands (``mean``, ``max``, ``maximum``). Every derivative is itself differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf as _erf_of_a_number
from math import pi
from math import sqrt as _sqrt_of_a_number
from typing import Any, TypeAlias

import autograd.numpy
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_vjps import unbroadcast_f
from autograd.tracer import getval

from loopcore.backend import Array

Axis: TypeAlias = int | tuple[int, ...] | None
anp: Any = autograd.numpy


def _elementwise(forward: Callable[[Any], Any], derivative: Callable[[Any, Any], Any]) -> Any:
    """Make a function of one array; ``derivative`` takes its result and its argument."""
    function = primitive(forward)
    defvjp(function, lambda ans, x: lambda g: g * derivative(ans, x))
    return function


def axes_of(shape: tuple[int, ...], axis: Axis) -> set[int]:
    """Return the axes that a reduction runs over, counted from the front."""
    if axis is None:
        return set(range(len(shape)))
    return {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}


def reduced_shape(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """Return the shape of a reduction that keeps its axes, with length 1."""
    axes = axes_of(shape, axis)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _dtype(x: Array) -> np.dtype[Any]:
    return np.result_type(getval(x))


# -- elementwise ---------------------------------------------------------------------------------------------------


def _stable_sigmoid(x: Any) -> Any:
    # The exponential of a negative number does not overflow.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


tanh = _elementwise(lambda x: np.tanh(x), lambda ans, x: 1.0 - ans * ans)
sigmoid = _elementwise(_stable_sigmoid, lambda ans, x: ans * (1.0 - ans))
softplus = _elementwise(lambda x: np.logaddexp(x, 0.0), lambda ans, x: sigmoid(x))
# NumPy has no error function; that of Python is exact, and takes 50 ns for a number.
_erf = np.vectorize(_erf_of_a_number, otypes=[np.float64])
erf = _elementwise(
    lambda x: _erf(x).astype(_dtype(x)), lambda ans, x: 2.0 / _sqrt_of_a_number(pi) * anp.exp(-anp.square(x))
)
sqrt = _elementwise(lambda x: np.sqrt(x), lambda ans, x: 0.5 / ans)
sign: Any = primitive(lambda x: np.sign(x))
# A step function: its derivative is 0, and so are those of higher order.
defvjp(sign, lambda ans, x: lambda g: anp.zeros_like(g))
absolute = _elementwise(lambda x: np.abs(x), lambda ans, x: sign(x))


def _convert(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(dtype)


astype: Any = primitive(_convert)
defvjp(astype, lambda ans, x, dtype: lambda g: astype(g, _dtype(x)))

# numpy.where, with a derivative for operands that were broadcast: `unbroadcast_f` sums over the axes they lacked.
choose: Any = primitive(lambda condition, x, y: np.where(condition, x, y))
defvjp(
    choose,
    lambda ans, c, x, y: unbroadcast_f(x, lambda g: choose(c, g, 0.0)),
    lambda ans, c, x, y: unbroadcast_f(y, lambda g: choose(c, 0.0, g)),
    argnums=(1, 2),
)


def _extreme(forward: Callable[[Any, Any], Any], beats: Callable[[Any, Any], Any]) -> Any:
    """Make the larger or the smaller of two arrays; equal operands share the gradient."""

    def share(x: Any, y: Any, ans: Any) -> Any:
        x, y = getval(x), getval(y)
        return np.asarray(beats(x, y) + 0.5 * np.equal(x, y), _dtype(ans))

    function = primitive(forward)
    defvjp(
        function,
        lambda ans, x, y: unbroadcast_f(x, lambda g: g * share(x, y, ans)),
        lambda ans, x, y: unbroadcast_f(y, lambda g: g * share(y, x, ans)),
    )
    return function


maximum = _extreme(lambda x, y: np.maximum(x, y), np.greater)
minimum = _extreme(lambda x, y: np.minimum(x, y), np.less)

# -- shapes --------------------------------------------------------------------------------------------------------

broadcast_to: Any = primitive(lambda x, shape: np.broadcast_to(x, shape))
defvjp(broadcast_to, lambda ans, x, shape: unbroadcast_f(x, lambda g: g))

flip: Any = primitive(lambda x, axis: np.flip(x, axis))
defvjp(flip, lambda ans, x, axis: lambda g: flip(g, axis))


def _spread(g: Array, x: Array, axis: Axis) -> Array:
    """Repeat the gradient of a reduction over the elements that it reduced."""
    shape = anp.shape(x)
    return broadcast_to(anp.reshape(g, reduced_shape(shape, axis)), shape)


# -- reductions ----------------------------------------------------------------------------------------------------

total: Any = primitive(lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims))
defvjp(total, lambda ans, x, axis, keepdims: lambda g: _spread(g, x, axis))


def _extremum(forward: Callable[..., Any]) -> Any:
    """Make the largest or the smallest element along an axis; equal ones share the gradient."""

    def shares(ans: Any, x: Any, axis: Axis) -> Any:
        x = getval(x)
        # 1 where an element is the extremum, divided by how many are.
        hit = x == np.reshape(getval(ans), reduced_shape(np.shape(x), axis))
        return np.asarray(hit / np.sum(hit, axis=axis, keepdims=True), _dtype(x))

    function = primitive(lambda x, axis, keepdims: forward(x, axis=axis, keepdims=keepdims))
    defvjp(function, lambda ans, x, axis, keepdims: lambda g: _spread(g, x, axis) * shares(ans, x, axis))
    return function


largest = _extremum(np.max)
smallest = _extremum(np.min)


def _log_total_exp(x: Any, axis: Axis, keepdims: bool) -> Any:
    # Shifted by the largest element no exponential overflows. An infinite one is no shift: inf - inf is not a number.
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    result = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return result if keepdims else np.squeeze(result, axis)


def _logsumexp_vjp(ans: Array, x: Array, axis: Axis, keepdims: bool) -> Callable[[Array], Array]:
    def vjp(g: Array) -> Array:
        ceiling = choose(np.isfinite(getval(ans)), ans, 0.0)  # -inf - -inf is not a number
        return _spread(g, x, axis) * anp.exp(x - anp.reshape(ceiling, reduced_shape(anp.shape(x), axis)))

    return vjp


logsumexp: Any = primitive(_log_total_exp)
defvjp(logsumexp, _logsumexp_vjp)

# The derivatives of these two need their results alone, and not `x`.
log_softmax: Any = primitive(lambda x, axis: x - _log_total_exp(x, axis, True))
defvjp(log_softmax, lambda ans, x, axis: lambda g: g - anp.exp(ans) * total(g, axis, True))

softmax: Any = primitive(lambda x, axis: np.exp(x - _log_total_exp(x, axis, True)))
defvjp(softmax, lambda ans, x, axis: lambda g: ans * (g - total(g * ans, axis, True)))


def _euclidean_vjp(ans: Array, x: Array, axis: Axis, keepdims: bool) -> Callable[[Array], Array]:
    def vjp(g: Array) -> Array:
        norm = anp.reshape(ans, reduced_shape(anp.shape(x), axis))
        # x / 0 is not a number: at the zero vector the gradient is 0.
        zero = getval(norm) == 0
        return _spread(g, x, axis) * choose(zero, 0.0, x / choose(zero, 1.0, norm))

    return vjp


euclidean: Any = primitive(lambda x, axis, keepdims: np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims)))
defvjp(euclidean, _euclidean_vjp)

# -- indexing ------------------------------------------------------------------------------------------------------


def _put(g: Any, indices: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """Add slices of ``g`` to zeros, where `take` has read them: its adjoint."""
    out = np.zeros(shape, np.result_type(g))
    axis %= len(shape)
    rows = np.moveaxis(g, range(axis, axis + indices.ndim), range(indices.ndim))
    # Unlike out[indices] += rows, this counts an index that occurs several times.
    np.add.at(np.moveaxis(out, axis, 0), indices, rows)
    return out


def _put_along(g: Any, indices: Any, axis: int, shape: tuple[int, ...]) -> Any:
    """Add elements of ``g`` to zeros, where `take_along_axis` has read them: its adjoint."""
    out = np.zeros(shape, np.result_type(g))
    # Along the other axes an element stays where it is.
    where = list(np.indices(shape, sparse=True))
    where[axis] = indices
    np.add.at(out, tuple(where), g)
    return out


def _indexing(forward: Callable[..., Any], adjoint: Callable[..., Any]) -> Any:
    """Make a function that reads at indices, and its adjoint, which adds there; each is the other's derivative."""
    pick, put = primitive(forward), primitive(adjoint)
    defvjp(pick, lambda ans, x, indices, axis: lambda g: put(g, indices, axis, anp.shape(x)))
    defvjp(put, lambda ans, g, indices, axis, shape: lambda h: pick(h, indices, axis))
    return pick


take = _indexing(lambda x, indices, axis: np.take(x, indices, axis), _put)
take_along_axis = _indexing(lambda x, indices, axis: np.take_along_axis(x, indices, axis), _put_along)
