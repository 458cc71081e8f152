"""The PyTorch adapter of loopcore: ``Backend`` is what the core finds.

Why it is more than some hundred lines: modules, wrapped modules, trees and Keras models are bound in ways of their own;
a nested gradient needs arrays that stand in for a module's parameters; half of the array functions have another name or
signature in torch; and what a step calls is written out for its speed. Each of these has a file.
"""

from loopcore_torch.adapter import Backend

__all__ = ["Backend"]
