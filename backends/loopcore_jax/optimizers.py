"""Optimizers: neutral specs become optax's own, transformations of optax are taken as they are."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from loopcore.backend import Array, Leaves, Tree
from loopcore.errors import OptimizerError
from loopcore.handles.parameters import check_state
from loopcore.optimizers import SGD, Adam, AdamW, Momentum, OptimizerSpec
from loopcore_jax.arrays import as_key, copied, is_key, is_traced, primal, to_numpy, transform
from loopcore_jax.models import Models, Part
from loopcore_jax.selection import selected
from loopcore_jax.store import Mirror, Present

_OPTAX_NAMES = {"learning_rate": ("learning_rate",), "momentum": ("momentum", "b1"), "weight_decay": ("weight_decay",)}


class Attached(NamedTuple):
    """One attached optimizer.

    Attributes:
        name: what it is called.
        tx: the transformation.
        make: of a spec, the transformation for present values of its hyperparameters. They are inputs of a program
            and not part of its state: every 0-d array that is handed on from step to step makes a small step slower.
        paths: what it trains.
        part: the tree that it sees, a model's own; None if it sees a dict by path.
        names: for each hyperparameter what its library calls it.
        fixed: for each that cannot be set why not.
        places: for each that can be set the numbers of the leaves of the state that hold it.
        valued: whether its updates take the loss, as ``value=``.
        owner: the user's ``nnx.Optimizer``, whose state it is.
    """

    name: str
    tx: Any
    make: Callable[..., Any] | None
    paths: tuple[str, ...]
    part: Part | None
    names: dict[str, str]
    fixed: dict[str, str]
    places: dict[str, tuple[int, ...]]
    valued: bool = False
    owner: Any = None


class Counted(NamedTuple):
    """The state of an ``nnx.Optimizer``: that of its transformation, and how many steps it made."""

    state: Tree
    step: Array


class Optimizers:
    """The attached optimizers of one learner; their states are in the store."""

    def __init__(self, models: Models, present: Present) -> None:
        self._models = models
        self._present = present
        self._attached: list[Attached] = []
        self._constraints: dict[str, Callable[[Any], Any]] = {}
        self._mirror = Mirror()
        self._owners: list[int] = []
        self._rules: list[int] = []  # those of Keras
        self.takes_value = False

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take optimizers with the paths they train.

        Raises:
            OptimizerError: one of another framework.
        """
        store = self._present.store
        attached: list[Attached] = []
        states: list[Tree] = []
        hyper: dict[str, Any] = {}
        self._constraints = self._models.constraints()
        for index, (given, paths) in enumerate(optimizers):
            self._models.check_trained(paths)
            if isinstance(given, OptimizerSpec):
                make, values = _of_spec(given)
                own = {name: name for name in values}
                one = Attached(type(given).__name__, make(**values), make, paths, None, own, {}, {})
            elif (rule := self._keras_rule(given, paths)) is not None:
                attached.append(Attached(rule.name, rule, None, paths, None, rule.names, rule.fixed, {}))
                states.append(rule.init())
                if "learning_rate" not in rule.fixed:
                    hyper[f"{index}.learning_rate"] = rule.value("learning_rate")
                continue
            else:
                one, state, values = self._native(given, paths)
                attached.append(one)
                states.append(state)
                hyper |= {f"{index}.{name}": value for name, value in values.items()}
                continue
            attached.append(one)
            states.append(transform(copied, one.tx.init(self._tree(one, store.params))))
            hyper |= {f"{index}.{name}": value for name, value in values.items()}
        self._models.check_twins(path for one in attached for path in one.paths)
        self._attached, store.states, store.hyper = attached, states, hyper
        self.takes_value = any(one.valued for one in attached)
        self._mirror = Mirror()
        self._owners = [n for n, one in enumerate(attached) if one.owner is not None]
        self._rules = [n for n, one in enumerate(attached) if not hasattr(one.tx, "update")]
        for n in self._owners:
            for place, (leaf, variable) in enumerate(self._pairs(n)):
                self._mirror.agree((n, place), leaf, variable.get_value())

    def _native(self, given: Any, paths: tuple[str, ...]) -> tuple[Attached, Tree, dict[str, float]]:
        """One of optax, its state, and the present values of what can be set in it."""
        tx, params = _transformation(given), self._present.store.params
        owner = given if _is_of_nnx(given) else None
        part = self._models.whole(paths) if owner is None else self._part_of(owner, paths)
        one = Attached(_name_of(tx), tx, None, paths, part, {}, {}, {}, owner=owner)
        tree = self._tree(one, params)
        state = tx.init(tree)
        if owner is not None:
            state = _state_of(owner, state)
        state = transform(copied, state)  # some keep the parameters themselves
        names = _names(state)
        fixed = _fixed(state, names)
        places = {name: _places(state, own) for name, own in names.items() if name not in fixed}
        one = one._replace(names=names, fixed=fixed, places=places, valued=_takes_value(tx, state, tree))
        values = _settable(one, state)
        return one, state if owner is None else Counted(state, copied(owner.step.get_value())), values

    def _part_of(self, owner: Any, paths: tuple[str, ...]) -> Part:
        """The state of nnx with what an ``nnx.Optimizer`` was made for.

        Raises:
            OptimizerError: that is not what it is to train.
        """
        for part in self._models.trained_by(owner.wrt):
            if set(part.paths) == set(paths):
                return part
        raise OptimizerError(
            f"an nnx.Optimizer with wrt={owner.wrt!r} is made for other parameters than it is to train here, "
            f"{', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}: make its wrt such that it takes these, or "
            "pass optimizer.tx, the transformation alone"
        )

    def _keras_rule(self, given: Any, paths: tuple[str, ...]) -> Any:
        """The rule of an optimizer of Keras; None for another one."""
        keras = sys.modules.get("keras")
        if keras is None or not isinstance(given, keras.optimizers.Optimizer):
            return None
        from loopcore_jax.from_keras import KerasRule

        params = self._present.store.params
        return KerasRule(given, {path: params[path] for path in paths}, self._models.keras_variables())

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """What the ``wrt`` of an ``nnx.Optimizer`` takes; None: a transformation is made for nothing in particular."""
        if not _is_of_nnx(optimizer):
            return None
        found = tuple(path for part in self._models.trained_by(optimizer.wrt) for path in part.paths)
        if not found:
            raise OptimizerError(f"wrt={optimizer.wrt!r} of the nnx.Optimizer takes no parameter of the model")
        return found

    def _tree(self, one: Attached, leaves: Mapping[str, Any]) -> Tree:
        """What the transformation sees: the model's own tree, or a dict by path."""
        return {path: leaves[path] for path in one.paths} if one.part is None else one.part.build(leaves)

    def _leaves(self, one: Attached, tree: Tree) -> Leaves:
        return tree if one.part is None else one.part.flatten(tree)

    # -- the user's own objects --------------------------------------------------------------------------------

    def _pairs(self, index: int) -> list[tuple[Array, Any]]:
        """The leaves of the state of an ``nnx.Optimizer``, each with the user's variable.

        Raises:
            OptimizerError: the user's object has another state.
        """
        one, state = self._attached[index], self._present.store.states[index]
        leaves = jax.tree_util.tree_leaves(state)
        variables = [*_variables(one.owner.opt_state), one.owner.step]
        if len(leaves) != len(variables):
            raise OptimizerError(
                f"the opt_state of the nnx.Optimizer has {len(variables) - 1} arrays now and had {len(leaves) - 1}: "
                "pass a new one to a new Learner"
            )
        return list(zip(leaves, variables, strict=True))

    def show(self) -> None:
        """Write copies of the present states into those of the user's objects, where these have other values."""
        for n in self._owners:
            hyper = self._hyper_of(n)
            set_now = {place: hyper[key] for key, place in _slots(self._attached[n])}
            for place, (leaf, variable) in enumerate(self._pairs(n)):
                if place in set_now:  # the state has it after the next update
                    value = jnp.asarray(set_now[place], leaf.dtype)
                    same = float(value) == float(variable.get_value())
                else:
                    value, same = leaf, self._mirror.theirs((n, place), leaf) is not None
                if not same:
                    variable.set_value(copied(value))
                self._mirror.agree((n, place), leaf, variable.get_value())
        for n in self._rules:
            self._attached[n].tx.show(self._present.store.states[n], self._hyper_of(n))

    def take(self) -> None:
        """Go on from what the user wrote into his objects since they were written last."""
        store = self._present.store
        for n in self._rules:
            changed, hyper = self._attached[n].tx.take(store.states[n])
            store.states[n] = changed
            store.hyper = {**store.hyper, **{f"{n}.{name}": value for name, value in hyper.items()}}
        for n in self._owners:
            leaves, spec = jax.tree_util.tree_flatten(store.states[n])
            theirs = [variable.get_value() for _, variable in self._pairs(n)]
            changed = [place for place, value in enumerate(theirs) if not self._mirror.is_theirs((n, place), value)]
            for place in changed:
                leaves[place] = jnp.array(theirs[place], leaves[place].dtype)
                self._mirror.agree((n, place), leaves[place], theirs[place])
            if changed:
                store.states[n] = state = jax.tree_util.tree_unflatten(spec, leaves)
                self._take_hyper(n, state.state, changed)

    def _take_hyper(self, index: int, state: Tree, changed: Iterable[int]) -> None:
        """What can be set has the values that a state holds, where these are others now."""
        one = self._attached[index]
        if not set(changed).isdisjoint(place for _, place in _slots(one)):
            values = {f"{index}.{key}": value for key, value in _settable(one, state).items()}
            self._present.store.hyper = {**self._present.store.hyper, **values}

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
        one, hyper = self._attached[index], self._present.store.hyper
        if name in one.fixed:
            raise OptimizerError(one.fixed[name])
        keys = [f"{index}.{key}" for key in _keys(one, name)]
        different = list(dict.fromkeys(hyper[key] for key in keys if key in hyper))
        if len(different) > 1:
            warnings.warn(
                f"the transformation had a {name} of {', '.join(map('{:.6g}'.format, different))}, and all have "
                f"{value} now: to set each, use one optimizer for each part of the model, "
                "optimizer={'body': lc.Adam(1e-4), 'head': lc.Adam(1e-3)}",
                stacklevel=2,
            )
        hyper.update(dict.fromkeys(keys, value))

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
        states = dict(enumerate(self._present.store.states))
        for n, one in enumerate(self._attached):
            if any(len(places) > 1 for places in one.places.values()):  # which the hyperparameters do not tell apart
                states[n] = self._set_in(one, states[n], self._hyper_of(n))
        leaves, _ = jax.tree_util.tree_flatten_with_path({str(n): state for n, state in states.items()})
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
        new = [
            as_key(state[name], leaf) if is_key(leaf) else jnp.array(state[name], leaf.dtype)
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        tree = jax.tree_util.tree_unflatten(spec, new)
        store.states = [tree[str(n)] for n in range(len(store.states))]
        for n, one in enumerate(self._attached):
            for places in one.places.values():
                if len(places) > 1:
                    self._take_hyper(n, _inner(store.states[n]), places)

    # -- updates -----------------------------------------------------------------------------------------------

    def update(self, grads: Leaves, apply: Any, value: Any = None) -> Any:
        """One step of every optimizer that trains one of these paths, whose loss is ``value``.

        Returns:
            Whether it happened.
        """
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
            return self._stepped(stepping, grads, hyper, value, *now)

        moved, states = selected(apply, step, now) if traced else step(now)
        store.params.update(moved)
        for n, state in zip(stepping, states, strict=True):
            store.states[n] = state
        return apply if traced else True

    def _stepped(
        self,
        stepping: list[int],
        grads: Leaves,
        hyper: list[dict[str, Any]],
        value: Any,
        params: Leaves,
        states: list[Tree],
    ) -> tuple[Leaves, list[Tree]]:
        moved, after = dict(params), list(states)
        for place, n in enumerate(stepping):
            if not hasattr(self._attached[n].tx, "update"):
                mine = {path: grads[path] for path in self._attached[n].paths if path in grads}
                found, after[place] = self._attached[n].tx.step(mine, states[place], params, hyper[place])
                moved.update(found)
                continue
            counted = states[place] if self._attached[n].owner is not None else None
            one, tx, state = self._present_of(n, _inner(states[place]), hyper[place])
            given = {path: grads[path] if path in grads else jnp.zeros_like(params[path]) for path in one.paths}
            tree = self._tree(one, params)
            extra = {"value": value} if one.valued else {}
            updates, new = tx.update(self._tree(one, given), state, tree, **extra)
            found = self._leaves(one, optax.apply_updates(tree, updates))
            moved.update({path: self._constrained(path, found[path]) for path in one.paths if path in grads})
            whole = all(path in grads for path in one.paths)
            new = new if whole else self._partly(one, grads, new, state)
            after[place] = new if counted is None else Counted(new, counted.step + 1)
        return moved, after

    def _constrained(self, path: str, array: Array) -> Array:
        """A parameter after an update, within what its model allows."""
        constraint = self._constraints.get(path)
        return array if constraint is None else jnp.asarray(constraint(array), array.dtype)

    def _present_of(self, index: int, state: Tree, values: Mapping[str, Any]) -> tuple[Attached, Any, Tree]:
        """An optimizer, its transformation and its state, with the present hyperparameters."""
        one = self._attached[index]
        if one.make is not None:
            return one, one.make(**values), state
        return one, one.tx, self._with_hyper(one, state, values)

    def _with_hyper(self, one: Attached, state: Tree, values: Mapping[str, Any]) -> Tree:
        """A state of optax with these values where it keeps them."""
        slots = _slots(one)
        if not slots:
            return state
        leaves, spec = jax.tree_util.tree_flatten(state)
        for key, place in slots:
            leaves[place] = jnp.asarray(values[key], leaves[place].dtype)
        return jax.tree_util.tree_unflatten(spec, leaves)

    def _set_in(self, one: Attached, state: Tree, values: Mapping[str, Any]) -> Tree:
        inner = self._with_hyper(one, _inner(state), values)
        return state._replace(state=inner) if isinstance(state, Counted) else inner

    def _partly(self, one: Attached, grads: Leaves, new: Tree, old: Tree) -> Tree:
        """The new state, but for parameters that had no gradient the old one."""
        labels = self._tree(one, {path: path for path in one.paths})
        of_leaf = optax.tree_utils.tree_map_params(
            one.tx, lambda _, path: path, old, labels, transform_non_params=lambda _: ""
        )
        kept = {path for path in one.paths if path not in grads}
        return jax.tree.map(lambda path, a, b: b if path in kept else a, of_leaf, new, old)


def _is_of_nnx(optimizer: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(optimizer, nnx.Optimizer)


def _variables(tree: Any) -> list[Any]:
    nnx = sys.modules["flax.nnx"]
    return jax.tree_util.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _inner(state: Tree) -> Tree:
    """The state of the transformation."""
    return state.state if isinstance(state, Counted) else state


def _state_of(owner: Any, like: Tree) -> Tree:
    """The state that an ``nnx.Optimizer`` has now.

    Raises:
        OptimizerError: it was made for another module.
    """
    leaves = [variable.get_value() for variable in _variables(owner.opt_state)]
    wanted, spec = jax.tree_util.tree_flatten(like)
    if [jnp.shape(leaf) for leaf in leaves] != [jnp.shape(leaf) for leaf in wanted]:
        raise OptimizerError(
            "the opt_state of the nnx.Optimizer does not fit the model: make it for this module, nnx.Optimizer(module, "
            "tx, wrt=nnx.Param)"
        )
    return jax.tree_util.tree_unflatten(spec, leaves)


def _takes_value(tx: Any, state: Tree, params: Tree) -> bool:
    """Whether its updates use the loss.

    Raises:
        OptimizerError: they need more than that.
    """
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return False
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree_util.tree_leaves(params)))

    def update(value: Any, grads: Tree, state: Tree, params: Tree) -> Tree:
        return tx.update(grads, state, params, value=value)

    try:
        jaxpr = jax.make_jaxpr(update)(jnp.zeros((), dtype), params, state, params).jaxpr
    except TypeError as error:
        try:
            jax.eval_shape(tx.update, params, state, params)
        except TypeError:
            raise OptimizerError(
                f"{_name_of(tx)} needs what a step cannot give: {error}. An update gets the gradients, the parameters "
                "and value=, the loss; a line search, which calls the objective itself, is written by hand around "
                "learner.gradient, or replaced by optax.scale_by_polyak or optax.contrib.reduce_on_plateau"
            ) from error
        return False
    return _is_used(jaxpr)


def _is_used(jaxpr: Any) -> bool:
    """Whether anything depends on the first input."""
    first = jaxpr.invars[0]
    read = [*(var for equation in jaxpr.eqns for var in equation.invars), *jaxpr.outvars]
    return any(var is first for var in read)


def _places(state: Tree, name: str) -> tuple[int, ...]:
    """Which leaves of a state are the injected hyperparameter of a name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return tuple(
        number
        for number, (path, _) in enumerate(leaves)
        if len(path) > 1 and _entry(path[-1]) == name and _entry(path[-2]) == "hyperparams"
    )


def _entry(key: Any) -> Any:
    return getattr(key, "name", getattr(key, "key", None))


def _keys(one: Attached, name: str) -> list[str]:
    """What the values of a hyperparameter are kept under: one that has several places has several."""
    return [name, *(f"{name}.{number}" for number in range(1, len(one.places.get(name, ()))))]


def _slots(one: Attached) -> list[tuple[str, int]]:
    """For each value that can be set its key, and its place among the leaves of the state."""
    return [slot for name, places in one.places.items() for slot in zip(_keys(one, name), places, strict=True)]


def _settable(one: Attached, state: Tree) -> dict[str, float]:
    """What can be set, as the state has it."""
    leaves = jax.tree_util.tree_leaves(state)
    return {key: float(leaves[place]) for key, place in _slots(one)}


def _transformation(given: Any) -> Any:
    if _is_of_nnx(given):
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
