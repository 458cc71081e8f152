"""Makes both source roots importable from a checkout, and fresh interpreters for tests of what an import does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

for package, folder in (("loopcore", ROOT), ("loopcore_numpy", ROOT / "backends")):
    if find_spec(package) is None:
        sys.path.append(str(folder))

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{root!r}}", name=root)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def fresh() -> Callable[..., str]:
    """Run code in a fresh interpreter, in which ``blocked`` packages cannot be imported; returns what it prints."""

    def run(code: str, *, blocked: tuple[str, ...] = ()) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        text = BLOCK.format(blocked=blocked) + textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
