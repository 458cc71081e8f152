"""What a step is: the phases, and the base of your own."""

from loopcore.phases.base import AbstractTrainingPhase, AbstractValidationPhase, Phase
from loopcore.phases.sharpness_aware import SAMTrainingPhase
from loopcore.phases.supervised import PredictionPhase, TrainingPhase, ValidationPhase

__all__ = [
    "AbstractTrainingPhase",
    "AbstractValidationPhase",
    "Phase",
    "PredictionPhase",
    "SAMTrainingPhase",
    "TrainingPhase",
    "ValidationPhase",
]
