"""A run of an older version goes on, on TensorFlow, with a model of Keras."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

from tests.old_checkpoints import *  # noqa: F403 - the same tests for each framework

BACKEND = "tensorflow"
