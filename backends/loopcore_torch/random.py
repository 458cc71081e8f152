"""Random arrays that are named by a key, and torch's own generators, which dropout draws from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loopcore.backend import DrawKey

# torch takes seeds as signed integers of 64 bits.
MASK = (1 << 63) - 1
# 2**64 divided by the golden ratio, and odd: no two of its multiples are equal modulo 2**63, and those of neighbouring
# steps are far apart.
STRIDE = 0x9E3779B97F4A7C15


def mix(key: DrawKey) -> int:
    """Return a key as a seed of 63 bits, of which torch's CPU generator uses the lower 32."""
    return (stream_seed(key[0], key[1]) + key[2] * STRIDE) & MASK


@lru_cache(maxsize=4096)
def stream_seed(seed: int, stream: int) -> int:
    """SplitMix64 of a stream; its steps follow in odd strides, so that no two are equal."""
    # The factor of the seed keeps it apart from the stream; the other constants are SplitMix64's.
    z = (seed * 0xD1342543DE82EF95 + (stream + 1) * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (z ^ (z >> 31)) & MASK


class Random:
    """Draws in the parameters' dtype on the learner's device; equal keys give equal arrays.

    Args:
        dtype: of floating draws.
        device: of all draws. Numbers of one key differ between kinds of devices.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        # Seeded for each draw, after which it gives what a new one would.
        self._generator = torch.Generator(device)
        self._floating: dict[str, Any] = {"dtype": dtype, "device": device}
        self._device = device

    def _seeded(self, key: DrawKey) -> torch.Generator:
        """Seed the generator of this object by a key, and return it."""
        return self._generator.manual_seed(mix(key))

    def key(self, key: DrawKey) -> torch.Generator:
        """Return a generator on the device for the key, to draw what has no method here."""
        return torch.Generator(self._device).manual_seed(mix(key))

    def normal(self, key: DrawKey, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(tuple(shape), generator=self._seeded(key), **self._floating)

    def uniform(self, key: DrawKey, shape: Sequence[int], low: float, high: float) -> Tensor:
        """Draw uniform numbers in ``[low, high)``."""
        return low + (high - low) * torch.rand(tuple(shape), generator=self._seeded(key), **self._floating)

    def bernoulli(self, key: DrawKey, p: float, shape: Sequence[int]) -> Tensor:
        """Draw ones with probability ``p``, else zeros."""
        draws = torch.rand(tuple(shape), generator=self._seeded(key), device=self._device)
        return (draws < p).to(self._floating["dtype"])

    def integers(self, key: DrawKey, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Draw integers from ``low`` to ``high`` (excluded), int32."""
        generator = self._seeded(key)
        return torch.randint(low, high, tuple(shape), generator=generator, dtype=torch.int32, device=self._device)

    def permutation(self, key: DrawKey, n: int) -> Tensor:
        """Draw a random order of the integers below ``n``, int32."""
        return torch.randperm(n, generator=self._seeded(key), dtype=torch.int32, device=self._device)

    def beta(self, key: DrawKey, a: float, b: float, shape: Sequence[int]) -> Tensor:
        """Draw numbers in [0, 1] of the Beta(a, b) distribution, by NumPy."""
        # torch's own Beta distribution takes no generator.
        draws = np.random.Generator(np.random.PCG64(mix(key))).beta(float(a), float(b), tuple(shape))
        return torch.as_tensor(draws, **self._floating)

    def categorical(self, key: DrawKey, logits: Tensor) -> Tensor:
        """Draw for each row of ``logits`` an index along its last axis, with the softmax of the row, int32."""
        logits = logits.detach().float()
        noise = torch.empty_like(logits).exponential_(generator=self._seeded(key))
        # The logarithm of exponential noise, negated, is Gumbel noise. The largest of logits plus that is distributed
        # as their softmax.
        gumbel = -torch.log(noise)
        return torch.argmax(logits + gumbel, dim=-1).to(torch.int32)


class GlobalGenerators:
    """The global generators of torch, of the CPU and of one accelerator: a step draws from them, and leaves no trace.

    Attributes:
        seed: seeds them; ``torch.manual_seed`` would seed every device there may be, 100 times slower.
        state: takes their state, for `put_back`.
        put_back: sets it.

    Args:
        device: of the learner; its generator counts if it is an accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        # Methods of the generators themselves: a step of a learner on the CPU touches no other.
        cpu = torch.default_generator
        self.seed: Callable[[int], object] = cpu.manual_seed
        self.state: Callable[[], Any] = cpu.get_state
        self.put_back: Callable[[Any], object] = cpu.set_state
        if device.type not in ("cpu", "meta"):
            self._generators: list[Any] = [cpu, generator_of(device)]
            self.seed, self.state, self.put_back = self._seed_all, self._states, self._put_all_back

    def _seed_all(self, value: int) -> None:
        for generator in self._generators:
            generator.manual_seed(value)

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _put_all_back(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


class _OnlyGenerator:
    """The generator of a kind of device of which there is one (MPS): torch gives its functions, not the object."""

    def __init__(self, module: Any) -> None:
        self.manual_seed = module.manual_seed
        self.get_state = module.get_rng_state
        self.set_state = module.set_rng_state


def generator_of(device: torch.device) -> Any:
    """Return torch's global generator of a device, which every step seeds."""
    if device.type in ("cpu", "meta"):
        return torch.default_generator
    module: Any = torch.get_device_module(device)
    generators = getattr(module, "default_generators", None)
    return generators[device.index or 0] if generators else _OnlyGenerator(module)
