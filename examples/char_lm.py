"""A character language model with truncated back-propagation through time, on the text of Python's own help.

The text is cut into parallel streams that are read piece by piece. The hidden state is carried from a step to the next,
detached, and starts anew with each epoch.

    python -m examples.char_lm --backend torch

Result, on the 465,000 characters of ``pydoc_data.topics``: below 2.0 bits a character on the last tenth of the text;
the frequencies of the characters alone give 4.7.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import loopcore as lc
from examples import common

NATS = math.log(2)


class Streams:
    """Pieces of ``(streams, length)`` symbols and the symbols that follow them, in the order of the text."""

    def __init__(self, codes: common.Array, streams: int, length: int) -> None:
        pieces = (len(codes) - 1) // (streams * length)
        used = streams * pieces * length
        self._xs = codes[:used].reshape(streams, pieces, length)
        self._ys = codes[1 : used + 1].reshape(streams, pieces, length)

    def __len__(self) -> int:
        return int(self._xs.shape[1])

    def __iter__(self) -> Any:
        for piece in range(len(self)):
            yield {"xs": self._xs[:, piece], "ys": self._ys[:, piece]}


def read(learner: lc.Learner, state: Any) -> None:
    """Read a piece on from the hidden state that the one before it left."""
    logits, state.hidden = learner.model(state.xs, state.hidden)
    state.loss = learner.losses.cross_entropy(logits, state.ys)
    state.bits = state.loss / NATS


class Reading(lc.AbstractTrainingPhase):
    data_key = "training"
    carries = ("hidden",)

    def __init__(self, width: int) -> None:
        self.width = width

    def start(self, learner: lc.Learner, state: Any) -> None:
        state.hidden = learner.xp.zeros((state.xs.shape[0], self.width))

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            read(learner, state)
            return state.loss

        learner.minimize(objective)


class Checking(lc.AbstractValidationPhase):
    data_key = "validation"
    carries = ("hidden",)

    def __init__(self, width: int) -> None:
        self.width = width

    start = Reading.start

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        read(learner, state)


def make(
    native: Any, codes: Any, symbols: int, *, streams: int = 32, length: int = 64, width: int = 192, **options: Any
) -> lc.Learner:
    """A learner for a text of symbols ``(n,)``, the last tenth of which is for validation."""
    seed = options.get("seed", 0)
    cut = len(codes) * 9 // 10
    data = Streams(codes[:cut], streams, length), Streams(codes[cut:], 8, length)
    phases = [Reading(width), Checking(width)]
    parts: dict[str, Any] = {"callbacks": [lc.Metrics("bits")], **options}
    return lc.Learner(native.recurrent(symbols, width, seed=seed), None, lc.Adam(3e-3), data, phases=phases, **parts)


def continued(learner: lc.Learner, alphabet: str, start: str, count: int, width: int = 192) -> str:
    """A text that goes on from ``start``, each symbol drawn by its probability."""
    draw = np.random.default_rng(0)
    hidden = np.zeros((1, width), np.float32)
    text = start
    new = np.array([[alphabet.index(symbol) for symbol in start]], np.int32)
    for _ in range(count):
        logits, hidden = common.forward(learner, new, hidden)
        row = logits[0, -1].astype(np.float64)
        chances = np.exp((row - row.max()) / 0.7)
        new = np.array([[draw.choice(len(alphabet), p=chances / chances.sum())]], np.int32)
        text += alphabet[int(new[0, 0])]
    return text


def main() -> None:
    options = common.arguments(__doc__, epochs=6)
    codes, alphabet = common.text()
    learner = make(common.models(options.backend), codes, len(alphabet), seed=options.seed)
    learner.fit(options.epochs)
    print(f"{learner.history['val_bits'][-1]:.2f} bits a character\n")
    print(continued(learner, alphabet, "The ", 400))
    common.curves(options.pictures / "char_lm.png", learner.history, ["bits", "val_bits"], "bits a character")


if __name__ == "__main__":
    main()
