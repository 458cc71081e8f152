"""Where values of a run are written: files, TensorBoard, trackers, memory. No run touches what another one has written.

A logger takes ``log(name, value, step)``. Libraries are imported when a logger is made.
"""

from loopcore.loggers.base import Array, Figure, Histogram, Image, Logger, Text, Value
from loopcore.loggers.csv import CSVLogger
from loopcore.loggers.jsonl import JSONLinesLogger
from loopcore.loggers.memory import MemoryLogger
from loopcore.loggers.mlflow import MLflowLogger
from loopcore.loggers.tensorboard import TensorBoardLogger
from loopcore.loggers.trackio import TrackioLogger
from loopcore.loggers.wandb import WandbLogger

__all__ = [
    "Array",
    "CSVLogger",
    "Figure",
    "Histogram",
    "Image",
    "JSONLinesLogger",
    "Logger",
    "MLflowLogger",
    "MemoryLogger",
    "TensorBoardLogger",
    "Text",
    "TrackioLogger",
    "Value",
    "WandbLogger",
]
