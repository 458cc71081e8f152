"""The TensorFlow adapter."""

from loopcore_tensorflow.adapter import Backend

__all__ = ["Backend"]
