"""A backend put together from its parts, for adapters whose models, optimizers and arrays are classes of their own."""

from __future__ import annotations

from loopcore.backend.protocol import ArraysPart, GradientsPart, ModelsPart, OptimizersPart


class ComposedBackend:
    """Has the methods of its parts as its own; base class of an adapter, which adds the rest of `Backend`.

    They are attributes of the instance, so that a call goes to the part at once. A method of the same name in a
    subclass would not be seen: what an adapter does otherwise belongs in the part, or is assigned after ``__init__``.

    Args:
        models: holds what is bound.
        optimizers: holds what is attached.
        gradients: differentiates.
        arrays: makes native arrays.
    """

    def __init__(
        self, models: ModelsPart, optimizers: OptimizersPart, gradients: GradientsPart, arrays: ArraysPart
    ) -> None:
        self.transfers = 0
        self.native = models.native
        self.paths = models.paths
        self.get = models.get
        self.set = models.set
        self.snapshot = models.snapshot
        self.pack = models.pack
        self.unpack = models.unpack
        self.forward = models.forward
        self.apply = models.apply
        self.native_paths = optimizers.native_paths
        self.attach = optimizers.attach
        self.optimizer_name = optimizers.optimizer_name
        self.hyper_names = optimizers.hyper_names
        self.get_hyper = optimizers.get_hyper
        self.set_hyper = optimizers.set_hyper
        self.export_optimizers = optimizers.export_optimizers
        self.import_optimizers = optimizers.import_optimizers
        self.update = optimizers.update
        self.gradient = gradients.gradient
        self.grad = gradients.grad
        self.convert = arrays.convert
        self.adopt = arrays.adopt
