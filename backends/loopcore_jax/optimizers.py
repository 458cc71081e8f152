"""Optimizers: neutral specs become optax's own, transformations of optax are taken as they are."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from loopcore.backend import Array, Leaves, Tree
from loopcore.errors import OptimizerError
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from loopcore.weights import check_state
from loopcore_jax.arrays import copied, is_traced, primal, to_numpy, transform
from loopcore_jax.models import Models
from loopcore_jax.selection import selected
from loopcore_jax.store import Present

_OPTAX_NAMES = {"learning_rate": ("learning_rate",), "momentum": ("momentum", "b1"), "weight_decay": ("weight_decay",)}


class Attached(NamedTuple):
    """One attached optimizer.

    Attributes:
        name: what it is called.
        tx: the transformation.
        make: of a spec, the transformation for present values of its hyperparameters. They are inputs of a program
            and not part of its state: every 0-d array that is handed on from step to step makes a small step slower.
        paths: what it trains.
        model: the model whose own tree it sees; None if it sees a dict by path.
        names: for each hyperparameter what optax calls it.
        fixed: for each that cannot be set why not.
    """

    name: str
    tx: Any
    make: Callable[..., Any] | None
    paths: tuple[str, ...]
    model: str | None
    names: dict[str, str]
    fixed: dict[str, str]


class Optimizers:
    """The attached optimizers of one learner; their states are in the store."""

    def __init__(self, models: Models, present: Present) -> None:
        self._models = models
        self._present = present
        self._attached: list[Attached] = []

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take optimizers with the paths they train.

        Raises:
            OptimizerError: one of another framework.
        """
        store = self._present.store
        attached: list[Attached] = []
        states: list[Tree] = []
        hyper: dict[str, Any] = {}
        for index, (given, paths) in enumerate(optimizers):
            if isinstance(given, OptimizerSpec):
                make, values = _of_spec(given)
                one = Attached(
                    type(given).__name__, make(**values), make, paths, None, {name: name for name in values}, {}
                )
            elif (rule := _keras_rule(given, {path: store.params[path] for path in paths})) is not None:
                attached.append(Attached(rule.name, rule, None, paths, None, rule.names, rule.fixed))
                states.append(rule.init())
                if "learning_rate" not in rule.fixed:
                    hyper[f"{index}.learning_rate"] = rule.value("learning_rate")
                continue
            else:
                tx = _transformation(given)
                one, values = Attached(_name_of(tx), tx, None, paths, self._models.whole(paths), {}, {}), {}
            state = transform(copied, one.tx.init(self._tree(one, store.params)))  # some keep the parameters themselves
            if one.make is None:
                names = _names(state)
                one = one._replace(names=names, fixed=_fixed(state, names))
                values = {name: float(_scalars(state, own)[0]) for name, own in names.items() if name not in one.fixed}
            attached.append(one)
            states.append(state)
            hyper |= {f"{index}.{name}": value for name, value in values.items()}
        self._attached, store.states, store.hyper = attached, states, hyper

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """None: a transformation of optax is made for no parameters in particular."""
        return None

    def _tree(self, one: Attached, leaves: Mapping[str, Any]) -> Tree:
        """What the transformation sees: the model's own tree, or a dict by path."""
        if one.model is None:
            return {path: leaves[path] for path in one.paths}
        return self._models.build(one.model, leaves)

    def _leaves(self, one: Attached, tree: Tree) -> Leaves:
        return tree if one.model is None else self._models.flatten(one.model, tree)

    # -- hyperparameters ---------------------------------------------------------------------------------------

    def name(self, index: int) -> str:
        """What an optimizer is called."""
        return self._attached[index].name

    def hyper_names(self, index: int) -> tuple[str, ...]:
        """Names of the hyperparameters; every optimizer has a learning rate, even if it cannot be reached."""
        names = self._attached[index].names
        return tuple(name for name in _OPTAX_NAMES if name in names or name == "learning_rate")

    def get_hyper(self, index: int, name: str) -> Any:
        """Its present value.

        Raises:
            OptimizerError: optax keeps it where nobody can read it.
        """
        one, hyper = self._attached[index], self._present.store.hyper
        if f"{index}.{name}" in hyper:
            return hyper[f"{index}.{name}"]
        if not hasattr(one.tx, "update"):
            return one.tx.value(name)
        if name in one.names:
            return float(_scalars(self._present.store.states[index], one.names[name])[0])
        raise OptimizerError(one.fixed[name])

    def set_hyper(self, index: int, name: str, value: Any) -> None:
        """Set it, for the next update.

        Raises:
            OptimizerError: optax keeps it where nobody can set it.
        """
        one = self._attached[index]
        if name in one.fixed:
            raise OptimizerError(one.fixed[name])
        self._present.store.hyper[f"{index}.{name}"] = value

    def hyper_values(self) -> dict[str, Any]:
        """All that can be set, under ``"index.name"``, by reference."""
        return self._present.store.hyper

    def put_hyper_values(self, values: Mapping[str, Any]) -> None:
        """The inverse of `hyper_values`."""
        self._present.store.hyper = dict(values)

    def _hyper_of(self, index: int) -> dict[str, Any]:
        start = f"{index}."
        hyper = self._present.store.hyper
        return {name.removeprefix(start): value for name, value in hyper.items() if name.startswith(start)}

    # -- state -------------------------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """The leaves of all states, by number of the optimizer and place in its tree; injected values too."""
        states = self._present.store.states
        leaves, _ = jax.tree_util.tree_flatten_with_path({str(n): state for n, state in enumerate(states)})
        return {jax.tree_util.keystr(path, simple=True, separator="."): to_numpy(leaf) for path, leaf in leaves}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `export` gave.

        Raises:
            ValueError: it is that of other optimizers.
        """
        check_state(self.export(), state)
        store = self._present.store
        leaves, spec = jax.tree_util.tree_flatten_with_path({str(n): one for n, one in enumerate(store.states)})
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        new = [jnp.array(state[name], leaf.dtype) for name, (_, leaf) in zip(names, leaves, strict=True)]
        tree = jax.tree_util.tree_unflatten(spec, new)
        store.states = [tree[str(n)] for n in range(len(store.states))]

    # -- updates -----------------------------------------------------------------------------------------------

    def update(self, grads: Leaves, apply: Any) -> Any:
        """One step of every optimizer that trains one of these paths. Returns whether it happened."""
        apply = primal(apply)
        traced = is_traced(apply)
        if apply is not True and not traced and not bool(apply):
            return False
        grads = {path: primal(jnp.asarray(grad)) for path, grad in grads.items()}
        owned = {path for one in self._attached for path in one.paths}
        frozen = [path for path in grads if path not in owned]
        if frozen:
            raise OptimizerError(f"no optimizer trains {', '.join(frozen[:5])}: leave these out of the gradients")
        store = self._present.store
        stepping = [n for n, one in enumerate(self._attached) if not grads.keys().isdisjoint(one.paths)]
        params = {path: store.params[path] for n in stepping for path in self._attached[n].paths}
        hyper = [self._hyper_of(n) for n in stepping]
        now = (params, [store.states[n] for n in stepping])

        def step(now: tuple[Leaves, list[Tree]]) -> tuple[Leaves, list[Tree]]:
            return self._stepped(stepping, grads, hyper, *now)

        moved, states = selected(apply, step, now) if traced else step(now)
        store.params.update(moved)
        for n, state in zip(stepping, states, strict=True):
            store.states[n] = state
        return apply if traced else True

    def _stepped(
        self, stepping: list[int], grads: Leaves, hyper: list[dict[str, Any]], params: Leaves, states: list[Tree]
    ) -> tuple[Leaves, list[Tree]]:
        moved, after = dict(params), list(states)
        for place, n in enumerate(stepping):
            if not hasattr(self._attached[n].tx, "update"):
                mine = {path: grads[path] for path in self._attached[n].paths if path in grads}
                found, after[place] = self._attached[n].tx.step(mine, states[place], params, hyper[place])
                moved.update(found)
                continue
            one, tx, state = self._present_of(n, states[place], hyper[place])
            given = {path: grads[path] if path in grads else jnp.zeros_like(params[path]) for path in one.paths}
            tree = self._tree(one, params)
            updates, new = tx.update(self._tree(one, given), state, tree)
            found = self._leaves(one, optax.apply_updates(tree, updates))
            moved.update({path: found[path] for path in one.paths if path in grads})
            whole = all(path in grads for path in one.paths)
            after[place] = new if whole else self._partly(one, grads, new, state)
        return moved, after

    def _present_of(self, index: int, state: Tree, values: Mapping[str, Any]) -> tuple[Attached, Any, Tree]:
        """An optimizer, its transformation and its state, with the present hyperparameters."""
        one = self._attached[index]
        if one.make is not None:
            return one, one.make(**values), state
        return one, one.tx, self._with_hyper(one, state, values)

    def _with_hyper(self, one: Attached, state: Tree, values: Mapping[str, Any]) -> Tree:
        for name, value in values.items():
            own = one.names[name]
            dtype = _scalars(state, own)[0].dtype
            state = optax.tree_utils.tree_set(state, _within("hyperparams"), **{own: jnp.asarray(value, dtype)})
        return state

    def _partly(self, one: Attached, grads: Leaves, new: Tree, old: Tree) -> Tree:
        """The new state, but for parameters that had no gradient the old one."""
        labels = self._tree(one, {path: path for path in one.paths})
        of_leaf = optax.tree_utils.tree_map_params(
            one.tx, lambda _, path: path, old, labels, transform_non_params=lambda _: ""
        )
        kept = {path for path in one.paths if path not in grads}
        return jax.tree.map(lambda path, a, b: b if path in kept else a, of_leaf, new, old)


def _keras_rule(given: Any, params: Leaves) -> Any:
    """The rule of an optimizer of Keras; None for another one."""
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(given, keras.optimizers.Optimizer):
        return None
    from loopcore_jax.from_keras import KerasRule

    return KerasRule(given, params)


def _transformation(given: Any) -> Any:
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(given, nnx.Optimizer):
        return given.tx
    if isinstance(given, optax.MultiSteps):
        return given.gradient_transformation()
    if isinstance(given, optax.GradientTransformation):
        return given
    kind = type(given)
    raise OptimizerError(
        f"the optimizer is a {kind.__module__}.{kind.__qualname__}, but the model is a JAX one: pass "
        "loopcore.Adam(1e-3), or a transformation of optax such as "
        "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)"
    )


def _name_of(tx: Any) -> str:
    """The functions of optax it was put together from: it has no name, those of adam and adamw keep states alike."""
    found: list[str] = []
    _collect(tx.update, found, set())
    return f"optax({', '.join(found) or type(tx).__name__})"


def _collect(function: Any, found: list[str], seen: set[int]) -> None:
    seen.add(id(function))
    parts = function.__qualname__.split(".")
    if parts[-1] in (parts[0], "update_fn") and not parts[0].startswith(("chain", "init", "<")):
        found.append(parts[0])
    for inner in inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ():
        for one in inner if isinstance(inner, (tuple, list)) else (inner,):
            if inspect.isfunction(one) and id(one) not in seen:
                _collect(one, found, seen)


def _of_spec(spec: OptimizerSpec) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the transformation of a spec from its hyperparameters, and their first values."""
    match spec:
        case AdamW():
            adamw = partial(_adam, optax.adamw, spec)
            rest = {"momentum": spec.beta1, "weight_decay": spec.weight_decay}
            return adamw, {"learning_rate": spec.learning_rate, **rest}
        case Adam():
            return partial(_adam, optax.adam, spec), {"learning_rate": spec.learning_rate, "momentum": spec.beta1}
        case Momentum():
            return optax.sgd, {"learning_rate": spec.learning_rate, "momentum": spec.momentum}
        case SGD():
            return optax.sgd, {"learning_rate": spec.learning_rate}
        case _:
            raise OptimizerError(
                f"optax has nothing for {spec!r}: use SGD, Momentum, Adam or AdamW, or pass a transformation of optax"
            )


def _adam(make: Callable[..., Any], spec: Any, learning_rate: Any, momentum: Any, **rest: Any) -> Any:
    return make(learning_rate, b1=momentum, b2=spec.beta2, eps=spec.epsilon, **rest)


def _within(container: str) -> Callable[[Any, Any], bool]:
    """A filter for values of one field of a state of ``optax.inject_hyperparams``."""
    return lambda path, value: len(path) > 1 and getattr(path[-2], "name", None) == container


def _scalars(state: Tree, name: str) -> list[Array]:
    """Values of an injected hyperparameter, wherever in a chain it is."""
    return [value for _, value in optax.tree_utils.tree_get_all_with_path(state, name, _within("hyperparams"))]


def _names(state: Tree) -> dict[str, str]:
    found = {
        name: next((own for own in candidates if _scalars(state, own)), "") for name, candidates in _OPTAX_NAMES.items()
    }
    return {name: own for name, own in found.items() if own}


def _fixed(state: Tree, names: Mapping[str, str]) -> dict[str, str]:
    """Why a hyperparameter cannot be set, where it cannot."""
    found = {
        name: f"the {name} of this optimizer follows a schedule of optax: pass a number to inject_hyperparams, and "
        "use lc.Scheduler or assign learner.hyper"
        for name, own in names.items()
        if optax.tree_utils.tree_get_all_with_path(state, own, _within("hyperparams_states"))
    }
    if "learning_rate" not in names:
        found["learning_rate"] = (
            "optax keeps the learning rate of this optimizer in a closure, where nobody can read or set it: write "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), or lc.Adam(1e-3)"
        )
    return found
