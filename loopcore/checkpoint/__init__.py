"""Save and load: a file of arrays and facts, in parts that each know what they keep."""

from loopcore.checkpoint.file import manifest_of, read, write
from loopcore.checkpoint.snapshot import load, load_weights, save, save_weights

__all__ = ["load", "load_weights", "manifest_of", "read", "save", "save_weights", "write"]
