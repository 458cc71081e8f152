"""Check ``typed_script.py`` as a user does who installed the package: against the wheel, from another folder.

Both type checkers see the package in the site-packages of an environment of its own, where they believe its annotations
only as far as ``py.typed`` says. Needs pip, mypy and pyright, and the packages that loopcore depends on.

Usage: python tools/check_typed_script.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "typed_script.py"


def check(folder: Path) -> None:
    """Build the wheel, install it into an environment in ``folder``, and check and run the script there.

    Raises:
        subprocess.CalledProcessError: one of the programs found something.
    """

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True)

    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    (wheel,) = folder.glob("loopcore-*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = str(folder / "environment" / "bin" / "python")
    run(*pip, "--python", python, "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
    script = folder / SCRIPT.name
    script.write_bytes(SCRIPT.read_bytes())
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, str(script))
    run(sys.executable, "-m", "pyright", "--pythonpath", python, str(script))
    run(python, str(script))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        try:
            check(Path(scratch))
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"the typed script failed: {' '.join(map(str, error.cmd))}") from None
