"""``learner.xp``: the portable array functions, in array-API spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from loopcore.backend import Tree
from loopcore.backend.array_namespace import LinalgNamespace, host_array, taking_constants
from loopcore.backend.iteration import IteratingNamespace
from loopcore_torch import functions, linalg, neural, ordering
from loopcore_torch.arrays import from_numpy
from loopcore_torch.functions import Number


@taking_constants("torch")
class Linalg(LinalgNamespace):
    """``xp.linalg``."""

    __slots__ = ()
    vector_norm = staticmethod(functions.vector_norm)
    solve = staticmethod(linalg.solve)
    slogdet = staticmethod(linalg.slogdet)
    inv = staticmethod(linalg.inv)


@taking_constants("torch")
class Namespace(IteratingNamespace):
    """The functions of ``learner.xp``. Creation functions make arrays of one floating dtype on one device.

    Args:
        dtype: of floating arrays that are created without a dtype.
        device: where arrays are created.
    """

    __slots__ = ("_linalg", "device", "dtype")

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._linalg = Linalg(self)

    @property
    def linalg(self) -> Linalg:
        """Linear algebra."""
        return self._linalg

    # -- creation ----------------------------------------------------------------------------------------------

    def zeros(self, shape: int | Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def ones(self, shape: int | Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
        """Ones."""
        return torch.ones(shape, dtype=dtype or self.dtype, device=self.device)

    def full(
        self, shape: int | Sequence[int], fill_value: Tensor | Number, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """One value everywhere; a float in the parameters' dtype, an integer or a bool in its own."""
        if dtype is None and isinstance(fill_value, float):
            dtype = self.dtype
        value = torch.as_tensor(fill_value, dtype=dtype, device=self.device)
        return torch.broadcast_to(value, (shape,) if isinstance(shape, int) else tuple(shape)).clone()

    def asarray(self, x: Any, /, *, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers, lists of them and arrays of any framework as an array on the device.

        A native array stays what it is, in its dtype and with its gradient. Floats of anything else get the
        parameters' dtype, integers and bools keep their kind.

        Args:
            x: what to convert.
            dtype: of the result, also of a native array.

        Raises:
            TypeError: ``x`` holds no numbers, or is a list of native arrays.
        """
        if isinstance(x, Tensor):
            return x.to(self.device, dtype)
        floats = self.dtype if dtype is None else dtype if dtype.is_floating_point else torch.float64
        return from_numpy(host_array(x, lambda item: isinstance(item, Tensor)), floats).to(self.device, dtype)

    def arange(
        self, start: Number, /, stop: Number | None = None, step: Number = 1, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Evenly spaced numbers, ``stop`` excluded; integers unless a float is among the arguments."""
        first, last = (0, start) if stop is None else (start, stop)
        if dtype is None and any(isinstance(number, float) for number in (first, last, step)):
            dtype = self.dtype
        return torch.arange(first, last, step, dtype=dtype, device=self.device)

    def eye(self, n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Ones on the k-th diagonal."""
        columns = n_rows if n_cols is None else n_cols
        rows_at = torch.arange(n_rows, device=self.device).unsqueeze(1)
        return (torch.arange(columns, device=self.device) - rows_at == k).to(dtype or self.dtype)

    def one_hot(self, x: Tensor, num_classes: int, /, *, dtype: torch.dtype | None = None) -> Tensor:
        """``(...)`` integers below ``num_classes`` -> ``(..., num_classes)`` zeros and ones."""
        return functional.one_hot(x.to(torch.int64), num_classes).to(dtype or self.dtype)

    zeros_like = staticmethod(functions.zeros_like)
    ones_like = staticmethod(functions.ones_like)
    full_like = staticmethod(functions.full_like)

    # -- elementwise -------------------------------------------------------------------------------------------

    abs = staticmethod(torch.abs)
    exp = staticmethod(torch.exp)
    log = staticmethod(torch.log)
    log1p = staticmethod(torch.log1p)
    expm1 = staticmethod(torch.expm1)
    sqrt = staticmethod(torch.sqrt)
    square = staticmethod(torch.square)
    sign = staticmethod(torch.sign)
    tanh = staticmethod(torch.tanh)
    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    isfinite = staticmethod(torch.isfinite)
    where = staticmethod(torch.where)
    maximum = staticmethod(functions.maximum)
    minimum = staticmethod(functions.minimum)
    clip = staticmethod(functions.clip)
    astype = staticmethod(functions.astype)
    relu = staticmethod(torch.relu)
    sigmoid = staticmethod(torch.sigmoid)
    softplus = staticmethod(functions.softplus)

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
    matmul = staticmethod(torch.matmul)
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

    def _rows(self, x: Tensor) -> Sequence[Tensor]:
        return x.unbind()  # indexing would make zeros of the whole array for each row's gradient

    def _vmap(self, fn: Callable[..., Any], trees: list[Tree]) -> Tree:
        try:
            return torch.func.vmap(fn, randomness="different")(*trees)
        except RuntimeError as error:
            if "functorch transform" not in str(error):
                raise
            return super()._vmap(fn, trees)  # learner.grad is of autograd, which vmap does not go through

    # -- dtypes ------------------------------------------------------------------------------------------------

    float32 = torch.float32
    int32 = torch.int32
    int64 = torch.int64
    bool = torch.bool
