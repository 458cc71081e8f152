"""The losses of 200 steps of two networks that belong to no framework, on each backend, with their noise.

The transformer and the convolutional network of the examples, in float32; dropout draws the same numbers everywhere.

python -m benchmarks.proofs.neutral
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tests.frameworks.networks import BACKENDS
from tests.frameworks.test_switch import NETWORKS, neutral_losses

RESULT = Path(__file__).with_suffix(".json")
PICTURE = Path(__file__).parents[2] / "docs" / "_static" / "neutral.png"
LIMIT = 1e-4
STEPS = 200


def measure(steps: int) -> dict[str, dict[str, list[float]]]:
    """The losses by network and backend; says how far they are from NumPy's, and stops where that is too far."""
    losses: dict[str, dict[str, list[float]]] = {}
    for network in NETWORKS:
        losses[network] = {}
        for backend in BACKENDS:
            values = losses[network][backend] = neutral_losses(network, backend, steps)
            apart = np.abs(np.array(values) / losses[network]["numpy"] - 1).max()
            print(f"{network} on {backend}: largest relative difference {apart:.1e}, last {values[-1]:.4f}", flush=True)
            assert len(values) == steps and apart < LIMIT, f"{network} on {backend}"
    return losses


def draw(losses: dict[str, dict[str, list[float]]]) -> None:
    """One picture: the curves above, their relative differences to NumPy below."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, len(losses), sharex=True, sharey="row", height_ratios=(2, 1), squeeze=False)
    for (network, curves), (above, below) in zip(losses.items(), panels.T, strict=True):
        for (backend, values), width in zip(curves.items(), (6.0, 4.0, 2.5, 1.0), strict=True):
            steps = np.arange(1, len(values) + 1)
            (line,) = above.plot(steps, values, label=backend, linewidth=width)
            if backend != "numpy":
                apart = np.maximum(np.abs(np.array(values) / curves["numpy"] - 1), 1e-9)
                below.plot(steps, apart, color=line.get_color(), linewidth=1.2)
        above.set_title(network, fontsize=10)
        below.set_yscale("log")
        below.axhline(LIMIT, color="gray", linestyle="--", linewidth=1)
        below.text(1, 1.3 * LIMIT, "the limit", fontsize=8, color="gray")
        below.set_xlabel("step")
        for panel in (above, below):
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("training loss")
    panels[0, 0].legend(frameon=False)
    panels[1, 0].set_ylabel("relative to NumPy")
    figure.savefig(PICTURE, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    if parser.parse_args().draw:
        draw(json.loads(RESULT.read_text(encoding="utf-8")))
        return
    losses = measure(STEPS)
    rounded = {
        network: {backend: [float(f"{value:.9g}") for value in values] for backend, values in curves.items()}
        for network, curves in losses.items()
    }
    RESULT.write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    draw(losses)


if __name__ == "__main__":
    main()
