"""Random draws that need no state: every draw is named, and its name decides its numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Protocol
from zlib import crc32

import numpy as np

from loopcore.backend.protocol import Array, Backend, DrawKey, HostArray, Native, RandomBackend
from loopcore.errors import TraceError

override: ContextVar[RandomBackend | None] = ContextVar("loopcore_random_override", default=None)
# The hash of a name, made once: a draw is asked for at every step.
_streams: dict[tuple[str, str, int], int] = {}


class DrawRecord(Protocol):
    """What counts the draws of a learner, by phase and step."""

    @property
    def drawn(self) -> Callable[[int, str, tuple[object, ...]], Array] | None:
        """While a step is compiled, what gives the draws of the host for a stream."""
        ...

    def draw_counts(self) -> tuple[str, int, MutableMapping[str, int]]:
        """The phase, its attempted steps, and the number of the last draw of each owner."""
        ...


class Seeded(Protocol):
    """What a draw needs of the learner that it belongs to."""

    backend: Backend
    seed: int

    @property
    def runs(self) -> DrawRecord:
        """The record that counts its draws."""
        ...


class Random:
    """Random arrays in the parameters' dtype, ``learner.random``.

    Each call is a new draw, numbered by its order within the step and its owner (the body, or one callback). Its
    numbers follow from (seed, phase name, owner, number, count of attempted steps): a resumed run needs no state,
    and running the same step again draws the same numbers.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner()
        >>> learner.random.normal((2, 3)).shape
        (2, 3)
    """

    __slots__ = ("_learner", "_owner")

    def __init__(self, learner: Seeded, owner: str = "body") -> None:
        self._learner = learner
        self._owner = owner

    def normal(self, shape: Sequence[int]) -> Array:
        """Standard normal numbers of the given shape."""
        return self._draw("normal", shape)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Array:
        """Uniform numbers in ``[low, high)``."""
        return self._draw("uniform", shape, low, high)

    def bernoulli(self, p: float, shape: Sequence[int]) -> Array:
        """Ones with probability ``p``, else zeros, in the parameters' dtype."""
        return self._draw("bernoulli", p, shape)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Array:
        """Integers from ``low`` to ``high`` (excluded), int32."""
        return self._draw("integers", low, high, shape)

    def permutation(self, n: int) -> Array:
        """The integers below ``n`` in random order, of shape ``(n,)``."""
        return self._draw("permutation", n)

    def beta(self, a: float, b: float, shape: Sequence[int]) -> Array:
        """Numbers in [0, 1] of the Beta(a, b) distribution."""
        return self._draw("beta", a, b, shape)

    def categorical(self, logits: Array) -> Array:
        """An index along the last axis of ``logits`` for each row, drawn with the softmax of the row."""
        return self._draw("categorical", logits)

    def generator(self) -> np.random.Generator:
        """A new NumPy generator for host code; it is a draw like any other."""
        return _generator(self._key())

    def key(self) -> Native:
        """What the framework itself draws from, to be split or handed on by hand; it is a draw like any other.

        A key of ``jax.random``, a ``torch.Generator``, a seed of shape (2,) for ``tf.random.stateless_*``, a NumPy
        generator. Code with it belongs to one framework: in loops such as ``jax.lax.scan``, and under ``jax.vmap``,
        it gives each iteration a key of its own, ``jax.random.split(learner.random.key(), n)``.

        Raises:
            TraceError: within `loopcore.testing.same_random`, where all frameworks see the same numbers.
        """
        if override.get() is not None:
            raise TraceError("learner.random.key() is the framework's own, which same_random cannot make equal")
        return self._learner.backend.random.key(self._key())

    def _draw(self, kind: str, *args: object) -> Array:
        backend, other = self._learner.backend, override.get()
        # Before the draw is numbered, so that an error that is caught changes no later draw.
        refuse_in_a_loop(getattr(backend, "loops", ()), "learner.random was used")
        if other is None:
            return getattr(backend.random, kind)(self._key(), *args)
        draw_on_host = self._learner.runs.drawn
        if draw_on_host is not None:  # a step is compiled: the host draws before it runs
            return draw_on_host(self._key().stream, kind, args)
        # NumPy draws, so the logits have to be on the host.
        if kind == "categorical":
            args = (backend.to_host(*args),)
        return backend.convert(getattr(other, kind)(self._key(), *args))

    def _key(self) -> DrawKey:
        phase, step, counts = self._learner.runs.draw_counts()
        number = counts[self._owner] = counts.get(self._owner, -1) + 1
        name = (phase, self._owner, number)
        stream = _streams.get(name)
        if stream is None:
            # Not `hash`, which Python salts anew in each process: a resumed run would draw other numbers. A name may
            # hold lone surrogates, which UTF-8 refuses.
            stream = _streams[name] = crc32("/".join(map(str, name)).encode("utf-8", "surrogatepass"))
        return DrawKey(self._learner.seed, stream, step)


def refuse_in_a_loop(loops: Sequence[str], subject: str) -> None:
    """Refuse a draw where a loop of the framework runs the code once, for all of its iterations.

    Args:
        loops: the modules of these loops, or ``module:function``.
        subject: what drew, for the message.

    Raises:
        TraceError: such a loop is running.
    """
    loop = _running(loops) if loops else None
    if loop is not None:
        raise TraceError(
            f"{subject} inside {loop}, which runs this code once for all of its iterations: each would see the same "
            "numbers. Draw an array with one more axis before, or hand over keys that learner.random.key() was split "
            "into"
        )


def _running(loops: Iterable[str]) -> str | None:
    """The function of one of some modules that is running in this step, as the user calls it."""
    # Nothing tells a draw that a loop of the framework runs its body once for all iterations, but the stack of calls
    # does.
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # as CPython names it
    loop = None
    while frame is not None and frame.f_globals.get("__name__") != "loopcore.loop.scopes":
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if module in loops or f"{module}:{name}" in loops:
            loop = f"{module.partition('.')[0]}'s {name.removesuffix('_f')}"  # the outermost is the one called
        frame = frame.f_back
    return loop


class HostDraws:
    """A `RandomBackend` of float64 NumPy arrays, which have to be converted."""

    def key(self, key: DrawKey) -> np.random.Generator:
        """A NumPy generator for this draw, as there is no framework."""
        return _generator(key)

    def normal(self, key: DrawKey, shape: Sequence[int]) -> HostArray:
        """Standard normal numbers."""
        return _generator(key).standard_normal(tuple(shape))

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> HostArray:
        """Uniform numbers in ``[low, high)``."""
        return _generator(key).uniform(low, high, tuple(shape))

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> HostArray:
        """Ones with probability ``p``, else zeros."""
        return (_generator(key).random(tuple(shape)) < p).astype(np.float64)

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> HostArray:
        """Integers in ``[low, high)``, int32."""
        return _generator(key).integers(low, high, tuple(shape), dtype=np.int32)

    def permutation(self, key: DrawKey, n: int) -> HostArray:
        """The integers below ``n`` in random order."""
        return _generator(key).permutation(n)

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> HostArray:
        """Numbers of the Beta(a, b) distribution."""
        return _generator(key).beta(a, b, tuple(shape))

    def categorical(self, key: DrawKey, logits: Array) -> HostArray:
        """An index along the last axis for each row."""
        rows = np.asarray(logits, dtype=np.float64)
        indices: HostArray = np.argmax(rows + self.gumbel(key, rows.shape), axis=-1)
        return indices

    def gumbel(self, key: DrawKey, shape: Sequence[int]) -> HostArray:
        """Numbers of the standard Gumbel distribution: `categorical` takes the largest of logits with these added."""
        return _generator(key).gumbel(size=tuple(shape))


def _generator(key: DrawKey) -> np.random.Generator:
    # A new generator for each draw, from its name alone: there is no state that a checkpoint would have to keep. Philox
    # is based on a counter and cheap to set up (Salmon et al., 2011).
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
