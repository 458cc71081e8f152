"""Leave out adapters whose framework is not installed."""

from __future__ import annotations

from importlib.util import find_spec

FRAMEWORKS = {
    "loopcore_numpy": "autograd",
    "loopcore_torch": "torch",
    "loopcore_jax": "jax",
    "loopcore_tensorflow": "tensorflow",
    "loopcore_keras": "keras",
}

collect_ignore = [package for package, framework in FRAMEWORKS.items() if find_spec(framework) is None]
