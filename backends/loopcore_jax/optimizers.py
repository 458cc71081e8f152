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
from loopcore_jax.array_store import CurrentArrays, Mirror
from loopcore_jax.arrays import as_key, copied, is_key, is_traced, primal, to_numpy, transform
from loopcore_jax.conditional_update import update_if
from loopcore_jax.models import Models, Part

# What optax may call each hyperparameter of loopcore, where it is injected.
_OPTAX_NAMES = {"learning_rate": ("learning_rate",), "momentum": ("momentum", "b1"), "weight_decay": ("weight_decay",)}


class Attached(NamedTuple):
    """What is known of one attached optimizer; its state, which changes, is in the store.

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
    """The state of an ``nnx.Optimizer``.

    Attributes:
        state: of its transformation.
        step: how many steps it made.
    """

    state: Tree
    step: Array


class Optimizers:
    """The attached optimizers of one learner; their states are in the store.

    Args:
        models: know the trees of the parameters.
        current: has the store.
    """

    def __init__(self, models: Models, current: CurrentArrays) -> None:
        self._models = models
        self._current = current
        self._attached: list[Attached] = []
        self._constraints: dict[str, Callable[[Any], Any]] = {}
        self._mirror = Mirror()
        self._owners: list[int] = []  # numbers of those that are an ``nnx.Optimizer``
        self._rules: list[int] = []  # numbers of those of Keras
        self.takes_value = False

    def attach(self, optimizers: Sequence[tuple[Any, tuple[str, ...]]]) -> None:
        """Take optimizers with the paths they train.

        Raises:
            OptimizerError: one of another framework.
        """
        store = self._current.store
        attached: list[Attached] = []
        states: list[Tree] = []
        hyper: dict[str, Any] = {}
        self._constraints = self._models.constraints()
        for index, (optimizer, paths) in enumerate(optimizers):
            self._models.check_trained(paths)
            # The learner's optimizers are replaced when all are adapted, so that an error leaves it those it has.
            adapted, state, values = self._adapted(optimizer, paths)
            attached.append(adapted)
            states.append(state)
            hyper |= {f"{index}.{name}": value for name, value in values.items()}
        self._models.check_twins(path for optimizer in attached for path in optimizer.paths)
        self._attached, store.states, store.hyper = attached, states, hyper
        self.takes_value = any(optimizer.valued for optimizer in attached)
        # Which of them have an object of the user to be kept up to date is looked up at every run, so by number here.
        self._mirror = Mirror()
        self._owners = [n for n, optimizer in enumerate(attached) if optimizer.owner is not None]
        self._rules = [n for n, optimizer in enumerate(attached) if not hasattr(optimizer.tx, "update")]
        for n in self._owners:
            for place, (leaf, variable) in enumerate(self._pairs(n)):
                self._mirror.agree((n, place), leaf, variable.get_value())

    def _adapted(self, optimizer: Any, paths: tuple[str, ...]) -> tuple[Attached, Tree, dict[str, Any]]:
        """Adapt an optimizer of any kind.

        Returns:
            What is known of it, its first state, and the first values of the hyperparameters that can be set.
        """
        if isinstance(optimizer, OptimizerSpec):
            return self._adapted_spec(optimizer, paths)
        keras = sys.modules.get("keras")  # not imported: without it no optimizer can be one of Keras
        if keras is not None and isinstance(optimizer, keras.optimizers.Optimizer):
            return self._adapted_keras(optimizer, paths)
        return self._adapted_optax(optimizer, paths)

    def _adapted_spec(self, spec: OptimizerSpec, paths: tuple[str, ...]) -> tuple[Attached, Tree, dict[str, Any]]:
        """Adapt a neutral spec: the transformation of optax that does the same."""
        make, values = _of_spec(spec)
        names = {name: name for name in values}
        attached = Attached(type(spec).__name__, make(**values), make, paths, None, names, {}, {})
        return attached, transform(copied, attached.tx.init(self._tree(attached, self._current.store.params))), values

    def _adapted_keras(self, optimizer: Any, paths: tuple[str, ...]) -> tuple[Attached, Tree, dict[str, Any]]:
        """Adapt an optimizer of Keras, whose variables become the state."""
        from loopcore_jax.from_keras import KerasRule

        params = self._current.store.params
        rule = KerasRule(optimizer, {path: params[path] for path in paths}, self._models.keras_variables())
        attached = Attached(rule.name, rule, None, paths, None, rule.names, rule.fixed, {})
        rate = {} if "learning_rate" in rule.fixed else {"learning_rate": rule.value("learning_rate")}
        return attached, rule.init(), rate

    def _adapted_optax(self, optimizer: Any, paths: tuple[str, ...]) -> tuple[Attached, Tree, dict[str, float]]:
        """Adapt a transformation of optax or an ``nnx.Optimizer``, which goes on from the state that it has."""
        tx, params = _transformation(optimizer), self._current.store.params
        # An ``nnx.Optimizer`` was made for a state of nnx. A bare transformation of a whole model sees its own tree,
        # since labels and masks that the user wrote for it are trees like that; one of a part of it sees a dict.
        owner = optimizer if _is_of_nnx(optimizer) else None
        part = self._models.tree_of(paths) if owner is None else self._part_of(owner, paths)
        attached = Attached(_name_of(tx), tx, None, paths, part, {}, {}, {}, owner=owner)
        tree = self._tree(attached, params)
        state = tx.init(tree)
        if owner is not None:
            state = _state_of(owner, state)
        state = transform(copied, state)  # some keep the parameters themselves
        # What ``inject_hyperparams`` keeps in the state can be set there, unless a schedule writes over it.
        names = _names(state)
        fixed = _fixed(state, names)
        places = {name: _places(state, optax_name) for name, optax_name in names.items() if name not in fixed}
        attached = attached._replace(names=names, fixed=fixed, places=places, valued=_takes_value(tx, state, tree))
        values = _settable(attached, state)
        return attached, state if owner is None else Counted(state, copied(owner.step.get_value())), values

    def _part_of(self, owner: Any, paths: tuple[str, ...]) -> Part:
        """Find the state of nnx with what an ``nnx.Optimizer`` was made for.

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

    def native_paths(self, optimizer: Any) -> tuple[str, ...] | None:
        """What the ``wrt`` of an ``nnx.Optimizer`` takes; None: a transformation is made for nothing in particular."""
        if not _is_of_nnx(optimizer):
            return None
        paths = tuple(path for part in self._models.trained_by(optimizer.wrt) for path in part.paths)
        if not paths:
            raise OptimizerError(f"wrt={optimizer.wrt!r} of the nnx.Optimizer takes no parameter of the model")
        return paths

    def _tree(self, attached: Attached, leaves: Mapping[str, Any]) -> Tree:
        """Build what the transformation sees: the model's own tree, or a dict by path."""
        return {path: leaves[path] for path in attached.paths} if attached.part is None else attached.part.build(leaves)

    def _leaves(self, attached: Attached, tree: Tree) -> Leaves:
        """Sort the leaves of what `_tree` built by path."""
        return tree if attached.part is None else attached.part.flatten(tree)

    # -- the user's own objects --------------------------------------------------------------------------------

    def _pairs(self, index: int) -> list[tuple[Array, Any]]:
        """Pair the leaves of the state of an ``nnx.Optimizer`` with the variables of the user's object.

        Raises:
            OptimizerError: the user's object has another state.
        """
        attached, state = self._attached[index], self._current.store.states[index]
        leaves = jax.tree_util.tree_leaves(state)
        variables = [*_variables(attached.owner.opt_state), attached.owner.step]
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
            values_by_place = {place: hyper[key] for key, place in _slots(self._attached[n])}
            for place, (leaf, variable) in enumerate(self._pairs(n)):
                # A hyperparameter that was set is in the state after the next update only; the user shall see it now.
                if place in values_by_place:
                    value = jnp.asarray(values_by_place[place], leaf.dtype)
                    same = float(value) == float(variable.get_value())
                else:
                    value, same = leaf, self._mirror.user_array((n, place), leaf) is not None
                if not same:
                    variable.set_value(copied(value))
                self._mirror.agree((n, place), leaf, variable.get_value())
        for n in self._rules:
            self._attached[n].tx.show(self._current.store.states[n], self._hyper_of(n))

    def take(self) -> None:
        """Go on from what the user wrote into his objects since they were written last."""
        store = self._current.store
        for n in self._rules:
            changed, hyper = self._attached[n].tx.take(store.states[n])
            store.states[n] = changed
            store.hyper = {**store.hyper, **{f"{n}.{name}": value for name, value in hyper.items()}}
        for n in self._owners:
            # A variable that the user assigned to has another array than the one it was given by `show`.
            leaves, spec = jax.tree_util.tree_flatten(store.states[n])
            user_arrays = [variable.get_value() for _, variable in self._pairs(n)]
            changed = [
                place for place, value in enumerate(user_arrays) if not self._mirror.is_user_array((n, place), value)
            ]
            for place in changed:
                leaves[place] = jnp.array(user_arrays[place], leaves[place].dtype)
                self._mirror.agree((n, place), leaves[place], user_arrays[place])
            if changed:
                store.states[n] = state = jax.tree_util.tree_unflatten(spec, leaves)
                self._take_hyper(n, state.state, changed)

    def _take_hyper(self, index: int, state: Tree, changed: Iterable[int]) -> None:
        """Set hyperparameters to the values that a state holds, if one of the changed leaves is the place of one.

        Args:
            index: of the optimizer.
            state: of its transformation.
            changed: numbers of the leaves that have another value.
        """
        attached = self._attached[index]
        if not set(changed).isdisjoint(place for _, place in _slots(attached)):
            values = {f"{index}.{key}": value for key, value in _settable(attached, state).items()}
            self._current.store.hyper = {**self._current.store.hyper, **values}

    # -- hyperparameters ---------------------------------------------------------------------------------------

    def optimizer_name(self, optimizer: int) -> str:
        """The name of an optimizer for messages and logs."""
        return self._attached[optimizer].name

    def hyper_names(self, optimizer: int) -> tuple[str, ...]:
        """Which hyperparameters an optimizer has; always a learning rate, even if nobody can read or set it."""
        names = self._attached[optimizer].names
        return tuple(name for name in _OPTAX_NAMES if name in names or name == "learning_rate")

    def get_hyper(self, optimizer: int, name: str) -> Any:
        """The present value of a hyperparameter.

        Raises:
            OptimizerError: optax keeps it where nobody can read it.
        """
        attached, hyper = self._attached[optimizer], self._current.store.hyper
        if f"{optimizer}.{name}" in hyper:
            return hyper[f"{optimizer}.{name}"]
        if not hasattr(attached.tx, "update"):  # a rule of Keras
            return attached.tx.value(name)
        # Not to be set, since a schedule of optax writes it, but to be read.
        if name in attached.names:
            return float(_scalars(self._current.store.states[optimizer], attached.names[name])[0])
        raise OptimizerError(attached.fixed[name])

    def set_hyper(self, optimizer: int, name: str, value: Any) -> None:
        """Set a hyperparameter, for the next update.

        Raises:
            OptimizerError: optax keeps it where nobody can set it.
        """
        attached, hyper = self._attached[optimizer], self._current.store.hyper
        if name in attached.fixed:
            raise OptimizerError(attached.fixed[name])
        # A chain may have several, as with a rate for each part of a model; one number then replaces all of them.
        keys = [f"{optimizer}.{key}" for key in _keys(attached, name)]
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
        """The hyperparameters of all optimizers that can be set, under ``"index.name"``, by reference."""
        return self._current.store.hyper

    def put_hyper_values(self, values: Mapping[str, Any]) -> None:
        """Make these the present hyperparameters, the inverse of `hyper_values`."""
        self._current.store.hyper = dict(values)

    def _hyper_of(self, index: int) -> dict[str, Any]:
        """The present hyperparameters of one optimizer, by name."""
        start = f"{index}."
        hyper = self._current.store.hyper
        return {name.removeprefix(start): value for name, value in hyper.items() if name.startswith(start)}

    # -- state -------------------------------------------------------------------------------------------------

    def export_optimizers(self) -> dict[str, Any]:
        """Copy the leaves of all states to the host, by number of the optimizer and place in its tree.

        Injected hyperparameters are among them, with their present values where one has several places.
        """
        states = dict(enumerate(self._current.store.states))
        for n, attached in enumerate(self._attached):
            # A checkpoint has one value for each hyperparameter; several of one name may differ, and go with the state.
            if any(len(places) > 1 for places in attached.places.values()):
                states[n] = self._set_in(attached, states[n], self._hyper_of(n))
        leaves, _ = jax.tree_util.tree_flatten_with_path({str(n): state for n, state in states.items()})
        return {jax.tree_util.keystr(path, simple=True, separator="."): to_numpy(leaf) for path, leaf in leaves}

    def import_optimizers(self, state: Mapping[str, Any]) -> None:
        """Go on from what `export_optimizers` gave.

        Raises:
            ValueError: it is that of other optimizers.
        """
        check_state(self.export_optimizers(), state)
        store = self._current.store
        leaves, spec = jax.tree_util.tree_flatten_with_path({str(n): tree for n, tree in enumerate(store.states)})
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        new = [
            as_key(state[name], leaf) if is_key(leaf) else jnp.array(state[name], leaf.dtype)
            for name, (_, leaf) in zip(names, leaves, strict=True)
        ]
        tree = jax.tree_util.tree_unflatten(spec, new)
        store.states = [tree[str(n)] for n in range(len(store.states))]
        # The checkpoint has one value for each hyperparameter; where the state has several, these count.
        for n, attached in enumerate(self._attached):
            for places in attached.places.values():
                if len(places) > 1:
                    self._take_hyper(n, _inner(store.states[n]), places)

    # -- updates -----------------------------------------------------------------------------------------------

    def update(self, grads: Leaves, apply: Any, value: Any = None) -> Any:
        """Make one step of every optimizer that trains one of these paths.

        Args:
            grads: gradients by path.
            apply: whether to; an array in a program decides there.
            value: the loss, for transformations that take it.

        Returns:
            Whether it happened; the array if that decides.

        Raises:
            OptimizerError: no optimizer trains one of the paths.
        """
        # An update within an objective is no part of it: all that goes in is a value without a gradient.
        apply = primal(apply)
        traced = is_traced(apply)
        if apply is not True and not traced and not bool(apply):
            return False
        grads = {path: primal(jnp.asarray(grad)) for path, grad in grads.items()}
        owned = {path for attached in self._attached for path in attached.paths}
        frozen = [path for path in grads if path not in owned]
        if frozen:
            raise OptimizerError(f"no optimizer trains {', '.join(frozen[:5])}: leave these out of the gradients")
        store = self._current.store
        stepping = [n for n, attached in enumerate(self._attached) if not grads.keys().isdisjoint(attached.paths)]
        params = {path: store.params[path] for n in stepping for path in self._attached[n].paths}
        hyper = [self._hyper_of(n) for n in stepping]
        current = (params, [store.states[n] for n in stepping])

        def step(current: tuple[Leaves, list[Tree]]) -> tuple[Leaves, list[Tree]]:
            return self._stepped(stepping, grads, hyper, value, *current)

        new_params, states = update_if(apply, step, current) if traced else step(current)
        store.params.update(new_params)
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
        """Compute parameters and states after one step of some optimizers.

        Args:
            stepping: their numbers.
            grads: gradients by path.
            hyper: their hyperparameters, in the same order.
            value: the loss.
            params: the parameters that they train, by path.
            states: theirs, in the same order.
        """
        new_params, new_states = dict(params), list(states)
        for place, n in enumerate(stepping):
            attached = self._attached[n]
            own_grads = {path: grads[path] for path in attached.paths if path in grads}
            if hasattr(attached.tx, "update"):
                updated, state = self._optax_step(attached, own_grads, states[place], params, hyper[place], value)
            else:
                updated, state = attached.tx.step(own_grads, states[place], params, hyper[place])
            new_params.update(updated)
            new_states[place] = state
        return new_params, new_states

    def _optax_step(
        self, attached: Attached, grads: Leaves, state: Tree, params: Leaves, hyper: Mapping[str, Any], value: Any
    ) -> tuple[Leaves, Tree]:
        """The parameters that have gradients, and the state, after one step of a transformation of optax."""
        tx, old = self._with_present_hyper(attached, _inner(state), hyper)
        # A transformation takes a gradient for each parameter it was made for; what zeros did is undone below.
        full = {path: grads[path] if path in grads else jnp.zeros_like(params[path]) for path in attached.paths}
        tree = self._tree(attached, params)
        extra = {"value": value} if attached.valued else {}
        updates, new = tx.update(self._tree(attached, full), old, tree, **extra)
        leaves = self._leaves(attached, optax.apply_updates(tree, updates))
        updated = {path: self._constrained(path, leaves[path]) for path in grads}
        if len(grads) < len(attached.paths):
            new = self._partly(attached, grads, new, old)
        return updated, new if attached.owner is None else Counted(new, state.step + 1)

    def _constrained(self, path: str, array: Array) -> Array:
        """Apply the constraint that a model of Keras has for a parameter, if any, after an update."""
        constraint = self._constraints.get(path)
        return array if constraint is None else jnp.asarray(constraint(array), array.dtype)

    def _with_present_hyper(self, attached: Attached, state: Tree, values: Mapping[str, Any]) -> tuple[Any, Tree]:
        """Bring the present hyperparameters into the transformation of a spec, or into the state of one of optax.

        Returns:
            The transformation and its state.
        """
        if attached.make is not None:
            return attached.make(**values), state
        return attached.tx, self._with_hyper(attached, state, values)

    def _with_hyper(self, attached: Attached, state: Tree, values: Mapping[str, Any]) -> Tree:
        """Replace the hyperparameters in a state of optax by these values, where it keeps them."""
        slots = _slots(attached)
        if not slots:
            return state
        leaves, spec = jax.tree_util.tree_flatten(state)
        for key, place in slots:
            leaves[place] = jnp.asarray(values[key], leaves[place].dtype)
        return jax.tree_util.tree_unflatten(spec, leaves)

    def _set_in(self, attached: Attached, state: Tree, values: Mapping[str, Any]) -> Tree:
        """Replace the hyperparameters in the whole state of an optimizer, which may count steps besides."""
        inner = self._with_hyper(attached, _inner(state), values)
        return state._replace(state=inner) if isinstance(state, Counted) else inner

    def _partly(self, attached: Attached, grads: Leaves, new: Tree, old: Tree) -> Tree:
        """Join states: the new one, but for parameters that had no gradient the old one.

        A gradient of zero would still let moments decay.
        """
        # optax knows which leaves of a state belong to a parameter: each of these becomes the path of its parameter.
        labels = self._tree(attached, {path: path for path in attached.paths})
        of_leaf = optax.tree_utils.tree_map_params(
            attached.tx, lambda _, path: path, old, labels, transform_non_params=lambda _: ""
        )
        without_gradient = {path for path in attached.paths if path not in grads}
        return jax.tree.map(lambda path, a, b: b if path in without_gradient else a, of_leaf, new, old)


def _is_of_nnx(optimizer: Any) -> bool:
    """Whether it is an ``nnx.Optimizer``; Flax is not imported to find out."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(optimizer, nnx.Optimizer)


def _variables(tree: Any) -> list[Any]:
    """List the variables of nnx in a tree."""
    nnx = sys.modules["flax.nnx"]
    return jax.tree_util.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _inner(state: Tree) -> Tree:
    """The state of the transformation in the state of an optimizer."""
    return state.state if isinstance(state, Counted) else state


def _state_of(owner: Any, like: Tree) -> Tree:
    """Build the state that an ``nnx.Optimizer`` has, of its arrays.

    Args:
        owner: the user's optimizer.
        like: the state that its transformation begins with.

    Raises:
        OptimizerError: it was made for another module.
    """
    leaves = [variable.get_value() for variable in _variables(owner.opt_state)]
    expected, spec = jax.tree_util.tree_flatten(like)
    if [jnp.shape(leaf) for leaf in leaves] != [jnp.shape(leaf) for leaf in expected]:
        raise OptimizerError(
            "the opt_state of the nnx.Optimizer does not fit the model: make it for this module, nnx.Optimizer(module, "
            "tx, wrt=nnx.Param)"
        )
    return jax.tree_util.tree_unflatten(spec, leaves)


def _takes_value(tx: Any, state: Tree, params: Tree) -> bool:
    """Whether the updates of a transformation use the loss, its argument ``value=``.

    Raises:
        OptimizerError: they need more than that.
    """
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return False
    # All such transformations accept ``value=`` and most ignore it: only a trace tells whether one reads it.
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree_util.tree_leaves(params)))

    def update(value: Any, grads: Tree, state: Tree, params: Tree) -> Tree:
        return tx.update(grads, state, params, value=value)

    # Parameters serve as gradients here: they have the same structure, shapes and dtypes.
    try:
        jaxpr = jax.make_jaxpr(update)(jnp.zeros((), dtype), params, state, params).jaxpr
    except TypeError as error:
        # Some refuse ``value=``; those that also fail without it need another argument, as line searches do.
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
    """Whether any equation or result of a program reads its first input."""
    first = jaxpr.invars[0]
    read = [*(var for equation in jaxpr.eqns for var in equation.invars), *jaxpr.outvars]
    return any(var is first for var in read)


def _places(state: Tree, name: str) -> tuple[int, ...]:
    """Find the numbers of the leaves of a state that are an injected hyperparameter.

    In a chain several transformations may have one of the same name.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return tuple(
        number
        for number, (path, _) in enumerate(leaves)
        if len(path) > 1 and _entry(path[-1]) == name and _entry(path[-2]) == "hyperparams"
    )


def _entry(key: Any) -> Any:
    """The name of a field or the key of a dict in a path of JAX."""
    return getattr(key, "name", getattr(key, "key", None))


def _keys(attached: Attached, name: str) -> list[str]:
    """What the values of a hyperparameter are kept under: one that has several places has several."""
    return [name, *(f"{name}.{number}" for number in range(1, len(attached.places.get(name, ()))))]


def _slots(attached: Attached) -> list[tuple[str, int]]:
    """For each value that can be set its key, and its place among the leaves of the state."""
    return [
        slot for name, places in attached.places.items() for slot in zip(_keys(attached, name), places, strict=True)
    ]


def _settable(attached: Attached, state: Tree) -> dict[str, float]:
    """Read the hyperparameters that can be set from a state."""
    leaves = jax.tree_util.tree_leaves(state)
    return {key: float(leaves[place]) for key, place in _slots(attached)}


def _transformation(optimizer: Any) -> Any:
    """The transformation of optax in what the user gave.

    Raises:
        OptimizerError: it is of another framework.
    """
    if _is_of_nnx(optimizer):
        return optimizer.tx
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    kind = type(optimizer)
    raise OptimizerError(
        f"the optimizer is a {kind.__module__}.{kind.__qualname__}, but the model is a JAX one: pass "
        "loopcore.Adam(1e-3), or a transformation of optax such as "
        "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)"
    )


def _name_of(tx: Any) -> str:
    """Name a transformation by the functions of optax that it was put together from.

    It has no name of its own, and its state does not tell: those of adam and adamw are alike.
    """
    functions: list[str] = []
    _collect(tx.update, functions, set())
    return f"optax({', '.join(functions) or type(tx).__name__})"


def _collect(function: Any, functions: list[str], visited: set[int]) -> None:
    """Add the functions of optax whose closures an update function is made of, in the order of their use.

    Args:
        function: an update function, such as ``scale_by_adam.<locals>.update_fn``.
        functions: gets the names.
        visited: gets ids, since closures may refer to each other in circles.
    """
    visited.add(id(function))
    # Such as ``adam.<locals>.update_fn``; `chain` and wrappers of `init` functions are no names to show.
    parts = function.__qualname__.split(".")
    if parts[-1] in (parts[0], "update_fn") and not parts[0].startswith(("chain", "init", "<")):
        functions.append(parts[0])
    for inner in inspect.getclosurevars(function).nonlocals.values() if inspect.isfunction(function) else ():
        for value in inner if isinstance(inner, (tuple, list)) else (inner,):
            if inspect.isfunction(value) and id(value) not in visited:
                _collect(value, functions, visited)


def _of_spec(spec: OptimizerSpec) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Find the function of optax that makes the transformation of a spec, and first values of its arguments.

    Raises:
        OptimizerError: there is none.
    """
    # AdamW is a subclass of Adam and comes first.
    match spec:
        case AdamW():
            adamw = partial(_adam, optax.adamw, spec)
            hyper = {"momentum": spec.beta1, "weight_decay": spec.weight_decay}
            return adamw, {"learning_rate": spec.learning_rate, **hyper}
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
    """Call a function of optax's with the names that it has for the hyperparameters of Adam."""
    return make(learning_rate, b1=momentum, b2=spec.beta2, eps=spec.epsilon, **rest)


def _within(container: str) -> Callable[[Any, Any], bool]:
    """Make a filter for values of one field of a state of ``optax.inject_hyperparams``."""
    return lambda path, value: len(path) > 1 and getattr(path[-2], "name", None) == container


def _scalars(state: Tree, name: str) -> list[Array]:
    """List the values of an injected hyperparameter, wherever in a chain it is."""
    return [value for _, value in optax.tree_utils.tree_get_all_with_path(state, name, _within("hyperparams"))]


def _names(state: Tree) -> dict[str, str]:
    """What optax calls each hyperparameter that a state has."""
    names = {
        name: next((optax_name for optax_name in candidates if _scalars(state, optax_name)), "")
        for name, candidates in _OPTAX_NAMES.items()
    }
    return {name: optax_name for name, optax_name in names.items() if optax_name}


def _fixed(state: Tree, names: Mapping[str, str]) -> dict[str, str]:
    """Say why a hyperparameter cannot be set, by its name, for those that cannot."""
    reasons = {
        name: f"the {name} of this optimizer follows a schedule of optax: pass a number to inject_hyperparams, and "
        "use lc.Scheduler or assign learner.hyper"
        for name, optax_name in names.items()
        if optax.tree_utils.tree_get_all_with_path(state, optax_name, _within("hyperparams_states"))
    }
    if "learning_rate" not in names:
        reasons["learning_rate"] = (
            "optax keeps the learning rate of this optimizer in a closure, where nobody can read or set it: write "
            "optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), or lc.Adam(1e-3)"
        )
    return reasons
