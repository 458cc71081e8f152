"""The TensorFlow adapter of loopcore: ``Backend`` is what the core finds.

Why it is more than some hundred lines: variables are assigned in place, so that a step that is cut needs tapes over
compiled parts besides the programs; neutral specs call TensorFlow's own kernels, since Keras bakes in all but the rate;
and its array functions, gradients of integers and zeros, and random operations have conventions of their own.
"""

from loopcore_tensorflow.adapter import Backend

__all__ = ["Backend"]
