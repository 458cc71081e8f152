"""Moving the models to a device."""

from __future__ import annotations

from loopcore.callback import Callback
from loopcore.errors import BackendError
from loopcore.protocols import LearnerView


class ToDevice(Callback):
    """Move models, buffers and optimizer state to a device, once, when it joins; batches follow them.

    The same as ``Learner(device=...)``, for lists of callbacks.

    Writes: model, params, buffers, optimizer

    Args:
        device: in the words of the framework, such as ``"cuda:0"`` or ``"cpu"``.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(callbacks=[lc.ToDevice("cpu")]).fit(1).status
        'completed'
    """

    writes = ("model", "params", "buffers", "optimizer")

    def __init__(self, device: object) -> None:
        self.device = device

    def setup(self, learner: LearnerView) -> None:
        """Move models, buffers and optimizer state to the device."""
        learner.to_device(self.device)


class ToGPU(Callback):
    """Move models, buffers and optimizer state to the first accelerator, once, when it joins; batches follow them.

    Writes: model, params, buffers, optimizer

    Args:
        required: whether a machine without one is an error; False leaves everything on the CPU there.

    Raises:
        BackendError: the framework sees no accelerator; when it joins a learner.

    Example:
        >>> import loopcore as lc
        >>> lc.testing.toy_learner(callbacks=[lc.ToGPU(required=False)]).fit(1).status
        'completed'
    """

    writes = ("model", "params", "buffers", "optimizer")

    def __init__(self, *, required: bool = True) -> None:
        self.required = required

    def setup(self, learner: LearnerView) -> None:
        """Move models, buffers and optimizer state to the device."""
        device = learner.accelerator
        if device is not None:
            learner.to_device(device)
        elif self.required:
            raise BackendError(
                "ToGPU: the framework sees no accelerator here. Write ToGPU(required=False) to train on the CPU then"
            )
