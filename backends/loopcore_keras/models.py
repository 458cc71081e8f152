"""A Keras 3 model or layer: its variables by path, and calls with other values in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from loopcore.backend import Leaves
from loopcore.errors import UnknownModelError
from loopcore_keras.names import paths_of
from loopcore_keras.penalties import regularizers, warn_of


def is_model(value: Any) -> bool:
    """Whether it is a Keras model or layer."""
    return isinstance(value, keras.Layer)


def build(layer: Any, batch: Callable[[], Any]) -> None:
    """Call a layer that is not built on a batch, if there is one."""
    if not layer.built:
        xs = batch()
        if xs is not None:
            layer(keras.tree.map_structure(keras.ops.convert_to_tensor, xs), training=False)


class KerasModel:
    """What an adapter knows of a model or layer.

    Args:
        layer: the user's; it has to be built.
        title: what messages call it.

    Attributes:
        layer: the user's.
        params: its trainable variables by path, without the numbers that Keras gives to layers as they come.
        buffers: its other weights.
        seeds: the states of its random layers, which every call seeds anew.

    Raises:
        UnknownModelError: it is not built yet.

    Warns:
        UserWarning: it has regularizers, or calls ``add_loss``: nobody adds these to the loss.
    """

    def __init__(self, layer: Any, title: str) -> None:
        if not layer.built:
            raise UnknownModelError(
                f"{title} has no weights yet, and no data to build it on: begin it with keras.Input(shape), call it "
                "once on a batch, or pass Learner(data=...)"
            )
        self.layer = layer
        names = paths_of(layer)
        self.params: dict[str, Any] = {names[id(v)]: v for v in layer.trainable_variables}
        weights = {id(variable) for variable in layer.weights}
        others = layer.non_trainable_variables
        self.buffers: dict[str, Any] = {names[id(v)]: v for v in others if id(v) in weights}
        self.seeds: list[Any] = [v for v in others if id(v) not in weights and v.path.endswith("seed_generator_state")]
        self.arrays: dict[str, Any] = {**self.params, **self.buffers}
        self._title = title
        penalties = regularizers(layer, self.params)
        self._looked = bool(penalties)  # whether there is nothing more to say about penalties
        if penalties:
            warn_of(title, " and ".join(penalties))

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Any:
        """The forward pass; assigns to its buffers and seeds."""
        result = self.layer(*args, **{"training": training, **kwargs})
        if training and not self._looked:
            self._look()
        return result

    def _look(self) -> None:
        """Whether the call that just ended came upon an ``add_loss``, of which only a call knows."""
        self._looked = True
        if self.layer.losses:
            warn_of(self._title, "terms of add_loss")

    def call_apart(
        self,
        values: Leaves,
        seeds: Sequence[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        training: bool,
    ) -> tuple[Any, Leaves]:
        """The forward pass with other values of some variables. It assigns to none.

        Returns:
            The result, and by path what became of the buffers.
        """
        instead = [(self.arrays[path], value) for path, value in values.items()]
        instead += list(zip(self.seeds, seeds, strict=True)) if seeds else []
        with keras.StatelessScope(state_mapping=instead, collect_losses=not self._looked) as scope:
            result = self.call(args, kwargs, training)
        now = {path: scope.get_current_value(variable) for path, variable in self.buffers.items()}
        return result, {path: value for path, value in now.items() if value is not None}
