"""Makes both source roots importable when the tests run from a checkout without an installation."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

for package, folder in (("loopcore", ROOT), ("loopcore_numpy", ROOT / "backends")):
    if find_spec(package) is None:
        sys.path.append(str(folder))
