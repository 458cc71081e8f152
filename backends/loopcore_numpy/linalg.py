"""``xp.linalg`` but for norms."""

from __future__ import annotations

from typing import Any

import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_vjps import unbroadcast_f
from autograd.tracer import getval

from loopcore.backend import Array
from loopcore_numpy.derivatives import anp
from loopcore_numpy.ordering import matrix_transpose

# Of x = A^-1 b: the gradient by b is A^-T g, and by A that times -x^T.
_solve: Any = primitive(lambda x1, x2: np.linalg.solve(x1, x2))
defvjp(
    _solve,
    lambda ans, x1, x2: unbroadcast_f(
        x1, lambda g: -anp.matmul(_solve(matrix_transpose(x1), g), matrix_transpose(ans))
    ),
    lambda ans, x1, x2: unbroadcast_f(x2, lambda g: _solve(matrix_transpose(x1), g)),
)

# d(A^-1) = -A^-1 dA A^-1.
inv: Any = primitive(lambda x: np.linalg.inv(x))
defvjp(inv, lambda ans, x: lambda g: -anp.matmul(anp.matmul(matrix_transpose(ans), g), matrix_transpose(ans)))

# The derivative of log|det A| is A^-T; the sign is constant.
_logarithm: Any = primitive(lambda x: np.linalg.slogdet(x)[1])
defvjp(_logarithm, lambda ans, x: lambda g: anp.expand_dims(anp.expand_dims(g, -1), -1) * matrix_transpose(inv(x)))


def solve(x1: Array, x2: Array, /) -> Array:
    """The solution of ``x1 @ x = x2``; batches broadcast.

    Args:
        x1: ``(..., n, n)``.
        x2: ``(..., n, k)``, or a vector ``(n,)``.
    """
    if anp.ndim(x2) == 1:
        # A vector is a matrix of one column.
        return anp.squeeze(_solve(x1, anp.expand_dims(x2, -1)), -1)
    return _solve(x1, x2)


def slogdet(x: Array, /) -> tuple[Array, Array]:
    """Sign of the determinant, and the logarithm of its absolute value: ``(..., n, n)`` -> two of ``(...)``."""
    return np.linalg.slogdet(getval(x))[0], _logarithm(x)
