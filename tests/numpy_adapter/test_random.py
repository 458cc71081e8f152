"""The NumPy adapter: random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loopcore.backend import DrawKey
from loopcore_numpy import Backend
from tests.numpy_adapter.calls import KEY, bound, close, same

DRAWS: dict[str, tuple[Any, ...]] = {
    "normal": ((3, 2),),
    "uniform": ((3, 2), -1.0, 2.0),
    "bernoulli": (0.5, (3, 20)),
    "integers": (0, 1000, (3, 2)),
    "permutation": (50,),
    "beta": (0.5, 0.5, (3, 2)),
    "categorical": (np.zeros((50, 7)),),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_from_their_keys(name: str) -> None:
    draw = getattr(Backend().random, name)
    same(draw(KEY, *DRAWS[name]), draw(KEY, *DRAWS[name]))
    for part in KEY._fields:
        other = KEY._replace(**{part: getattr(KEY, part) + 1})
        assert not np.array_equal(draw(KEY, *DRAWS[name]), draw(other, *DRAWS[name]))
    same(draw(DrawKey(-1, 2**32 - 1, 0), *DRAWS[name]), draw(DrawKey(-1, 2**32 - 1, 0), *DRAWS[name]))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_draws_are_arrays_in_the_parameters_dtype(name: str, dtype: Any) -> None:
    backend = bound({"w": np.ones(1, dtype)})
    made = getattr(backend.random, name)(KEY, *DRAWS[name])
    assert isinstance(made, np.ndarray)
    assert made.dtype == (np.int32 if name in ("integers", "permutation", "categorical") else dtype)


def test_draws_have_their_distributions() -> None:
    random, many = Backend().random, (200, 100)
    normal, uniform = random.normal(KEY, many), random.uniform(KEY, many, -1, 3)
    close([normal.mean(), normal.var()], [0, 1], atol=0.03)
    close([uniform.mean(), uniform.min(), uniform.max()], [1, -1, 3], atol=0.03)
    mask = random.bernoulli(KEY, 0.3, many)
    assert set(np.unique(mask)) == {0.0, 1.0} and abs(mask.mean() - 0.3) < 0.02
    assert set(np.unique(random.integers(KEY, 2, 5, many))) == {2, 3, 4}
    same(np.sort(random.permutation(KEY, 9)), np.arange(9))
    assert abs(random.beta(KEY, 2.0, 6.0, many).mean() - 0.25) < 0.02
    chosen = random.categorical(KEY, np.broadcast_to(np.log([0.2, 0.8]), (9000, 2)))
    assert chosen.shape == (9000,) and abs(chosen.mean() - 0.8) < 0.02
    assert random.normal(KEY, ()).shape == random.categorical(KEY, np.zeros(3)).shape == ()
