"""The PyTorch adapter of loopcore: ``Backend`` is what the core finds."""

from loopcore_torch.adapter import Backend

__all__ = ["Backend"]
