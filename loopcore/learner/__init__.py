"""The Learner, and what it is made from."""

from loopcore.learner.learner import Learner

__all__ = ["Learner"]
