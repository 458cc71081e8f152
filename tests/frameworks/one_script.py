"""A training script without a framework's name: ``LOOPCORE_BACKEND=torch python one_script.py FOLDER``.

It leaves the loss of every step, the events, the names of the weights and a checkpoint in a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import loopcore as lc


def apply_fn(params: Any, x: Any) -> Any:
    hidden = lc.xp.relu(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    return hidden @ params["out"]["weight"] + params["out"]["bias"]


def first_params() -> Any:
    draw = np.random.default_rng(0).normal
    return {
        "hidden": {"weight": draw(0, 0.2, (8, 32)).astype("float32"), "bias": np.zeros(32, "float32")},
        "out": {"weight": draw(0, 0.2, (32, 2)).astype("float32"), "bias": np.zeros(2, "float32")},
    }


class Losses(lc.Callback):
    reads = ("step.loss",)

    def __init__(self) -> None:
        self.values: list[float] = []

    @lc.on(lc.StepEnd, lc.TrainingPhase)
    def keep(self, learner: Any, phase: Any) -> None:
        self.values.append(float(learner.to_host(learner.step.loss)))


def main(folder: Path, backend: str | None = None) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(400, 8)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int64")
    train, valid = lc.data.split((x, y), 0.8, seed=0)
    losses, trace = Losses(), lc.testing.Trace()
    learner = lc.Learner(
        (apply_fn, first_params()),
        lc.losses.cross_entropy,
        lc.Adam(1e-2),
        data=(lc.data.batches(train, 32, shuffle=True, seed=2), lc.data.batches(valid, 80)),
        callbacks=[
            *(losses, trace, lc.Metrics(lc.accuracy), lc.EarlyStopping(patience=3), lc.Recorder()),
            lc.Scheduler({"learning_rate": lc.one_cycle(1e-2, 100)}),
            lc.Checkpointer(folder / "checkpoints"),
        ],
        default_callbacks=False,
        backend=backend,
    )
    result = learner.fit(10)
    return {
        "backend": learner.backend.name,
        "status": result.status,
        "losses": losses.values,
        "events": [str(event) for event in trace.events],
        "history": dict(learner.history),
        "names": sorted(learner.export_weights()),
        "weights": {name: value.tolist() for name, value in learner.export_weights().items()},
        "checkpoint": str(learner.save_model(folder / "model.safetensors")),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "result.json").write_text(json.dumps(main(folder)), encoding="utf-8")
