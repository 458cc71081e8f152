"""What ``import loopcore`` loads, how long it takes, and what it leaves alone; each time in a fresh interpreter."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import pytest

FRAMEWORKS = (
    "torch",
    "tensorflow",
    "jax",
    "jaxlib",
    "keras",
    "flax",
    "autograd",
    "rich",
    "sklearn",
    "safetensors",
    "scipy",
)
LOADED = f"""
import sys
roots = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(roots & {{*{FRAMEWORKS!r}, "loopcore_numpy", "loopcore_torch", "loopcore_jax"}}))
"""
Fresh = Callable[..., str]


def test_the_import_loads_no_framework(fresh: Fresh) -> None:
    assert fresh("import loopcore\n" + LOADED).strip() == "[]"


@pytest.mark.parametrize("module", ["autograd", "rich.console", "sklearn.metrics", "torch"])
def test_the_proof_can_fail(fresh: Fresh, module: str) -> None:
    """The same question finds each of them when it is there."""
    found = fresh(f"import loopcore, {module}\n" + LOADED)
    assert f"'{module.partition('.')[0]}'" in found


def test_a_learner_loads_its_own_framework_only(fresh: Fresh) -> None:
    code = "import loopcore as lc\nlc.testing.toy_learner().fit(1)\n" + LOADED
    assert set(json.loads(fresh(code).replace("'", '"'))) == {"autograd", "loopcore_numpy"}


def test_the_import_works_where_no_framework_is_installed(fresh: Fresh) -> None:
    code = "import loopcore as lc\nprint(lc.losses.mse.__name__, lc.TrainingPhase().name, lc.Adam(0.1).beta1)"
    assert fresh(code, blocked=FRAMEWORKS).split() == ["mse", "training", "0.9"]


def test_the_import_changes_nothing_outside(fresh: Fresh) -> None:
    """No file, thread, signal handler, warning filter, environment variable or state of a random generator."""
    printed = fresh(
        """
        import os, random, signal, threading, warnings
        import numpy as np

        opened = []

        def audit(event, args):
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                opened.append(args[0])

        def outside():
            handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
            return (dict(os.environ), random.getstate(), str(np.random.get_state()), handlers, threading.active_count(),
                    list(warnings.filters), np.geterr())

        sys.dont_write_bytecode = True
        before = outside()
        sys.addaudithook(audit)
        import loopcore
        print(before == outside(), opened)
        """
    )
    assert printed.strip() == "True []"


def test_the_import_is_quick(fresh: Fresh) -> None:
    """Measured without NumPy, which nearly every program has loaded before; the bound is for noisy machines."""
    code = "import time, numpy\nstart = time.perf_counter()\nimport loopcore\nprint(time.perf_counter() - start)"
    assert statistics.median(float(fresh(code)) for _ in range(5)) < 1.0


def test_an_event_that_nobody_hears_is_cheap(fresh: Fresh) -> None:
    """It costs a look-up: an upper bound of 5 microseconds fails only where handlers are searched anew each time."""
    printed = fresh(
        """
        import timeit
        import loopcore as lc

        class Silent(lc.Event):
            "Nobody listens."

        learner, phase = lc.testing.toy_learner(), lc.TrainingPhase()
        with lc.run_epoch(learner, phase) as handle:
            event = Silent()
            print(min(timeit.repeat(lambda: handle(event), number=10_000, repeat=5)) / 10_000)
        """
    )
    assert float(printed) < 5e-6
