"""loopcore: write the step once, run it on PyTorch, JAX, TensorFlow and NumPy, listen to any moment of it."""

from __future__ import annotations

from loopcore import criteria, data, errors, events, loggers, losses, schedules, testing
from loopcore.backend.choice import follow_environment as _follow_environment
from loopcore.backend.choice import use, using
from loopcore.callback import NO_CONFLICT, UNRESOLVABLE, Callback, RunFirst, on
from loopcore.callbacks.accumulation import Accumulated, AccumulatedUpdate, GradientAccumulation
from loopcore.callbacks.averaging import AveragedWeights
from loopcore.callbacks.checkpointer import Checkpointer
from loopcore.callbacks.clipping import GradientClipping
from loopcore.callbacks.device import ToDevice, ToGPU
from loopcore.callbacks.early_stopping import EarlyStopping, MaxSteps, MaxTime
from loopcore.callbacks.freezing import Freeze
from loopcore.callbacks.function import FunctionCallback
from loopcore.callbacks.garbage import GarbageCollect
from loopcore.callbacks.histograms import LogHistograms
from loopcore.callbacks.log import LogHyperParams, LogMetrics, LogVisualization
from loopcore.callbacks.metrics import Metrics
from loopcore.callbacks.mixing import LabelSmoothing, MixUp
from loopcore.callbacks.profiler import Profiler
from loopcore.callbacks.progress import MetricsPrinter, ProgressPrinter
from loopcore.callbacks.recorder import Recorder
from loopcore.callbacks.sanity import SanityCheck
from loopcore.callbacks.scheduler import Scheduler, TorchScheduler
from loopcore.callbacks.stopping import StopOnNaNLoss
from loopcore.callbacks.traces import LogTraces, Traces
from loopcore.callbacks.wrappers import ConditionalCallback, throttle
from loopcore.checkpoint.snapshot import load_weights
from loopcore.errors import (
    AccessError,
    CancelEpochException,
    CancelFittingException,
    CancelStepException,
    LoopcoreError,
)
from loopcore.events import (
    BackwardBegin,
    BackwardEnd,
    EpochBegin,
    EpochEnd,
    Event,
    FitBegin,
    FitEnd,
    LossBegin,
    StepBegin,
    StepEnd,
)
from loopcore.handles.hyperparameters import HyperParameter, LearningRate, WeightDecay
from loopcore.learner.learner import Learner
from loopcore.learner.portable import random, tree, xp
from loopcore.loop.fit import FitResult
from loopcore.loop.scopes import run_epoch, run_step
from loopcore.lr_finder import FoundRate, LRFinder
from loopcore.metrics import AbstractMetric, Loss, Metric, SmoothLoss, accuracy, top_k_accuracy
from loopcore.optimizers import SGD, Adam, AdamW, Momentum
from loopcore.phases.base import AbstractTrainingPhase, AbstractValidationPhase, Phase
from loopcore.phases.sharpness_aware import SAMTrainingPhase
from loopcore.phases.supervised import PredictionPhase, TrainingPhase, ValidationPhase
from loopcore.schedules import one_cycle

__version__ = "0.1.0"

_follow_environment()

__all__ = [
    "NO_CONFLICT",
    "SGD",
    "UNRESOLVABLE",
    "AbstractMetric",
    "AbstractTrainingPhase",
    "AbstractValidationPhase",
    "AccessError",
    "Accumulated",
    "AccumulatedUpdate",
    "Adam",
    "AdamW",
    "AveragedWeights",
    "BackwardBegin",
    "BackwardEnd",
    "Callback",
    "CancelEpochException",
    "CancelFittingException",
    "CancelStepException",
    "Checkpointer",
    "ConditionalCallback",
    "EarlyStopping",
    "EpochBegin",
    "EpochEnd",
    "Event",
    "FitBegin",
    "FitEnd",
    "FitResult",
    "FoundRate",
    "Freeze",
    "FunctionCallback",
    "GarbageCollect",
    "GradientAccumulation",
    "GradientClipping",
    "HyperParameter",
    "LRFinder",
    "LabelSmoothing",
    "Learner",
    "LearningRate",
    "LogHistograms",
    "LogHyperParams",
    "LogMetrics",
    "LogTraces",
    "LogVisualization",
    "LoopcoreError",
    "Loss",
    "LossBegin",
    "MaxSteps",
    "MaxTime",
    "Metric",
    "Metrics",
    "MetricsPrinter",
    "MixUp",
    "Momentum",
    "Phase",
    "PredictionPhase",
    "Profiler",
    "ProgressPrinter",
    "Recorder",
    "RunFirst",
    "SAMTrainingPhase",
    "SanityCheck",
    "Scheduler",
    "SmoothLoss",
    "StepBegin",
    "StepEnd",
    "StopOnNaNLoss",
    "ToDevice",
    "ToGPU",
    "TorchScheduler",
    "Traces",
    "TrainingPhase",
    "ValidationPhase",
    "WeightDecay",
    "accuracy",
    "criteria",
    "data",
    "errors",
    "events",
    "load_weights",
    "loggers",
    "losses",
    "on",
    "one_cycle",
    "random",
    "run_epoch",
    "run_step",
    "schedules",
    "testing",
    "throttle",
    "top_k_accuracy",
    "tree",
    "use",
    "using",
    "xp",
]
