"""``xp.scan`` and ``xp.vmap``: what is the same on all backends, and both as loops for those that have no other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import optree

from loopcore._utils.running_learner import current
from loopcore.backend.array_namespace import ArrayNamespace
from loopcore.backend.protocol import Array, Tree
from loopcore.errors import TraceError


class IteratingNamespace(ArrayNamespace):
    """Base of the class of ``learner.xp`` with functions of functions. An adapter overrides what is its framework's."""

    __slots__ = ()

    def scan(self, fn: Callable[[Tree, Tree], tuple[Tree, Tree]], init: Tree, xs: Tree, /) -> tuple[Tree, Tree]:
        """Go along the first axis of arrays, with a carry from each place to the next: ``(carry, ys)``.

        Args:
            fn: ``fn(carry, x)`` returns the next carry, of the same structure, shapes and dtypes, and a ``y``.
            init: the first carry, a tree of arrays and numbers.
            xs: a tree of arrays of one length, at least 1, along their first axes.

        Returns:
            The last carry, and the ``y`` of all places, stacked along new first axes.

        Raises:
            ValueError: the lengths differ, or ``fn`` returns something else.
            TraceError: ``fn`` draws random numbers, which would be one draw for all places on some backends.
        """
        carry, xs = self._map(self.asarray, init), self._map(self.asarray, xs)
        _length("scan", self._leaves(xs))

        def step(carry: Tree, x: Tree) -> tuple[Tree, Tree]:
            result = fn(carry, x)
            if not isinstance(result, tuple) or len(cast("tuple[object, ...]", result)) != 2:
                raise ValueError(f"scan: the function returned a {type(result).__name__}: return (carry, y)")
            return self._map(self.asarray, result[0]), self._map(self.asarray, result[1])

        return self._scan(_without_draws("scan", step), carry, xs)

    def vmap(self, fn: Callable[..., Tree], in_axes: int | Sequence[int | None] | None = 0) -> Callable[..., Tree]:
        """A function of single examples as one of batches; what it returns is stacked along new first axes.

        Args:
            fn: takes and returns trees of arrays.
            in_axes: the axis of the examples, for all arguments or one for each; None for an argument that is the
                same for all.

        Raises:
            ValueError: on a call, if the axes do not fit the arguments.
            TraceError: ``fn`` draws random numbers, which would be one draw for all examples on some backends.
        """

        def mapped(*args: Tree) -> Tree:
            axes = (in_axes,) * len(args) if in_axes is None or isinstance(in_axes, int) else tuple(in_axes)
            if len(axes) != len(args) or all(axis is None for axis in axes):
                raise ValueError(
                    f"vmap: in_axes={in_axes!r} for {len(args)} arguments: write the axis of the examples for each "
                    "argument, None for what all share, and an axis for at least one"
                )
            places = [number for number, axis in enumerate(axes) if axis is not None]
            trees = [
                self._map(lambda x, axis=axis: self._in_front(self.asarray(x), axis), args[number])
                for number, axis in enumerate(axes)
                if axis is not None
            ]
            _length("vmap", [leaf for tree in trees for leaf in self._leaves(tree)])

            def single(*examples: Tree) -> Tree:
                filled = list(args)
                for number, example in zip(places, examples, strict=True):
                    filled[number] = example
                return self._map(self.asarray, fn(*filled))

            return self._vmap(_without_draws("vmap", single), trees)

        return mapped

    def _in_front(self, x: Array, axis: int) -> Array:
        axes = list(range(x.ndim))
        axes.insert(0, axes.pop(axis))
        return x if axis == 0 else self.permute_dims(x, axes)

    # -- what an adapter may override ------------------------------------------------------------------------------

    def _map(self, fn: Callable[..., Tree], *trees: Tree) -> Tree:
        return optree.tree_map(fn, *trees)

    def _leaves(self, tree: Tree) -> list[Array]:
        return optree.tree_leaves(tree)

    def _rows(self, x: Array) -> Sequence[Array]:
        return [x[number] for number in range(x.shape[0])]

    def _scan(self, fn: Callable[[Tree, Tree], tuple[Tree, Tree]], init: Tree, xs: Tree) -> tuple[Tree, Tree]:
        """``scan`` with arrays for leaves, as a loop."""
        carry, ys = init, list[Array]()
        for x in self._examples([xs]):
            before = carry
            carry, y = fn(carry, *x)
            ys.append(y)
            if len(ys) == 1:
                check_carry(before, carry)
        return carry, self._map(lambda *rows: self.stack(rows), *ys)

    def _vmap(self, fn: Callable[..., Tree], trees: list[Tree]) -> Tree:
        """``vmap`` along first axes, as a loop."""
        return self._map(lambda *rows: self.stack(rows), *(fn(*example) for example in self._examples(trees)))

    def _examples(self, trees: list[Tree]) -> list[list[Tree]]:
        rows = self._map(self._rows, trees)
        length = len(self._rows(self._leaves(trees)[0]))
        return [self._map(lambda _, column, n=n: column[n], trees, rows) for n in range(length)]


def check_carry(before: Tree, after: Tree) -> None:
    """Check that a step of ``xp.scan`` returned a carry like the one it got.

    Raises:
        ValueError: its structure, a shape or a dtype is another.
    """
    layouts = [optree.tree_map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in (before, after)]
    if layouts[0] != layouts[1]:
        raise ValueError(
            f"scan: the carry began as {layouts[0]} and the function returned {layouts[1]}: its structure, shapes and "
            "dtypes stay the same, xp.astype and xp.zeros(...) in init help"
        )


def _length(title: str, leaves: Sequence[Array]) -> None:
    """Check that arrays have one length, which a program may not know, along their first axes."""
    lengths = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves) or "no arrays"
        raise ValueError(f"{title} goes along one axis of arrays that have the same length, at least 1, not {shapes}")


def _without_draws(title: str, fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function; an error if it draws from ``learner.random`` of the running learner."""
    learner = current()
    if learner is None:
        return fn
    counts = learner.runs.draw_counts()[2]

    def call(*args: Tree) -> Tree:
        before = dict(counts)
        result = fn(*args)
        if counts != before:
            raise TraceError(
                f"learner.random was used inside the function of xp.{title}, where a compiled step draws once and a "
                "loop draws anew: draw an array with one more axis before, and hand it over with the other arrays"
            )
        return result

    return call
