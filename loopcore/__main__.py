"""``python -m loopcore``: the same as the command ``loopcore``."""

from __future__ import annotations

from loopcore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
