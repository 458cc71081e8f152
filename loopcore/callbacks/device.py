"""Moving the models to a device."""

from __future__ import annotations

from typing import Any

from loopcore.callback import Callback


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

    def __init__(self, device: Any) -> None:
        self.device = device

    def setup(self, learner: Any) -> None:
        """Move everything."""
        learner.to_device(self.device)
