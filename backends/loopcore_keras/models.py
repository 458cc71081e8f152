"""A Keras 3 model or layer: its variables by path, and calls with other values in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from loopcore.backend import Leaves
from loopcore.errors import OptimizerError, UnknownModelError
from loopcore_keras.penalties import regularizers, warn_of, warn_of_mask
from loopcore_keras.variable_paths import paths_of, within


def is_model(value: Any) -> bool:
    """Whether it is a Keras model or layer."""
    return isinstance(value, keras.Layer)


def build(layer: Any, batch: Callable[[], Any]) -> None:
    """Call a layer that is not built on a batch, if there is one."""
    if not layer.built:
        xs = batch()
        if xs is not None:
            layer(keras.tree.map_structure(keras.ops.convert_to_tensor, xs), training=False)


_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")  # what fit of Keras calls


class KerasModel:
    """A Keras model or layer as an adapter uses it: its variables by path, its calls, its penalties and masks.

    Args:
        layer: the user's; it has to be built.
        title: what messages call it.

    Attributes:
        layer: the user's.
        params: by path, without the numbers that Keras gives to layers as they come, the variables that are trained
            unless the user freezes them.
        buffers: its other weights.
        seeds: the states of its random layers, which every call seeds anew.

    Raises:
        UnknownModelError: it is not built yet, or overrides what only fit of Keras would call.

    Warns:
        UserWarning: it has regularizers, or calls ``add_loss``: nobody adds these to the loss. Or its output has a
            mask, which not everybody sees.
    """

    def __init__(self, layer: Any, title: str) -> None:
        if not layer.built:
            raise UnknownModelError(
                f"{title} has no weights yet, and no data to build it on: begin it with keras.Input(shape), call it "
                "once on a batch, or pass Learner(data=...)"
            )
        _check_steps(layer, title)
        self.layer = layer
        names = paths_of(layer)
        # Three kinds of variables: those to train, other weights, and the states of random layers, which are no
        # weights.
        trainable = _trainable(layer)
        self.params: dict[str, Any] = {names[id(v)]: v for v in trainable}
        weights = {id(variable) for variable in layer.weights}
        trainable_ids = {id(variable) for variable in trainable}
        untrained = [variable for variable in layer.variables if id(variable) not in trainable_ids]
        self.buffers: dict[str, Any] = {names[id(v)]: v for v in untrained if id(v) in weights}
        self.seeds: list[Any] = [
            v for v in untrained if id(v) not in weights and v.path.endswith("seed_generator_state")
        ]
        self.arrays: dict[str, Any] = {**self.params, **self.buffers}
        self._title = title
        penalties = regularizers(layer, self.params)
        self._penalties_checked = bool(penalties)  # whether there is nothing more to say about penalties
        self._unmasked = False  # whether there is nothing more to say about masks
        self._look_for_mask(getattr(layer, "outputs", ()), last=False)  # a tracer of JAX does not show its mask
        if penalties:
            warn_of(title, " and ".join(penalties))

    @property
    def frozen(self) -> frozenset[str]:
        """Paths of the parameters that the user has frozen so far with ``layer.trainable = False``."""
        open_ids = {id(variable) for variable in self.layer.trainable_variables}
        return frozenset(path for path, variable in self.params.items() if id(variable) not in open_ids)

    @property
    def eager(self) -> bool:
        """Whether the user asked for steps without a program, by ``model.run_eagerly = True``."""
        return bool(getattr(self.layer, "run_eagerly", False))

    def check_trained(self) -> None:
        """Refuse to train what loses small gradients without a loss that is scaled.

        Raises:
            OptimizerError: it computes in float16, for which fit of Keras scales the loss.
        """
        # Of any layer within it: a policy may be set for some layers only.
        half = next((part for part in within(self.layer) if part.dtype_policy.name == "mixed_float16"), None)
        if half is not None:
            raise OptimizerError(
                f"{self._title} computes in float16 (the dtype policy of its layer {half.name!r} is mixed_float16), "
                "for which fit of Keras scales the loss, and loopcore does not: build it under the policy "
                '"mixed_bfloat16", which needs no scaling, or "float32"'
            )

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
        """Run the forward pass, which assigns to the model's buffers and seeds; returns the output."""
        result = self.layer(*args, **{"training": training, **kwargs})
        if training and not self._penalties_checked:
            self._look_for_losses()
        if not self._unmasked:
            self._look_for_mask(result, last=True)
        return result

    def _look_for_losses(self) -> None:
        """Warn if the call that just ended has used ``add_loss``: only a call knows of it."""
        self._penalties_checked = True
        if self.layer.losses:
            warn_of(self._title, "terms of add_loss")

    def _look_for_mask(self, result: Any, last: bool) -> None:
        """Warn if the output of a call carries a mask; ``last`` ends the search whether it does or not."""
        has_mask = any(getattr(leaf, "_keras_mask", None) is not None for leaf in keras.tree.flatten(result))
        self._unmasked = has_mask or last
        if has_mask:
            warn_of_mask(self._title)

    def call_apart(
        self,
        values: Leaves,
        seeds: Sequence[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        training: bool,
    ) -> tuple[Any, Leaves]:
        """Run the forward pass with other values of some variables. It assigns to none.

        Returns:
            The result, and by path what became of the buffers.
        """
        state_mapping = [(self.arrays[path], value) for path, value in values.items()]
        state_mapping += list(zip(self.seeds, seeds, strict=True)) if seeds else []
        with keras.StatelessScope(state_mapping=state_mapping, collect_losses=not self._penalties_checked) as scope:
            result = self.call(args, kwargs, training)
        # Assignments went to the scope and not to the variables.
        current_values = {path: scope.get_current_value(variable) for path, variable in self.buffers.items()}
        return result, {path: value for path, value in current_values.items() if value is not None}


def constraints(variables: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """Return, by path, the functions that Keras applies to variables after every update (``constraint=``)."""
    constraint_of = {path: getattr(variable, "constraint", None) for path, variable in variables.items()}
    return {path: constraint for path, constraint in constraint_of.items() if constraint is not None}


def _trainable(layer: Any) -> list[Any]:
    """Return the variables of a layer that are trained where nothing is frozen.

    Keras tells them apart from the state of a layer, such as BatchNormalization's statistics, only while nothing is.
    """
    layers = sorted(within(layer), key=lambda part: -sum(1 for _ in within(part)))  # an outer one sets those within
    flags = [(part, part.trainable) for part in (*layers, *layer.variables)]
    layer.trainable = False  # on TensorFlow what does not change a layer reaches none within it
    layer.trainable = True
    try:
        return list(layer.trainable_variables)
    finally:
        for part, flag in flags:
            part.trainable = flag


def _check_steps(layer: Any, title: str) -> None:
    """Refuse a model that overrides a method of Keras's own fit, such as ``train_step``: nobody would call it."""
    # Only models have a fit, and the methods that it calls.
    if not isinstance(layer, keras.Model):
        return
    kind = type(layer).__name__
    for name in _STEPS:
        if name in vars(layer) or getattr(type(layer), name) is not getattr(keras.Model, name):
            raise UnknownModelError(
                f"{title} is a {kind} with a {name} of its own, which only Keras itself calls: a step is that of the "
                f"phase here. Write what it does as the step of a phase, lc.AbstractTrainingPhase, and leave {name} "
                f"out of the model, for instance by class Plain({kind}): {name} = keras.Model.{name}"
            )
