"""Handles to parameters and buffers: what ``wrt=`` and ``update`` take, and how a tree maps to named arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar

import numpy as np

from loopcore.backend.protocol import Array, Backend, HostArray, HostDtype, Kind, Leaves, Tree
from loopcore.errors import OptimizerError, WeightsError

Weight = TypeVar("Weight")
NewNames: TypeAlias = Mapping[str, str | None] | Callable[[str], str | None]  # None for a weight to leave out


class ParameterHandle:
    """Some parameters (or buffers) of the models: ``learner.params``, ``learner.params.critic``.

    ``.value`` is a snapshot tree of native arrays that no later step changes; assigning to it writes. Its structure
    is what gradients have: for torch a dict by parameter name, for NumPy and JAX the model's own tree; with several
    named models a dict of those. ``handle["features"]`` or ``handle.features`` selects the paths below a prefix, as
    a flat dict. ``learner.params`` has what is trained; a part that is wholly frozen has to be named,
    ``learner.params.teacher``, to be read or written.

    Example:
        >>> import loopcore as lc, numpy as np
        >>> learner = lc.testing.toy_learner()
        >>> learner.params.value
        {'w': array([0.])}
        >>> learner.params.value = {"w": np.array([2.0])}
        >>> learner.params.value
        {'w': array([2.])}
    """

    __slots__ = ("_backend", "_layout", "_with_frozen")
    _backend: Backend
    _layout: ParameterLayout
    _with_frozen: ParameterHandle | None  # with the parts that nobody trains

    def __init__(
        self,
        backend: Backend,
        kind: Kind,
        parts: Mapping[str, tuple[str, ...]],
        label: str = "",
        everything: ParameterHandle | None = None,
    ) -> None:
        # Past the `__setattr__` below, which takes `value` alone.
        put = object.__setattr__
        put(self, "_backend", backend)
        put(self, "_layout", ParameterLayout(backend, kind, parts, label))
        put(self, "_with_frozen", everything)

    @property
    def value(self) -> Tree:
        """A tree of copies of the arrays, which no later step changes; assigning a tree writes its values."""
        layout = self._layout
        return layout.tree(self._backend.snapshot(layout.paths))

    @value.setter
    def value(self, tree: Tree) -> None:
        self._assign(tree)

    @property
    def names(self) -> tuple[str, ...]:
        """Full paths of the arrays, as ``learner.export_weights()`` has them."""
        return self._layout.paths

    def _assign(self, tree: Tree) -> None:
        leaves = self._layout.leaves(tree)
        problems = mismatches(self._backend, leaves)
        if problems:
            raise WeightsError("the value does not fit:\n" + "\n".join(problems))
        self._backend.set(leaves)

    def __getitem__(self, prefix: str) -> ParameterHandle:
        layout = self._layout
        parts, kind, label = layout.parts, layout.kind, layout.label
        if prefix in parts and (parts[prefix].paths or self._with_frozen is None):
            with_frozen = self._with_frozen[prefix] if self._with_frozen else None
            return ParameterHandle(self._backend, kind, {prefix: parts[prefix].paths}, prefix, with_frozen)
        for model, part in parts.items():
            full = f"{label}.{prefix}" if label else prefix
            selected = tuple(path for path in part.paths if is_below(path, full))
            if selected:
                return ParameterHandle(self._backend, kind, {model: selected}, full)
        if self._with_frozen is not None:
            return self._with_frozen[prefix]
        names = [name for name in parts if name] or [path.partition(".")[0] for path in layout.paths]
        raise AttributeError(f"there are no {kind} {prefix!r} here; there are: {', '.join(dict.fromkeys(names))}")

    def __getattr__(self, name: str) -> ParameterHandle:
        # Copying and pickling ask for such names before the slots are filled; the look-up needs these, and would not
        # end.
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: object) -> None:
        if name != "value":
            raise AttributeError(f"assign to .value, not to .{name}: handle[{name!r}].value = tree")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Handle({self._layout.kind}: {', '.join(self._layout.paths)})"


class ParameterLayout:
    """How a tree with the structure of a handle maps to arrays by path.

    A handle cannot have these names itself: ``learner.params.tree`` is the model that the user calls ``tree``.

    Args:
        backend: of the models.
        kind: ``"params"`` or ``"buffers"``.
        parts: the paths of each model.
        label: the prefix that a handle to some of one model was asked for.

    Attributes:
        paths: full paths of all arrays.
        flat: the same as a set, where the tree is the dict from path to array itself; else None.
    """

    __slots__ = ("flat", "kind", "label", "parts", "paths")

    def __init__(self, backend: Backend, kind: Kind, parts: Mapping[str, tuple[str, ...]], label: str) -> None:
        self.kind: Kind = kind
        self.label = label
        self.parts = {model: _Part(backend, kind, model, paths) for model, paths in parts.items()}
        self.paths = tuple(path for part in self.parts.values() for path in part.paths)
        only = next(iter(self.parts.values())) if len(self.parts) == 1 and (label or "" in self.parts) else None
        self.flat = frozenset(self.paths) if only is not None and only.is_flat() else None

    def tree(self, leaves: Leaves) -> Tree:
        """The tree of arrays by path."""
        if self.flat is not None:
            return leaves
        if "" in self.parts:
            return self.parts[""].pack(leaves)
        if self.label:
            return next(iter(self.parts.values())).pack(leaves)
        return {model: part.pack(leaves) for model, part in self.parts.items()}

    def leaves(self, tree: Tree) -> Leaves:
        """The arrays of a tree by path.

        Raises:
            WeightsError: it has another structure.
        """
        # The way of gradients on PyTorch and TensorFlow at every step: no copy, and one comparison of keys.
        if self.flat is not None and type(tree) is dict and tree.keys() == self.flat:
            return tree
        if "" in self.parts:
            return self.parts[""].unpack(tree)
        if self.label:
            return next(iter(self.parts.values())).unpack(tree)
        if not isinstance(tree, Mapping) or set(tree) != set(self.parts):
            raise WeightsError(f"expected a dict with the keys {sorted(self.parts)}, got {_shape_of(tree)}")
        return {path: leaf for model, part in self.parts.items() for path, leaf in part.unpack(tree[model]).items()}


class _Part:
    """The chosen paths of one model. All of them pack into the model's own tree, some into a flat dict."""

    __slots__ = ("_all", "_backend", "_kind", "_model", "_names", "_plain", "paths")
    _kind: Kind

    def __init__(self, backend: Backend, kind: Kind, model: str, paths: tuple[str, ...]) -> None:
        self._backend, self._kind, self._model = backend, kind, model
        self.paths = paths
        self._all = paths == backend.paths(kind)[model]
        self._names = {path: path.removeprefix(f"{model}.") if model else path for path in paths}
        self._plain = all(path == name for path, name in self._names.items())

    def is_flat(self) -> bool:
        """Whether its tree is the dict from path to array itself."""
        leaves: Leaves = dict.fromkeys(self.paths)
        return self._plain and self.pack(leaves) is leaves

    def pack(self, leaves: Leaves) -> Tree:
        if self._plain and len(leaves) == len(self._names):
            relative = leaves
        else:
            relative = {name: leaves[path] for path, name in self._names.items()}
        return self._backend.pack(self._model, self._kind, relative) if self._all else relative

    def unpack(self, tree: Tree) -> Leaves:
        try:
            relative = self._backend.unpack(self._model, self._kind, tree) if self._all else dict(tree)
            if self._plain and relative.keys() == self._names.keys():
                return relative
            if len(relative) == len(self._names):
                return {path: relative[name] for path, name in self._names.items()}
        except (ValueError, KeyError, TypeError):
            pass
        names = ", ".join(self._names.values())
        raise WeightsError(
            f"expected a tree with the structure of the {self._kind} ({names}), got {_shape_of(tree)}. Gradients with "
            "respect to a part, such as learner.params.critic, go to update(grads, learner.params.critic)"
        ) from None


def layout_of(handle: ParameterHandle) -> ParameterLayout:
    """How trees of a handle map to arrays by path: always the same object."""
    return handle._layout  # pyright: ignore[reportPrivateUsage]  # a public name could be that of a model


def layouts_of(handles: Iterable[ParameterHandle]) -> list[ParameterLayout]:
    """What `layout_of` gives for each of some handles."""
    return [handle._layout for handle in handles]  # pyright: ignore[reportPrivateUsage]  # without a call for each


def leaves_of(handle: ParameterHandle | tuple[ParameterHandle, ...], tree: Tree) -> Leaves:
    """The arrays of a tree with the structure of a handle, or of a tuple of such trees, by full path.

    Raises:
        WeightsError: a tree has another structure.
    """
    if not isinstance(handle, tuple):
        return handle._layout.leaves(tree)  # pyright: ignore[reportPrivateUsage]  # as above
    pairs = zip(layouts_of(handle), tree, strict=True)
    return {path: leaf for layout, part in pairs for path, leaf in layout.leaves(part).items()}


def named_leaves(handle: ParameterHandle, tree: Tree) -> Leaves:
    """The arrays of a tree that has the structure of a handle, or of one of its models, by full path; none of others.

    Args:
        handle: such as ``learner.params``.
        tree: such as gradients.
    """
    parts = [handle[name] for name in layout_of(handle).parts if name]
    for part in (handle, *parts):
        try:
            return dict(layout_of(part).leaves(tree))
        except WeightsError:
            continue
    return {}


def _shape_of(tree: Tree) -> str:
    if isinstance(tree, Mapping):
        return f"a dict with the keys {list(tree)}"
    return f"a {type(tree).__name__}"


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is at or below a prefix, at a dot."""
    # At a dot: ``layer1`` is not above ``layer10.weight``.
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def matching(paths: Iterable[str], patterns: Iterable[str]) -> frozenset[str]:
    """Select the paths that match one of some patterns, as ``fnmatch`` does.

    Raises:
        WeightsError: a pattern matches nothing.
    """
    union: set[str] = set()
    paths = list(paths)
    for pattern in patterns:
        matched = [path for path in paths if fnmatchcase(path, pattern)]
        if not matched:
            raise WeightsError(f"no trained parameter matches {pattern!r}; there are: {', '.join(paths) or 'none'}")
        union.update(matched)
    return frozenset(union)


def mismatches(backend: Backend, leaves: Mapping[str, Array]) -> list[str]:
    """One line for every leaf whose shape or kind of dtype differs from the present one."""
    problems: list[str] = []
    present = backend.get(leaves)
    for path, leaf in leaves.items():
        (shape, dtype), (new_shape, new_dtype) = backend.signature(present[path]), backend.signature(leaf)
        if shape != new_shape:
            problems.append(f"  {path}: the model has shape {list(shape)}, the value {list(new_shape)}")
        # A float takes ints, and V, which NumPy says of bfloat16 and the other dtypes that it does not have itself.
        elif new_dtype.kind not in {"b": "b", "i": "iu", "u": "iu", "c": "fiuVc"}.get(dtype.kind, "fiuV"):
            problems.append(f"  {path}: the model has dtype {dtype}, the value {new_dtype}")
    return problems


def differences(present: Mapping[str, Array], loaded: Mapping[str, Array], *, dtypes: bool = True) -> list[str]:
    """One line for every array that has another name, shape or dtype than the present ones."""
    lines = [f"{name}: not there" for name in present if name not in loaded]
    lines += [f"{name}: unknown" for name in loaded if name not in present]
    for name in (name for name in present if name in loaded):
        (shape, dtype), (new_shape, new_dtype) = _kind(present[name]), _kind(loaded[name])
        if new_shape != shape:
            lines.append(f"{name}: shape {list(new_shape)}, not {list(shape)}")
        # A file from another machine may have the other byte order, which changes no number.
        if dtypes and new_dtype.newbyteorder("=") != dtype.newbyteorder("="):
            lines.append(f"{name}: dtype {new_dtype}, not {dtype}")
    return lines


def _kind(value: Array) -> tuple[tuple[int, ...], HostDtype]:
    array: HostArray = np.asarray(value)
    return array.shape, array.dtype


def check_state(present: Mapping[str, Array], loaded: Mapping[str, Array]) -> None:
    """Refuse a state that does not have the names, shapes and dtypes of the present one.

    Raises:
        ValueError: lists all differences.
    """
    problems = differences(present, loaded)
    if problems:
        raise ValueError("\n".join(("the state of the optimizers does not fit:", *(f"  {line}" for line in problems))))


def renamed(weights: Mapping[str, Weight], names: NewNames | None) -> dict[str, Weight]:
    """Put weights under the names that a model has for them.

    Args:
        weights: arrays by the names they came with.
        names: a dict or a function from these to paths of the model, None for one to leave out; None keeps all names.

    Raises:
        WeightsError: two weights get one name, or a name of the dict is not there.
    """
    call = names if callable(names) else (names or {}).get
    by_path: dict[str, Weight] = {}
    absent = [] if callable(names) else [name for name in names or () if name not in weights]
    if absent:
        raise WeightsError(f"names has {', '.join(absent)}, which is none of the weights: {', '.join(weights)}")
    for name, value in weights.items():
        path = call(name) if callable(names) or name in (names or ()) else name
        if path in by_path:
            raise WeightsError(f"two weights are called {path} in this model, one of them is {name}")
        if path is not None:
            by_path[path] = value
    return by_path


def assign_optimizers(paths: Iterable[str], optimizers: Mapping[str, object]) -> list[tuple[str, tuple[str, ...]]]:
    """Which paths each optimizer trains: the longest prefix that covers a path wins; uncovered paths are frozen.

    Args:
        paths: full paths of all parameters.
        optimizers: by path prefix; ``""`` covers everything.

    Raises:
        OptimizerError: a prefix covers no parameter, or every one it covers has a longer prefix.
    """
    covered: dict[str, list[str]] = {prefix: [] for prefix in optimizers}
    paths = list(paths)
    for path in paths:
        covering = [prefix for prefix in optimizers if is_below(path, prefix)]
        if covering:
            covered[max(covering, key=len)].append(path)
    for prefix, covered_paths in covered.items():
        if not covered_paths:
            roots = ", ".join(dict.fromkeys(path.partition(".")[0] for path in paths)) or "none"
            raise OptimizerError(f"the optimizer for {prefix!r} trains no parameter; paths begin with: {roots}")
    return [(prefix, tuple(covered_paths)) for prefix, covered_paths in covered.items()]
