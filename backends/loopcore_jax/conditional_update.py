"""An update that an array decides on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from loopcore.backend import Array, Tree
from loopcore.errors import OptimizerError


def update_if(holds: Array, update: Callable[[Tree], Tree], current: Tree) -> Tree:
    """Return ``update(current)`` if ``holds``, else ``current``, to the bit.

    Each array is chosen right where it is computed, and what follows goes on with the choice: the moments of Adam are
    written once and read from there for the parameters. A ``where`` around the whole would have XLA compute them twice,
    and a ``lax.cond`` would end every fusion before it (and on an accelerator wait for the host).

    Args:
        holds: a 0-d boolean array.
        update: gives a tree of the structure, shapes and dtypes of ``current``.
        current: a tree of arrays.

    Raises:
        OptimizerError: it gives another dtype or shape.
    """
    holds = _computed_once(holds)
    old, structure = jax.tree.flatten(current)
    # The update is traced into single equations, and these are run here one by one, so that a choice can follow any.
    closed = jax.make_jaxpr(update)(current)
    jaxpr = closed.jaxpr
    values: dict[Any, Array] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *old), strict=True))
    places = {var: place for place, var in enumerate(jaxpr.outvars) if not isinstance(var, Literal)}
    selected_places: set[int] = set()  # whose values are chosen by now

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else values[var]

    for equation in jaxpr.eqns:
        inputs = map(read, equation.invars)
        outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
        for var, value in zip(
            equation.outvars, outputs if equation.primitive.multiple_results else [outputs], strict=True
        ):
            values[var] = value
            # What later equations read is the choice: for a condition that does not hold their results are thrown away.
            if var in places:
                place = places[var]
                values[var] = _either(holds, value, old[place])
                selected_places.add(place)
    # No equation computed what is an input or a constant, and one result twice has two places.
    results = [
        read(var) if place in selected_places else _either(holds, jnp.asarray(read(var)), old[place])
        for place, var in enumerate(jaxpr.outvars)
    ]
    return jax.tree.unflatten(structure, results)


def _computed_once(holds: Array) -> Array:
    """Return the same condition from an operation that XLA fuses with nothing.

    XLA would compute what it makes of single numbers anew with every array that is chosen by it; each of these then
    waits for all of these numbers, which takes twice the time of a small step on two cores.
    """
    return jnp.sort(jnp.stack([holds, jnp.array(True)]))[0]


def _either(holds: Array, new: Array, old: Array) -> Array:
    """The new array if the condition holds, else the old one.

    Raises:
        OptimizerError: they differ in dtype or shape.
    """
    if (new.dtype, new.shape) != (old.dtype, old.shape):
        raise OptimizerError(
            f"an optimizer makes {new.dtype}{list(new.shape)} of a state that was {old.dtype}{list(old.shape)}: where "
            "an array decides on the update, as with StopOnNaNLoss, it has to have one dtype and shape from the start"
        )
    return jax.lax.select(holds, new, old)
