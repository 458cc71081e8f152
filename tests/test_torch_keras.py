"""Keras models on its torch backend."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"

from tests.keras_models import *  # noqa: F403 - the same tests for each framework
from tests.keras_whole import *  # noqa: F403
