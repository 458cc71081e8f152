"""``lc.xp``, ``lc.tree`` and ``lc.random``: neutral code that no learner is handed to.

Functions of arrays go by the type of the array. What makes arrays goes by the running learner, else by what `lc.use`
chose, else it makes NumPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from types import FrameType
from typing import Any, cast

import optree

from loopcore._utils.running_learner import current
from loopcore._utils.validation import is_whole
from loopcore.backend import choice
from loopcore.backend.array_namespace import mixture
from loopcore.backend.protocol import Backend, DrawKey, Tree
from loopcore.backend.registry import loose, owner_of, owners_of
from loopcore.dispatch import deliver
from loopcore.errors import BackendError
from loopcore.handles.randomness import HostDraws, Random, override
from loopcore.handles.trees import TreeMath
from loopcore.loop.scopes import execute_step

DTYPES = ("float32", "int32", "int64", "bool")
CREATION = ("zeros", "ones", "full", "arange", "eye", "asarray")
# fmt: off
FUNCTIONS = (
    "abs", "exp", "log", "log1p", "expm1", "sqrt", "square", "sign", "tanh", "sin", "cos", "maximum", "minimum", "clip",
    "where", "sum", "mean", "var", "max", "min", "any", "all", "argmax", "argmin", "concat", "stack", "reshape",
    "permute_dims", "expand_dims", "squeeze", "broadcast_to", "flip", "take", "take_along_axis", "matmul", "einsum",
    "zeros_like", "ones_like", "full_like", "astype", "isfinite", "relu", "sigmoid", "softplus", "softmax",
    "log_softmax", "logsumexp", "one_hot", "gelu", "silu", "layer_norm", "conv", "avg_pool", "max_pool",
    "matrix_transpose", "logaddexp", "cumulative_sum", "sort", "argsort", "top_k", "segment_sum", "scan", "vmap",
)
# fmt: on
LINALG = ("vector_norm", "solve", "slogdet", "inv")


def backend_of(values: Iterable[Any]) -> Backend:
    """The backend whose arrays are among some values, else the one that makes arrays here.

    The running learner's goes first, then a framework, then NumPy, whose arrays are constants to every framework.

    Raises:
        BackendError: arrays of two frameworks are among them.
    """
    names = owners_of(values)
    learner = current()
    if not names:
        return creating()
    own_name = "" if learner is None else learner.backend.name
    constants = {"numpy"} - {own_name}  # to a step on NumPy its arrays are no constants
    if len(names - constants) > 1:
        raise BackendError(mixture(names - constants))
    name = next(iter(names - constants), "numpy")
    return learner.backend if learner is not None and name == own_name else _loose(name)


def _loose(name: str) -> Backend:
    return loose(name, choice.device_of(name))


def creating() -> Backend:
    """The backend of the running learner, else the chosen one, else NumPy's."""
    learner = current()
    if learner is not None:
        return cast("Backend", learner.backend)
    return _loose(choice.name())


class Functions:
    """``lc.xp``, or ``lc.xp.linalg``: the functions of ``learner.xp`` without a learner.

    Args:
        names: of the functions.
        inside: of what in ``learner.xp`` they are; nothing for itself.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.xp.relu(np.array([-1.0, 2.0]))
        array([0., 2.])
    """

    def __init__(self, names: tuple[str, ...], inside: str = "") -> None:
        self._names = names
        self._inside = inside

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            function = vars(self)[name] = _dispatching(name, self._inside)  # found without asking from now on
            return function
        if name in DTYPES and not self._inside:
            return getattr(creating().xp, name)
        if name.startswith("_"):
            raise AttributeError(name)
        title = f"xp.{self._inside}" if self._inside else "xp"
        raise AttributeError(
            f"{title} has no {name!r}. It holds what works on every backend: {', '.join(dir(self))}",
            name=name,
            obj=self,
        )

    def __dir__(self) -> list[str]:
        return sorted((*self._names, *(() if self._inside else (*DTYPES, "linalg"))))

    def __repr__(self) -> str:
        return f"<loopcore.xp{'.' if self._inside else ''}{self._inside}: {len(self._names)} array functions>"


def _dispatching(name: str, inside: str) -> Callable[..., Any]:
    title = f"{inside}.{name}" if inside else name

    def function_of(backend: Backend) -> Any:
        return getattr(getattr(backend.xp, inside) if inside else backend.xp, name)

    if name == "vmap":
        return _vmap

    def call(*args: Any, **kwargs: Any) -> Any:
        learner = current()
        # Within a step nearly every call has one array of the learner's own: no look at a tree, no backend to be found.
        if learner is not None and len(args) == 1 and not kwargs and owner_of(args[0]) == learner.backend.name:
            return function_of(learner.backend)(args[0])  # what most calls are, in a third of the time
        try:
            leaves = _leaves(args) if name == "scan" else args
            backend = creating() if name in CREATION else backend_of(leaves)
        except BackendError as error:
            raise type(error)(f"xp.{title}: {error}") from None
        if "dtype" in kwargs:
            kwargs["dtype"] = _native_dtype(backend, kwargs["dtype"])
        elif name == "astype" and len(args) == 2:
            args = (args[0], _native_dtype(backend, args[1]))
        return function_of(backend)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"``learner.xp.{title}``, on the backend whose arrays it gets."
    return call


def _vmap(fn: Callable[..., Any], in_axes: int | Sequence[int | None] | None = 0) -> Callable[..., Any]:
    """``learner.xp.vmap``, on the backend whose arrays the function gets."""

    def mapped(*args: Any) -> Any:
        return backend_of(_leaves(args)).xp.vmap(fn, in_axes)(*args)

    return mapped


def _leaves(args: Tree) -> list[Any]:
    return optree.tree_leaves(args)


def _native_dtype(backend: Backend, dtype: Any) -> Any:
    """A dtype of any framework as the backend calls it.

    Raises:
        BackendError: a word that is not portable.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise BackendError(f"dtype={dtype!r} is none that every backend knows, which are {', '.join(DTYPES)}")
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2]
    return getattr(backend.xp, name) if name in DTYPES else dtype


class AnyTree(TreeMath):
    """``lc.tree``: the functions of ``learner.tree``, by the arrays in the tree.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> lc.tree.scale({"w": np.array([1.0, 2.0])}, 3.0)
        {'w': array([3., 6.])}
    """

    __slots__ = ()

    def __init__(self) -> None: ...

    def __repr__(self) -> str:
        return "<loopcore.tree: arithmetic on trees of arrays>"

    def _of(self, tree: Tree) -> Backend:
        return backend_of(optree.tree_leaves(tree, none_is_leaf=True))


class AnyRandom(Random):
    """``lc.random``: the draws of ``learner.random`` of the running learner, for functions it is not handed to.

    Within a step they are numbered with the draws of the body, or of the callback whose handler calls. Outside a
    learner, for instance for first weights, they are drawn by NumPy and made arrays of the chosen backend in float32,
    so that every backend gets the same numbers; `seed` begins them anew.

    Example:
        >>> import loopcore as lc
        >>> lc.random.seed(1)
        >>> first = lc.random.normal((2,))
        >>> lc.random.seed(1)
        >>> bool((lc.random.normal((2,)) == first).all())
        True
    """

    __slots__ = ("_numbers", "_seed")

    def __init__(self) -> None:
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Begin the draws outside a learner anew.

        Args:
            seed: a whole number, at least 0. Without a call it is 0.

        Raises:
            ValueError: it is none.
        """
        if not is_whole(seed, least=0):
            raise ValueError(f"seed is a whole number, at least 0, not {seed!r}")
        self._seed, self._numbers = int(seed), count()

    def __repr__(self) -> str:
        return "<loopcore.random: draws of the running learner, else of a seed>"

    def _draw(self, kind: str, *args: Any) -> Any:
        running = _of_running_learner()
        if running is not None:
            return getattr(running, kind)(*args)
        if kind == "categorical":
            args = (backend_of(args).to_host(*args),)
        return creating().convert(getattr(override.get() or HostDraws(), kind)(self._key(), *args))

    def _key(self) -> DrawKey:
        running = _of_running_learner()
        return DrawKey(self._seed, 0, next(self._numbers)) if running is None else running._key()


def _of_running_learner() -> Random | None:
    """The draws of who calls: of a callback while its handler runs, else those of the body.

    Which handler runs is read off the stack. To note it at every event would cost every step, and few draw here.
    """
    learner = current()
    if learner is None:
        return None
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # as CPython names it
    while frame is not None and frame.f_code is not execute_step.__code__:
        if frame.f_code is deliver.__code__:
            return cast("Random", frame.f_locals["handler"].view.random)
        frame = frame.f_back
    return cast("Random", learner.random)


xp: Any = Functions(FUNCTIONS + CREATION)
xp.linalg = Functions(LINALG, "linalg")
tree = AnyTree()
random = AnyRandom()
