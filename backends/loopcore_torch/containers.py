"""Trees: dicts, lists and tuples, and what users of torch bring besides, dataclasses and other mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import optree
from torch import Tensor, nn

_SPACE = "loopcore_torch"  # of optree: what is registered here is a leaf for everybody else
# Kinds of leaves that were looked at: each is registered as a container by now, or stays a leaf.
_classified: set[type] = {Tensor, nn.Parameter, np.ndarray, str, bytes, bool, int, float, complex, type(None)}


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Return the leaves and the structure of a tree; None is a leaf."""
    leaves, spec = optree.tree_flatten(tree, none_is_leaf=True, namespace=_SPACE)
    # What was a leaf is a container now, and may hold leaves of further kinds that are new.
    while _learn(leaves):
        leaves, spec = optree.tree_flatten(tree, none_is_leaf=True, namespace=_SPACE)
    return leaves, spec


def unflatten(spec: Any, leaves: list[Any]) -> Any:
    """Return the tree of a structure with these leaves."""
    return optree.tree_unflatten(spec, leaves)


def tree_map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map over the leaves of trees of one structure; None is a leaf."""
    # optree maps over the inside of a container only after it was registered.
    for subtree in (tree, *rest):
        if type(subtree) not in _classified:
            flatten(subtree)
    return optree.tree_map(fn, tree, *rest, none_is_leaf=True, namespace=_SPACE)


def _learn(leaves: list[Any]) -> bool:
    """Look at the kinds of leaves that are new, and return whether one of them became a container."""
    new = {type(leaf): leaf for leaf in leaves if type(leaf) not in _classified}
    _classified.update(new)
    return any([_register(kind, value) for kind, value in new.items()])


def _register(kind: Any, value: Any) -> bool:
    """Make a container of a dataclass or a mapping that can be made anew from its values, as a ModelOutput can."""
    if isinstance(value, (Enum, nn.Module)):
        return False
    if is_dataclass(value):
        names = tuple(field.name for field in fields(value))

        def children_of(container: Any) -> tuple[list[Any], tuple[str, ...], tuple[str, ...]]:
            return [getattr(container, name) for name in names], names, names

        def rebuild(keys: Any, children: Iterable[Any]) -> Any:
            return kind(**dict(zip(keys, children, strict=True)))
    elif isinstance(value, Mapping):

        def children_of(container: Any) -> tuple[list[Any], tuple[str, ...], tuple[str, ...]]:
            keys = tuple(container)
            return [container[key] for key in keys], keys, keys

        def rebuild(keys: Any, children: Iterable[Any]) -> Any:
            return kind(dict(zip(keys, children, strict=True)))
    else:
        return False
    children, keys, _ = children_of(value)
    try:
        # A container is what gives back the same children when it is made of them: a class that computes in its
        # constructor, or wants other arguments, stays a leaf.
        rebuilt = rebuild(keys, children)
        same = all(old is new for old, new in zip(children, children_of(rebuilt)[0], strict=True))
    except Exception:  # its own code, which may want anything: it is a leaf, and stays as it is
        return False
    if same:
        optree.register_pytree_node(kind, children_of, rebuild, namespace=_SPACE)
    return same
