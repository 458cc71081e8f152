"""Where values of a run are written: files, TensorBoard, and lists in memory. A run never touches another run's files.

A logger takes ``log(name, value, step)``. Libraries are imported when a logger is made.
"""

from loopcore.loggers.base import Figure, Histogram, Image, Logger, Text, Value
from loopcore.loggers.csv import CSVLogger
from loopcore.loggers.jsonl import JSONLinesLogger
from loopcore.loggers.memory import MemoryLogger
from loopcore.loggers.tensorboard import TensorBoardLogger

__all__ = [
    "CSVLogger",
    "Figure",
    "Histogram",
    "Image",
    "JSONLinesLogger",
    "Logger",
    "MemoryLogger",
    "TensorBoardLogger",
    "Text",
    "Value",
]
