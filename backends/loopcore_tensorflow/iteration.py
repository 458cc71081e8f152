"""``xp.scan`` as a loop of TensorFlow's own, which a program holds once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import tensorflow as tf

from loopcore.backend import Tree
from loopcore.backend.iteration import check_carry


def scan(fn: Callable[[Any, Any], tuple[Any, Any]], init: Tree, xs: Tree) -> tuple[Tree, Tree]:
    """Run ``xp.scan`` with tensors for leaves.

    Args:
        fn: takes the carry and one row of ``xs``, returns the next carry and a row of the result.
        init: the carry of the first row.
        xs: a tree of tensors, whose rows are along their first axis.

    Returns:
        The last carry, and the rows that ``fn`` returned, stacked.
    """
    columns, xs_spec = optree.tree_flatten(xs)
    length = columns[0].shape[0]  # None in a program for any number of rows; ``count`` is known when it runs
    count = tf.shape(columns[0])[0]

    def row(number: Any) -> Tree:
        return optree.tree_unflatten(xs_spec, [tf.gather(column, number) for column in columns])

    carry, y = fn(init, row(0))  # by itself: what it returns tells what the others do
    check_carry(init, carry)
    carries, carry_spec = optree.tree_flatten(carry)
    ys, ys_spec = optree.tree_flatten(y)
    # A loop of TensorFlow cannot return a list that grows: the rows go into arrays of tensors.
    places = [tf.TensorArray(part.dtype, count, element_shape=part.shape).write(0, part) for part in ys]

    def step(number: Any, carries: list[Any], places: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        carry, y = fn(optree.tree_unflatten(carry_spec, carries), row(number))
        parts = optree.tree_leaves(y)
        filled = [place.write(number, part) for place, part in zip(places, parts, strict=True)]
        return number + 1, optree.tree_leaves(carry), filled

    _, carries, places = tf.while_loop(
        lambda number, carries, places: number < count,
        step,
        (tf.constant(1), carries, places),
        # Without a bound XLA cannot compile the gradient of the loop.
        maximum_iterations=None if length is None else max(length - 1, 1),
    )
    stacked = [place.stack() for place in places]
    return optree.tree_unflatten(carry_spec, carries), optree.tree_unflatten(ys_spec, stacked)
