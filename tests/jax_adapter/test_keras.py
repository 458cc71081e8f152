"""Keras models on its jax backend."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"

from tests.keras_adapter.models import *  # noqa: F403 - the same tests for each framework
from tests.keras_adapter.whole import *  # noqa: F403
