"""The loss of 200 steps on handwritten digits on each backend, as a picture of the documentation.

python -m benchmarks.proofs.curves
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tests.frameworks.networks import BACKENDS
from tests.frameworks.test_agree import curve

PICTURE = Path(__file__).parents[2] / "docs" / "_static" / "curves.png"


def main() -> None:
    losses = {backend: np.array(curve(backend)[0]) for backend in BACKENDS}
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    widths = (6.0, 4.0, 2.5, 1.0)
    for (backend, values), width in zip(losses.items(), widths, strict=True):
        (line,) = above.plot(np.arange(1, len(values) + 1), values, label=backend, linewidth=width)
        if backend != "numpy":
            apart = np.abs(values / losses["numpy"] - 1)
            below.plot(np.arange(1, len(values) + 1), np.maximum(apart, 1e-9), color=line.get_color(), linewidth=1.2)
            print(f"{backend}: largest relative difference {apart.max():.1e}")
    above.set_ylabel("training loss")
    above.legend(frameon=False)
    below.set_yscale("log")
    below.axhline(1e-4, color="gray", linestyle="--", linewidth=1)
    below.text(1, 1.15e-4, "what the test allows", fontsize=8, color="gray")
    below.set_ylabel("relative to NumPy")
    below.set_xlabel("step")
    for panel in (above, below):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
