"""Pictures of a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from loopcore._utils.history_names import prefix_of
from loopcore._utils.text import clean
from loopcore.backend.protocol import HostArray
from loopcore.metrics import EpochValue
from loopcore.optional_imports import optional


class StepSeries(Protocol):
    """The latest values of a series and the numbers of their steps, as `loopcore.history.Ring` has them."""

    def latest(self) -> Sequence[float] | HostArray:
        """The values, the newest last."""
        ...

    def numbers(self) -> Sequence[int] | HostArray:
        """The numbers of their steps."""
        ...


def plot_history(
    values: Mapping[str, Sequence[EpochValue]],
    phases: Mapping[str, str],
    hyper: Mapping[str, Mapping[str, StepSeries]],
) -> Any:
    """One panel for each metric, a curve for each phase; below, hyperparameters by step.

    Args:
        values: by round, by key of the history. Metrics that are no scalar are left out.
        phases: name of the phase of each key.
        hyper: for each phase series by name.
    """
    figures = optional("matplotlib.figure", "history.plot()", "matplotlib")
    ticker = optional("matplotlib.ticker", "history.plot()", "matplotlib")
    metrics: dict[str, list[str]] = {}
    for key, numbers in values.items():
        if not any(isinstance(number, list) for number in numbers):
            metrics.setdefault(key.removeprefix(prefix_of(phases[key])), []).append(key)
    names = list(dict.fromkeys(name for by_name in hyper.values() for name in by_name))
    rows = len(metrics) + len(names)
    # A figure without pyplot, which would open windows, and keep every figure that nobody closes.
    figure = figures.Figure(figsize=(7, 2.6 * max(rows, 1)), layout="constrained")
    if not rows:
        return figure
    panels = np.atleast_1d(figure.subplots(rows, 1))
    for panel, (metric, keys) in zip(panels, metrics.items(), strict=False):
        for key in keys:
            _draw_epochs(panel, phases[key], values[key])
        _title(panel, metric)
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        _finish(panel, "epoch")
    for panel, name in zip(panels[len(metrics) :], names, strict=True):
        for phase, by_name in hyper.items():
            if name in by_name:
                panel.plot(by_name[name].numbers(), by_name[name].latest(), label=clean(phase), color="tab:gray")
        _title(panel, name)
        _finish(panel, "step")
    return figure


def _draw_epochs(panel: Any, phase: str, values: Sequence[EpochValue]) -> None:
    """Draw the curve of a phase, with a gap where a round has no value."""
    numbers = [np.nan if value is None else value for value in values]
    marker = "o" if len(numbers) < 30 or None in values else None  # a value between gaps has no line
    panel.plot(range(1, len(numbers) + 1), numbers, label=clean(phase), marker=marker, markersize=3)


def _title(panel: Any, name: str) -> None:
    # A name with dollar signs is no formula; one that is half a formula would be an error when the figure is drawn.
    panel.set_title(clean(name), loc="left", fontsize=10, parse_math=False)


def _finish(panel: Any, x_label: str) -> None:
    panel.set_xlabel(x_label, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    # By hand, since matplotlib leaves out labels that begin with an underscore.
    legend = panel.legend(panel.lines, [line.get_label() for line in panel.lines], fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
