"""Models of the examples in JAX: modules of flax.nnx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
_OWN = {"weight": "kernel", "offset": "bias", "variance": "var"}


class Mlp(nnx.Module):
    """Two hidden layers, smooth so that a gradient of a gradient is as well."""

    def __init__(self, inputs: int, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(inputs, width, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array) -> Any:
        x = nnx.silu(self.hidden1(x))
        return self.out(nnx.silu(self.hidden2(x)))


class Generator(Mlp):
    """An `Mlp` that ends in pixels between 0 and 1."""

    def __call__(self, x: Array) -> Any:
        return nnx.sigmoid(super().__call__(x))


class Encoder(Mlp):
    """An `Mlp` with two results: means and logarithms of variances."""

    def __call__(self, x: Array) -> Any:
        return tuple(jnp.split(super().__call__(x), 2, axis=-1))


class Normalised(nnx.Module):
    """Two hidden layers with BatchNorm; gives the last hidden layer and the output."""

    def __init__(self, inputs: int, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(inputs, width, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nnx.relu(self.norm1(self.hidden1(x)))
        x = nnx.relu(self.norm2(self.hidden2(x)))
        return x, self.out(x)


class Recurrent(nnx.Module):
    """A character model: symbols and a hidden state -> logits of the next symbols and the hidden state after them."""

    def __init__(self, symbols: int, width: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(symbols, width, rngs=rngs)
        self.cell = nnx.RNN(nnx.GRUCell(width, width, rngs=rngs), return_carry=True)
        self.out = nnx.Linear(width, symbols, rngs=rngs)

    def __call__(self, tokens: Array, hidden: Array) -> tuple[Array, Array]:
        last, outputs = cast("tuple[Array, Array]", self.cell(self.embed(tokens), initial_carry=hidden))
        return self.out(outputs), last


def regressor(inputs: int, seed: int = 0) -> nnx.Module:
    """``(batch, inputs)`` -> ``(batch, 1)``."""
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(nnx.Linear(inputs, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 1, rngs=rngs))


def generator(inputs: int, width: int, pixels: int, seed: int = 0) -> nnx.Module:
    """``(batch, inputs)`` -> pixels ``(batch, pixels)`` in [0, 1]."""
    return Generator(inputs, width, pixels, nnx.Rngs(seed))


def critic(pixels: int, width: int, seed: int = 0) -> nnx.Module:
    """``(batch, pixels)`` -> ``(batch, 1)``."""
    return Mlp(pixels, width, 1, nnx.Rngs(seed))


def encoder(pixels: int, width: int, latent: int, seed: int = 0) -> nnx.Module:
    """``(batch, pixels)`` -> mean and logarithm of the variance, each ``(batch, latent)``."""
    return Encoder(pixels, width, 2 * latent, nnx.Rngs(seed))


def decoder(latent: int, width: int, pixels: int, seed: int = 0) -> nnx.Module:
    """``(batch, latent)`` -> logits of pixels ``(batch, pixels)``."""
    return Mlp(latent, width, pixels, nnx.Rngs(seed))


def normalised(inputs: int, width: int, outputs: int, seed: int = 0) -> nnx.Module:
    """``(batch, inputs)`` -> features ``(batch, width)`` and ``(batch, outputs)``; with BatchNorm."""
    return Normalised(inputs, width, outputs, nnx.Rngs(seed))


def recurrent(symbols: int, width: int, seed: int = 0) -> nnx.Module:
    """``(batch, time)`` and ``(batch, width)`` -> logits ``(batch, time, symbols)`` and ``(batch, width)``."""
    return Recurrent(symbols, width, nnx.Rngs(seed))


def own(present: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names all backends share -> names and shapes of these models, completed by the present ones."""
    found = dict(present)
    for path, array in weights.items():
        head, _, name = path.rpartition(".")
        found[f"{head}.{_OWN.get(name, name)}"] = array
    return found
