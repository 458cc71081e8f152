"""Finding a learning rate: a short run whose rate rises until the loss does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopcore._utils.validation import is_whole
from loopcore.checkpoint.stateful import keeps_place
from loopcore.data.arrays import Batch
from loopcore.errors import DataExhaustedError, LossError
from loopcore.handles.hyperparameters import HyperParameter, LearningRate
from loopcore.loop.batches import data_of, is_one_shot
from loopcore.loop.dry_run import aside
from loopcore.optional_imports import optional
from loopcore.phases.base import Phase
from loopcore.phases.supervised import TrainingPhase

if TYPE_CHECKING:
    from loopcore.learner.learner import Learner

_DIVERGED = 4.0  # times the best smoothed loss


@dataclass(frozen=True)
class FoundRate:
    """What `LRFinder` measured.

    Attributes:
        rates: learning rate of each step, ``(steps,)``.
        losses: loss of each step before its update, ``(steps,)``.
        smoothed: exponential mean of the losses without bias, ``(steps,)``.
        suggestion: the rate at which the smoothed loss falls fastest, by the logarithm of the rate.
        diverged: whether the run ended because the loss rose to four times its best, or was not finite.

    Example:
        >>> import loopcore as lc
        >>> found = lc.LRFinder(low=0.01, high=0.1, steps=12).run(lc.testing.toy_learner(steps=4))
        >>> found.losses.shape, round(float(found.losses[0]), 2), found.diverged
        ((12,), 1.0, False)
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float
    diverged: bool

    def plot(self) -> Any:
        """Draw the loss by learning rate, as a figure of matplotlib.

        Raises:
            MissingFrameworkError: matplotlib is not installed.
        """
        figures = optional("matplotlib.figure", "FoundRate.plot()", "matplotlib")
        figure = figures.Figure(figsize=(7, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.semilogx(self.rates, self.losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss")
        panel.semilogx(self.rates, self.smoothed, color="tab:blue", label="smoothed")
        panel.axvline(self.suggestion, color="tab:orange", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        visible = self.losses[self.losses <= 1.5 * self.smoothed[0]]  # where it diverges is out of the picture
        low, high = float(visible.min()), float(visible.max())
        panel.set_ylim(low - 0.1 * (high - low) - 1e-12, high + 0.1 * (high - low) + 1e-12)
        panel.set_xlabel("learning rate", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False, loc="lower left")
        return figure


class LRFinder:
    """Try learning rates from ``low`` to ``high``, one a step, and suggest one (Smith, 2015, arXiv:1506.01186).

    The steps are real ones, but no callback hears them, and afterwards weights, optimizers, hyperparameters, counts
    and loaders that say where they are, are what they were. A loader with an order of its own, such as torch's, may
    draw other orders afterwards.

    Args:
        low: the first rate, above 0.
        high: the last rate, above ``low``.
        steps: how many, at least 10; the data is read as often as that takes.
        beta: share of the smoothed loss that is kept at each step, at least 0 and below 1.
        parameter: what rises; ``lc.LearningRate("critic")`` for one optimizer among several.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> import loopcore as lc
        >>> learner = lc.testing.toy_learner(steps=10)
        >>> found = lc.LRFinder(low=1e-4, high=10.0, steps=60).run(learner)
        >>> found.diverged, 0.01 < found.suggestion < 1.0, learner.params.value["w"].item()
        (True, True, 0.0)
    """

    def __init__(
        self,
        *,
        low: float = 1e-7,
        high: float = 10.0,
        steps: int = 100,
        beta: float = 0.9,
        parameter: HyperParameter = LearningRate,
    ) -> None:
        if not 0 < low < high < float("inf"):
            raise ValueError(f"low={low!r}, high={high!r}: rates above 0, the first below the last")
        if not is_whole(steps, least=10):
            raise ValueError(f"steps={steps!r}: a whole number, at least 10")
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta!r}: at least 0 and below 1")
        self.rates = np.geomspace(low, high, steps)
        self.beta = beta
        self.parameter = parameter

    def run(self, learner: Learner, phase: Phase | None = None) -> FoundRate:
        """Run the steps with rising rates, then put the learner back as it was.

        Args:
            learner: whose steps are tried.
            phase: whose steps; default the learner's first `TrainingPhase`, else its first phase.

        Raises:
            DataError: the phase has no data, or data that can be read only once.
            LossError: the losses are not finite from the beginning.
        """
        if phase is None:
            phase = next(
                (candidate for candidate in learner.phases if isinstance(candidate, TrainingPhase)), learner.phases[0]
            )
        data = data_of(learner, phase)
        if is_one_shot(data):
            raise DataExhaustedError(
                f"the data of phase {phase.name!r} can be read only once, and trying rates would use it up: pass a "
                "list, or an object whose __iter__ starts anew"
            )
        with ExitStack() as undo:
            if keeps_place(data):
                undo.callback(learner.runs.put_in_place, data, learner.runs.place_of(data))
            undo.enter_context(aside(learner, phase, (), compiles=True, trains=True))
            losses = self._losses(learner, phase, data)
        return _evaluated(self.rates, losses, self.beta)

    def _losses(self, learner: Learner, phase: Phase, data: Iterable[Batch]) -> list[float]:
        losses: list[float] = []
        best = float("inf")
        for rate, batch in zip(self.rates, _endless(data), strict=False):
            self.parameter.set(learner, float(rate))
            losses.append(float(learner.to_host(learner.run_step(phase, batch).loss)))
            smoothed = _ema(losses, self.beta)[-1]
            best = min(best, smoothed)
            # In this form a NaN ends the run too.
            if not smoothed <= _DIVERGED * abs(best):
                break
        return losses


def _endless(data: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from data


def _ema(values: Sequence[float], beta: float) -> list[float]:
    """Return exponential means of the values so far, without bias."""
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = beta * total + value, beta * weight + 1.0
        means.append(total / weight)
    return means


def _evaluated(rates: NDArray[np.float64], losses: list[float], beta: float) -> FoundRate:
    smoothed = _ema(losses, beta)
    diverged = len(losses) < len(rates) or not isfinite(smoothed[-1])
    finite_places = [place for place, value in enumerate(smoothed) if isfinite(value)]
    if len(finite_places) < 2:
        raise LossError(f"the losses begin with {losses[:2]}: there is nothing to learn from; look at data and loss_fn")
    # Forwards and backwards: a mean of what came before lags behind, and would suggest too large a rate.
    curve = np.array(_ema(_ema([losses[place] for place in finite_places], beta)[::-1], beta)[::-1])
    falling = max(int(np.argmin(curve)), 1) + 1  # behind the minimum nothing falls for good
    # By the logarithm, since the rates are a geometric series: each step multiplies the rate by the same factor.
    slopes = np.gradient(curve[:falling], np.log(rates[finite_places][:falling]))
    suggestion = float(rates[finite_places][int(np.argmin(slopes))])
    return FoundRate(rates[: len(losses)], np.array(losses), np.array(smoothed), suggestion, diverged)
